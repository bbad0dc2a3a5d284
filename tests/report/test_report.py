"""Reports: remade from the samples to the last digit, one page that opens offline, and nothing a model wrote runs."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gsr_rl.report.html import examples, report_html
from gsr_rl.report.intervals import bootstrap_weights
from gsr_rl.report.markdown import comparison_markdown, figure, report_markdown, seeds_markdown
from gsr_rl.report.plots import png, svgs
from gsr_rl.report.problem_values import Problems, metrics_from_samples
from gsr_rl.report.samples import read_samples, write_samples
from gsr_rl.report.tables import by_num_correct, compare, comparison, over_seeds, runs_of, summarise
from tests.support.fixed_engine import run_recipe
from tests.support.made_samples import HEADER, HOSTILE, made_samples, write_run
from tests.support.paths import ROOT

MADE = ("eval.json", "report.md", "report.html", "report.png")


def remake(*sources, **keys) -> str:
    """What the recipe prints as it makes the tables of these runs again, in this process."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        run_recipe(patch, "eval", from_samples=list(sources), **keys)
    return said.getvalue()


def remake_with_threads(folder, threads: str) -> str:
    command = [sys.executable, "recipes/eval_gsr.py", "--from_samples", str(folder)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, threads) | {"PYTHONHASHSEED": threads}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_files_are_the_same_to_the_last_byte_with_another_number_of_processes(tmp_path):
    write_run(tmp_path, 200, benchmarks=("made", "other"))
    outputs = []
    for make in (remake, partial(remake_with_threads, threads="4")):
        text = make(tmp_path)
        outputs.append({name: (tmp_path / name).read_bytes() for name in MADE} | {"text": text})
    for name in outputs[0]:
        assert outputs[0][name] == outputs[1][name], name
    assert "# Evaluation of made/model" in outputs[0]["text"]


def test_tables_do_not_depend_on_how_a_run_was_cut_into_shards(tmp_path):
    """Samples in another order of problems give the same figures, up to the draws of the bootstrap."""
    write_run(tmp_path / "one")
    header, samples = read_samples(tmp_path / "one" / "samples.parquet")
    (tmp_path / "two").mkdir()
    write_samples(tmp_path / "two" / "samples.parquet", samples[::-1], header)
    one, two = (summarise(metrics_from_samples(tmp_path / name))["benchmarks"]["made"] for name in ("one", "two"))
    assert {metric: figure["value"] for metric, figure in one.items()} == {m: f["value"] for m, f in two.items()}


def test_several_runs_give_a_table_over_seeds(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"seed{seed}", seed=seed)
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1, 2)]
    text = remake(*folders, output_dir=tmp_path / "all")
    content = json.loads((tmp_path / "all" / "seeds.json").read_text())
    figures = content["benchmarks"]["made"]
    singles = [summarise(metrics_from_samples(folder))["benchmarks"]["made"] for folder in folders]
    for metric in ("pass@1", "selfref@3", "refinement_gap"):
        values = [one[metric]["value"] for one in singles]
        assert figures[metric]["seeds"] == values and content["seeds"] == ["0", "1", "2"]
        assert figures[metric]["value"] == pytest.approx(sum(values) / 3, abs=1e-6)
        mean = sum(values) / 3
        assert figures[metric]["sd"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5, abs=1e-6)
    assert (tmp_path / "all" / "seeds.md").read_text() in text
    assert all([*folder.iterdir()] == [folder / "samples.parquet"] for folder in folders), "runs stay as they are"


def test_a_table_over_seeds_has_both_gradings_the_controls_and_what_a_run_lacks(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"{seed}", 40, seed=seed)
        header, samples = read_samples(tmp_path / f"{seed}" / "samples.parquet")
        unboxed = [one | {"correct_strict": 0.0} if one["index"] == seed else one for one in samples]
        kept = [one for one in unboxed if seed != 1 or one["method"] != "selfref_none"]
        write_samples(tmp_path / f"{seed}" / "samples.parquet", kept, header)
    runs = [metrics_from_samples(tmp_path / f"{seed}") for seed in (0, 1, 2)]
    singles, over = [*map(summarise, runs)], over_seeds(runs)
    for part in ("benchmarks", "strict", "differences", "strict_differences"):
        wanted = {metric for metric in singles[0][part]["made"] if "selfref_none" not in metric}
        assert set(over[part]["made"]) == wanted
        for metric, one in over[part]["made"].items():
            assert one["seeds"] == [single[part]["made"][metric]["value"] for single in singles], metric
    assert {"selfref@3-maj@4", "selfref@3-pass@1", "selfref@3-pass@3"} <= set(over["differences"]["made"])
    assert over["strict"]["made"]["pass@1"]["value"] < over["benchmarks"]["made"]["pass@1"]["value"] - 0.05
    assert over["missing"] == {"made": {"selfref_none": ["1"]}}
    text = seeds_markdown(over)
    assert "as some runs have no figure: selfref_none (seed 1)." in text
    row = next(line for line in text.splitlines() if line.startswith("| pass@1 "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == [figure(over[part]["made"]["pass@1"]) for part in ("benchmarks", "strict")]
    assert re.search(r"^\| selfref@3-maj@4 +\| .* \| paired +\|$", text, re.MULTILINE)
    assert "Left out" not in seeds_markdown(over_seeds(runs[::2]))


def test_a_difference_over_seeds_is_paired_by_problem(tmp_path):
    """Hard problems are hard for both sides: their difference varies less than that of unrelated shares."""
    write_run(tmp_path / "0", 200)
    header, samples = read_samples(tmp_path / "0" / "samples.parquet")
    write_samples(tmp_path / "1" / "samples.parquet", samples, header | {"seed": 1})  # the seeds themselves are alike
    over = over_seeds([metrics_from_samples(tmp_path / f"{seed}") for seed in (0, 1)])
    width = {
        key: one["high"] - one["low"]
        for part in ("benchmarks", "differences")
        for key, one in over[part]["made"].items()
    }
    apart = (width["selfref@3"] ** 2 + width["pass@1"] ** 2) ** 0.5
    assert width["selfref@3-pass@1"] < 0.8 * apart


def test_two_models_are_compared_on_the_problems_of_both(tmp_path):
    write_run(tmp_path / "new", 40)
    header, samples = read_samples(tmp_path / "new" / "samples.parquet")
    old = [one | {"correct_lenient": 0.0} if one["problem_id"] < "p2" else one for one in samples]
    old = [one for one in old if one["problem_id"] not in ("p3", "p4") and one["method"] != "selfref_none"]
    old += made_samples(5, benchmark="alone")
    sampling = header["sampling"] | {"candidate": header["sampling"]["candidate"] | {"temperature": 0.6}}
    write_samples(tmp_path / "old" / "samples.parquet", old, header | {"model": "made/old", "sampling": sampling})
    text = remake(tmp_path / "new", compare_with=tmp_path / "old")
    assert not (tmp_path / "old" / "eval.json").exists() and (tmp_path / "new" / "eval.json").exists()
    shown = (tmp_path / "new" / "compare.md").read_text()
    content = json.loads((tmp_path / "new" / "compare.json").read_text())
    runs = [metrics_from_samples(tmp_path / name) for name in ("new", "old")]
    assert content["benchmarks"] == compare(*runs) and content["strict"] == compare(*runs, grading="strict")
    assert set(content["benchmarks"]) == {"made"} and "selfref_none" not in content["benchmarks"]["made"]
    for metric in ("pass@1", "selfref@3", "refinement_gap", "fix_rate"):
        new, old = content["values"]["made"][metric]
        assert content["benchmarks"]["made"][metric]["value"] == pytest.approx(new - old, abs=2e-6)
    one = content["benchmarks"]["made"]["pass@1"]
    assert one["low"] > 0 and content["strict"]["made"]["pass@1"]["value"] == 0.0
    new, old = (100 * value for value in content["values"]["made"]["pass@1"])
    assert re.search(rf"\| pass@1 +\| {new:.1f} +\| {old:.1f} +\| {re.escape(figure(one))} ", shown)
    assert "38 problems compared; the runs hold 40 and 38." in shown and shown in text
    assert "# made/model against made/old" in shown and "Settings that differ: temperature 1.0 and 0.6." in shown
    labels = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("|")]
    assert labels[2:] == ["pass@1", "maj@3", "selfref@3", "pass@3", "refinement_gap"]


def test_a_table_over_seeds_says_how_they_were_sampled_and_what_each_has_of_its_own(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", 10, seed=seed)
    runs = [metrics_from_samples(tmp_path / f"{seed}") for seed in (0, 1)]
    runs[1].header["model"], runs[1].skipped["selfref"] = "made/second", {"skipped": 2, "samples": 20}
    text = seeds_markdown(over_seeds(runs))
    assert "- candidates: temperature 1.0, top_p 1.0, max_tokens 40\n" in text
    assert "- runs: 6 candidates a problem; sets of K = 3: 2 a problem, disjoint\n" in text
    assert "- seed 0: made/model; gsr-rl 0; sampled on AMD EPYC, no accelerator\n" in text
    assert re.search(r"- seed 1: made/second; .* counted as wrong: selfref 2 of 20\n", text)


def test_refinement_over_sets_of_one_size_is_compared_with_that_over_another(tmp_path):
    write_run(tmp_path / "three", 20)
    header, samples = read_samples(tmp_path / "three" / "samples.parquet")
    pairs = [one | {"candidates": one["candidates"][:2]} if one["method"] == "selfref" else one for one in samples]
    write_samples(tmp_path / "two" / "samples.parquet", pairs, header | {"k": 2})
    three, two = (metrics_from_samples(tmp_path / name) for name in ("three", "two"))
    found = compare(three, two)["made"]
    assert found["selfref@3-selfref@2"]["value"] == 0 and {"maj@3-maj@2", "pass@3-pass@2", "pass@1"} <= set(found)
    assert "selfref@2-selfref@3" in compare(two, three)["made"] and "pass@1-pass@3" not in compare(two, three)["made"]
    text = comparison_markdown(comparison(three, two))
    assert "Settings that differ: num_candidates 3 and 2." in text and "\n| selfref@3-selfref@2 " in text


def test_the_number_of_problems_is_that_of_the_samples_and_a_lost_candidate_is_said(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "samples.parquet"
    header, samples = read_samples(path)
    write_samples(path, [one for one in samples if one["problem_id"] in ("p0", "p1", "p2")], header)
    assert "3 problems, 6 candidates" in report_markdown(summarise(metrics_from_samples(tmp_path)))
    for lost in (2, 5):
        kept = [one for one in samples if (one["method"], one["index"], one["problem_id"]) != ("direct", lost, "p1")]
        write_samples(path, kept, header)
        with pytest.raises(ValueError, match="samples of problem p1: candidates are missing or twice: there are"):
            metrics_from_samples(tmp_path)


def test_a_file_that_is_no_runs_own_needs_a_folder_for_its_reports(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "samples.parquet").rename(tmp_path / "model.parquet")
    with pytest.raises(SystemExit) as stopped:
        remake(tmp_path / "model.parquet")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "is no run's samples.parquet: say where its reports go by output_dir" in said
    remake(tmp_path / "model.parquet", output_dir=tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.parquet", "out"]


def test_a_metric_that_a_run_has_not_is_named_with_those_that_it_has(tmp_path):
    write_run(tmp_path, 10)
    run = metrics_from_samples(tmp_path)
    assert compare(run, run, pairs=[("selfref@3", "pass@1")])["made"].keys() == {"selfref@3-pass@1"}
    for pair in (("selfref@3", "pass@5"), ("pass@5", "pass@1")):
        with pytest.raises(ValueError, match=r"^pairs: pass@5 is no metric of made: there are pass@1, pass@3, maj@4"):
            compare(run, run, pairs=[pair])


@pytest.mark.parametrize(
    ("runs", "other", "message"),
    [
        (["a"], "nowhere", "compare_with=nowhere: there is no samples.parquet, run eval_gsr.py first"),
        (
            ["a"],
            "a/samples.parquet",
            "compare_with=a/samples.parquet is the run itself: name the run of another model",
        ),
        (["a", "b"], "c", "compare_with=c: from_samples names 2 runs: name one to compare"),
        (["a", "b"], None, "Two models are compared by --from_samples RUN --compare_with OTHER"),
        (["a"], "far", "the two runs have no problem in common: evaluate the same problems with both models"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, monkeypatch, capsys, runs, other, message):
    for name in "abc":
        write_run(tmp_path / name, 5)
    write_run(tmp_path / "far", 5, benchmarks=("far",))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        remake(*runs, output_dir="out", **({"compare_with": other} if other else {}))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "out" / "compare.json").exists()


def test_runs_on_other_problems_are_not_put_together(tmp_path):
    write_run(tmp_path / "a", 10)
    write_run(tmp_path / "b", 12, seed=1)
    runs = [metrics_from_samples(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match="different problems of made"):
        over_seeds(runs)
    write_run(tmp_path / "c", 10, benchmarks=("far",))
    with pytest.raises(ValueError, match="benchmarks are made in one run and far in another: evaluate the same"):
        over_seeds([runs[0], metrics_from_samples(tmp_path / "c")])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "a seed repeats (seed 0 of made/model, seed 0 of made/other): name one run of each seed"),
        ({"seed": 1, "k": 2}, "num_candidates is 3 in one run and 2 in another: evaluate both with the same"),
        ({"seed": 1, "reward_model": "b"}, None),
        ({"seed": 1, "grouping": "resampled"}, "grouping is disjoint in one run and resampled in another"),
        ({"seed": 1, "sampling": {"candidate": {"top_p": 0.9}}}, "top_p is 1.0 in one run and 0.9 in another"),
        ({"seed": 1, "sampling": {"refinement": {"max_tokens": 9}}}, "max_refinement_length is 40 in one run and 9"),
    ],
)
def test_runs_of_seeds_differ_in_nothing_but_seed_and_model(tmp_path, changed, message):
    write_run(tmp_path, 10)
    one = metrics_from_samples(tmp_path)
    other = dataclasses.replace(one, header=one.header | {"model": "made/other"} | changed)
    if message is None:
        assert over_seeds([one, other])["benchmarks"]["made"]["pass@1"]["sd"] == 0.0
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        over_seeds([one, other])


def test_spread_over_runs_by_hand():
    one = runs_of([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert one == {"runs": 3, "mean": round(2 / 3, 6), "sd": round((1 / 12) ** 0.5, 6), "min": 0.5, "max": 1.0}
    assert runs_of([[1.0], [0.0]])["sd"] is None
    assert runs_of([])["runs"] == 0


def test_samples_of_before_further_columns_still_make_tables(tmp_path):
    import pyarrow.parquet as pq

    write_run(tmp_path)
    path = tmp_path / "samples.parquet"
    header, samples = read_samples(path)
    write_samples(path, samples, {key: value for key, value in header.items() if key not in ("grouping", "methods")})
    table = pq.read_table(path)
    dropped = ["problem", "round", "order", "repeat", "chosen", "copied", "score", "prompt_tokens"]
    pq.write_table(table.drop_columns(dropped), path)
    summary = summarise(metrics_from_samples(tmp_path))
    assert summary["benchmarks"]["made"]["selfref@3"]["n"] == 30 and "copy_rate" not in summary["benchmarks"]["made"]
    assert "Triumph" in report_html(summary, read_samples(path)[1])
    assert "resampled" in report_markdown(summary)
    assert "selfref_none" in read_samples(path)[0]["methods"]


def test_the_power_note_is_of_the_gap_and_of_all_that_models_are_compared_by(tmp_path):
    write_run(tmp_path)  # two sets a problem that share no candidate
    summary = summarise(metrics_from_samples(tmp_path))
    alone, *two = summary["power"]["made"]
    assert alone == "refinement_gap"
    assert two == [f"{metric} of two models" for metric in ("pass@1", "maj@3", "selfref@3", "refinement_gap")]
    notes = summary["power"]["made"]
    assert notes["refinement_gap of two models"]["within"] == pytest.approx(2 * notes[alone]["within"], abs=1e-5)
    assert "- selfref@3 of two models: 30 problems with 2 runs show a difference" in report_markdown(summary)


def test_a_report_says_on_what_machine_its_samples_were_drawn(tmp_path):
    write_run(tmp_path)
    summary = summarise(metrics_from_samples(tmp_path))
    assert "- sampled on: AMD EPYC, no accelerator\n" in report_markdown(summary)
    two = summary["hardware"] | {"accelerators": ["NVIDIA H200", "NVIDIA H200"]}
    assert "- sampled on: NVIDIA H200, NVIDIA H200\n" in report_markdown(summary | {"hardware": two})


def test_what_was_not_asked_for_counts_as_wrong_in_the_rescue_rate_too(tmp_path):
    write_run(tmp_path, 100)
    path = tmp_path / "samples.parquet"
    header, samples = read_samples(path)
    right = {(s["problem_id"], s["index"]): s["correct_lenient"] for s in samples if s["method"] == "direct"}
    for sample in samples:
        without = not any(right[sample["problem_id"], index] for index in sample["candidates"] or [])
        if sample["method"] == "selfref" and without and not sample["correct_lenient"]:
            sample["skipped"] = True
    write_samples(path, samples, header)
    summary = summarise(metrics_from_samples(tmp_path))
    rescued, none_right = summary["benchmarks"]["made"]["rescue_rate"], summary["by_num_correct"]["made"]["0"]
    assert 2 * rescued["n"] == none_right["n"] > 20, "two sets a problem"
    assert rescued["value"] == pytest.approx(none_right["selfref"], abs=1e-6) and rescued["value"] < 0.5


def test_a_report_says_what_was_not_asked_for(tmp_path):
    write_run(tmp_path)
    summary = summarise(metrics_from_samples(tmp_path))
    skipped = {"selfref": {"skipped": 20, "samples": 1030}}
    assert "not asked for" not in report_markdown(summary)
    assert "counted as wrong: selfref 20 of 1,030\n" in report_markdown(summary | {"skipped": skipped})


@pytest.mark.parametrize(("sets", "grouping", "apart"), [(2, "resampled", True), (3, "resampled", False)])
def test_sets_overlap_only_where_candidates_run_out(tmp_path, sets, grouping, apart):
    write_run(tmp_path)
    header, samples = read_samples(tmp_path / "samples.parquet")
    header |= {"grouping": grouping, "num_candidate_sets": sets}
    write_samples(tmp_path / "samples.parquet", samples, header)
    text = report_markdown(summarise(metrics_from_samples(tmp_path)))
    assert ("overlapping" in text) != apart and ("selfref@3 run by run: 2 runs, deviation" in text) == apart


def test_the_gap_by_number_of_right_candidates_has_an_interval_over_problems():
    """Six problems of two sets each: the four sets with one right candidate are of two problems, which differ.

    Of three of these four, so many of the candidates not shown are right: 0.5, 0.2, 0.2; their refinements: 1, 0, 0.
    """
    sets = {0: [(1, 1.0, 0.5)] * 2, 1: [(1, 0.0, 0.5)] * 2} | {number: [(3, 1.0, 1.0)] * 2 for number in (2, 3, 4)}
    sets[5] = [(2, math.nan, 1.0), (None, 1.0, 1.0)]
    problems = [
        SimpleNamespace(sets=[
            SimpleNamespace(num_correct=right, selfref=selfref, maj=maj, is_scored=not math.isnan(selfref),
                            unseen=math.nan, copied=float(maj == 1), novel=math.nan)
            for right, selfref, maj in of
        ])
        for of in sets.values()
    ]  # fmt: skip
    problems[0].sets[0].unseen, problems[0].sets[0].novel = 0.5, 1.0
    problems[1].sets[0].unseen = problems[1].sets[1].unseen = 0.2
    values = Problems(3, problems)
    table = by_num_correct(values, bootstrap_weights(6))
    assert table["1"]["n"] == 4 and (table["1"]["selfref"], table["1"]["maj"]) == (0.5, 0.5)
    assert table["1"]["gap"]["value"] == 0 and table["1"]["gap"]["low"] <= -0.5 <= 0.5 <= table["1"]["gap"]["high"]
    assert table["3"]["gap"]["value"] == 0 and table["0"]["gap"] is None and table["2"]["gap"] is None
    assert (table["1"]["unseen"], table["1"]["copied"], table["1"]["novel"]) == (0.3, 0.0, 1.0)
    over = table["1"]["over_unseen"]
    assert over["value"] == pytest.approx((0.5 - 0.2 - 0.2) / 3, abs=1e-6) and over["low"] < 0 < over["high"]
    assert table["3"]["unseen"] is table["3"]["over_unseen"] is table["0"]["copied"] is None
    assert table["3"]["copied"] == 1.0
    assert table["3"]["gap"]["low"] < -0.3 and table["3"]["gap"]["high"] == 0, "nothing is above a vote that is right"


# The page ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_run(folder, 60, text=HOSTILE, benchmarks=("made", "second <b>set</b>"))
    summary = summarise(metrics_from_samples(folder))
    path = folder / "report.html"
    path.write_text(report_html(summary, read_samples(folder / "samples.parquet")[1], 2))
    return path, summary


def test_the_page_holds_every_figure_of_the_table(page):
    text = page[0].read_text()
    for name in page[1]["benchmarks"]:
        for one in page[1]["benchmarks"][name].values():
            assert figure(one) in text


def test_what_a_model_wrote_is_text(page):
    text = page[0].read_text()
    assert "&lt;script&gt;document.title=" in text and "{{ 7*7 }}" in text
    assert "<script" not in text and "onerror=alert(1)&gt;" in text and "<h1>big" not in text
    assert "second &lt;b&gt;set" in text


def test_the_page_asks_for_nothing_from_elsewhere(page):
    text = page[0].read_text()
    addresses = re.findall(r"(?:src|href)=\"([^\"]{0,30})", text)
    assert addresses and all(one.startswith(("data:image/svg+xml;base64,", "#part")) for one in addresses)
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text


def test_plots_show_k_tokens_and_the_number_of_right_candidates(page):
    pytest.importorskip("matplotlib")
    found = svgs(page[1], "made")
    assert len(found) == 4
    assert all("<svg" in svg and "<text" in svg for svg in found.values())
    for words in ("number of candidates", "tokens spent", "number of right candidates"):
        assert any(words in title for title in found)
    assert svgs(page[1], "made") == found, "the same bytes every time"


def test_the_picture_counts_the_problems_of_its_own_benchmark(page, monkeypatch):
    axes, titles = pytest.importorskip("matplotlib.axes"), []
    monkeypatch.setattr(axes.Axes, "set_title", lambda _, title, **__: titles.append(title))
    assert page[1]["num_problems"] == 120 and png(page[1]) and "made, n = 60" in titles


def test_a_name_that_reads_as_mathematics_is_drawn_as_it_is(page):
    pytest.importorskip("matplotlib")
    odd = {key: {r"x_$\frac$": one["made"]} if isinstance(one, dict) and "made" in one else one
           for key, one in page[1].items()}  # fmt: skip
    assert png(odd)


def test_examples_are_triumphs_over_few_right_candidates_and_failures_over_many(page):
    samples = made_samples(200)
    found = examples(samples, 3)
    assert [one["kind"] for one in found] == ["triumph"] * 3 + ["failure"] * 3
    assert all(one["refinement"]["verdict"] == "right" for one in found[:3])
    assert all(one["refinement"]["verdict"] == "wrong" for one in found[3:])
    assert [one["right"] for one in found[:3]] == [0, 0, 0] and [one["right"] for one in found[3:]] == [3, 3, 3]
    assert len({one["problem_id"] for one in found[:3]}) == 3
    for one in found:
        assert len(one["columns"]) == 3
        assert sum(column["verdict"] == "right" for column in one["columns"]) == one["right"]
    assert examples(samples, 0) == []


def test_long_texts_lose_their_middle(page):
    long = [one | {"text": "a" * 9000 + "END"} for one in made_samples(60)]
    text = examples(long, 1)[0]["refinement"]["text"]
    assert len(text) < 6100 and text.endswith("END") and "3003 characters left out" in text


def test_a_run_without_refinement_has_a_report_too(tmp_path):

    direct = [one for one in made_samples(20) if one["method"] == "direct"]
    write_samples(tmp_path / "samples.parquet", direct, HEADER | {"num_problems": 20})
    summary = summarise(metrics_from_samples(tmp_path))
    assert set(summary["benchmarks"]["made"]) == {"pass@1", "pass@3", "maj@3", "maj@4"}
    assert summary["benchmarks"]["made"]["maj@3"]["n"] == 20 and summary["by_num_correct"] == {}
    assert "selfref" not in report_markdown(summary) and "made" in report_html(summary, direct)


def chromium(path: Path, folder: Path, *more: str) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser here: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--window-size=1280,2400"]
    command = [program, *flags, f"--user-data-dir={folder}", *more, path.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_shows_the_page_and_runs_nothing_of_it(page, tmp_path):
    dom = chromium(page[0], tmp_path / "profile", "--dump-dom")
    assert "<title>Evaluation of made/model</title>" in dom, "no script of a model's text has changed the title"
    assert dom.count("<img alt=") == 8 and "<h1>big" not in dom and "{{ 7*7 }}" in dom


def test_a_browser_paints_plots_table_and_examples(page, tmp_path):
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "page.png"
    chromium(page[0], tmp_path / "profile", f"--screenshot={picture}")
    with image.open(picture) as shot:
        colours = shot.convert("RGB").getcolors(maxcolors=1 << 24)
    seen = {colour: count for count, colour in colours}
    assert shot.size == (1280, 2400) and len(seen) > 50
    assert seen.get((0, 158, 115), 0) > 30 and seen.get((0, 114, 178), 0) > 30, "the colours of the plots' marks"


def test_a_score_that_is_no_number_neither_votes_nor_is_the_best(tmp_path):
    samples = [one | {"score": math.nan if one["method"] == "direct" else None} for one in made_samples(20)]
    write_samples(tmp_path / "samples.parquet", samples, HEADER | {"num_problems": 20})
    values = summarise(metrics_from_samples(tmp_path))["benchmarks"]["made"]
    assert values["weighted_maj@3"]["value"] == values["best_of@3"]["value"] == 0.0
