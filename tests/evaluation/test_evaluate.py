"""Evaluation: which sets are refined, which controls, what is stored, and that every figure comes from the store."""

import copy
import json
import math
import os
import re
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest

from gsr_rl.evaluation import evaluate as evaluation
from gsr_rl.evaluation.methods import STAGES, Task, foreign_problems
from gsr_rl.refinement import metrics
from gsr_rl.refinement.prompts import get_template
from gsr_rl.refinement.stages import Stages
from gsr_rl.report.markdown import figure
from gsr_rl.report.problem_values import metrics_from_samples
from gsr_rl.report.samples import read_samples, skipped_of, write_samples
from gsr_rl.report.tables import compare, summarise
from tests.support.fixed_engine import EVALUATION, FixedEngine, evaluate, run_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Evaluate with the fixed engine; returns the run folder."""
    return partial(evaluate, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def first(run):
    return run("first")


@pytest.fixture(scope="module")
def samples(first):
    return read_samples(first / "samples.parquet")[1]


def by_problem(samples):
    found = defaultdict(list)
    for sample in samples:
        found[sample["problem_id"]].append(sample)
    return found


def test_every_sample_is_stored(first, samples):
    assert len(samples) == 60 * (5 + 2 * 3)
    for group in by_problem(samples).values():
        assert [s["index"] for s in group if s["method"] == "direct"] == [0, 1, 2, 3, 4]
        sets = [s["candidates"] for s in group if s["method"] == "selfref"]
        assert all(len(set(chosen)) == 3 and set(chosen) <= set(range(5)) for chosen in sets) and len(sets) == 2
        assert len(set(sets[0]) | set(sets[1])) == 5, "two sets of three share as little as they can"
    assert {path.name for path in first.iterdir()} >= {
        "eval.json",
        "report.md",
        "report.png",
        "report.html",
        "samples.parquet",
        "config.yaml",
        "versions.json",
    }


def test_controls_see_no_candidates_or_another_problems_of_the_same_family(samples):
    family = {s["problem_id"]: s["part"] for s in samples}
    for sample in samples:
        if sample["method"] == "selfref_none":
            assert sample["candidates"] == [] and sample["candidates_of"] is None
        if sample["method"] == "selfref_foreign":
            assert sample["candidates_of"] != sample["problem_id"]
            assert family[sample["candidates_of"]] == family[sample["problem_id"]]


def test_a_foreign_problem_is_another_one_even_where_a_family_has_one():
    found = foreign_problems(["a", "a", "b"], seed=0)
    assert found[0] == 1 and found[1] == 0 and found[2] in (0, 1)
    assert foreign_problems(["a"], seed=0) == [None]
    found = foreign_problems(["a"] * 50, seed=3)
    assert sorted(found) == list(range(50)) and all(other != own for own, other in enumerate(found))


def test_figures_are_what_the_stored_samples_say(first, samples):
    summary = json.loads((first / "eval.json").read_text())
    means = defaultdict(list)
    for group in by_problem(samples).values():
        direct = [s for s in group if s["method"] == "direct"]
        right = [s["correct_lenient"] for s in direct]
        means["pass@1"].append(sum(right) / 5)
        means["pass@3"].append(metrics.pass_at_k(5, int(sum(right)), 3))
        for sample in group:
            if sample["method"] == "selfref":
                votes = [direct[i]["class_lenient"] for i in sample["candidates"]]
                maj = metrics.maj_correct(votes, [right[i] for i in sample["candidates"]])
                means["maj@3"].append(maj)
                means["selfref@3"].append(sample["correct_lenient"])
                means["refinement_gap"].append(sample["correct_lenient"] - maj)
            elif sample["method"] != "direct":
                means[sample["method"]].append(sample["correct_lenient"])
    values = summary["benchmarks"]["tiny/mix"]
    for name, numbers in means.items():
        assert values[name]["value"] == pytest.approx(sum(numbers) / len(numbers), abs=1e-6), name
        assert values[name]["low"] <= values[name]["value"] <= values[name]["high"]
    further = {"maj@4", "maj@tokens", "maj@tokens_capped", "fix_rate", "break_rate"}
    further |= {"copy_rate", "novel_answer", "rescue_rate"}
    assert set(values) == set(means) | further
    assert sum(one["n"] for one in summary["by_num_correct"]["tiny/mix"].values()) == 120
    assert list(summary["by_num_correct"]["tiny/mix"]) == ["0", "1", "2", "3"]
    assert set(summary["benchmarks"]) == set(summary["strict"]) == {"tiny/mix", "tiny/mix/chain", "tiny/mix/guess"}
    assert summary["k"] == 3 and summary["num_problems"] == 60 and summary["num_samples"] == 5
    assert summary["sampling"]["candidate"]["temperature"] == 1.0 and "versions" in summary
    assert values["selfref@3"]["value"] > values["selfref_none"]["value"]


def test_tables_are_remade_from_the_store_to_the_last_digit(first):
    stored = json.loads((first / "eval.json").read_text())
    assert json.loads(json.dumps(summarise(metrics_from_samples(first)))) == stored


def test_a_run_against_itself_differs_by_nothing_and_another_seed_by_something(run, first):
    same = compare(first, first)["tiny/mix"]
    assert all(one["value"] == 0 and one["low"] == -one["high"] for one in same.values())
    cross = compare(first, first, pairs=[("selfref@3", "pass@1")])["tiny/mix"]
    summary = json.loads((first / "eval.json").read_text())
    assert cross == {"selfref@3-pass@1": summary["differences"]["tiny/mix"]["selfref@3-pass@1"]}
    other = run("other", seed=1)
    assert any(one["value"] != 0 for one in compare(first, other)["tiny/mix"].values()), "other sets are chosen"


def test_an_evaluation_is_compared_with_another_models_run(run, first, capsys):
    folder = run("compared", seed=1, max_problems=30, compare_with=first)
    content = json.loads((folder / "compare.json").read_text())
    assert content["benchmarks"] == compare(folder, first)
    assert content["problems"]["tiny/mix"] == [30, 60] and content["compared"]["tiny/mix"] <= 30
    assert (folder / "compare.md").read_text() in capsys.readouterr().out
    engines = FixedEngine.opened
    with pytest.raises(SystemExit):
        run("uncompared", compare_with="README.md")
    assert "README.md: not a samples.parquet of eval_gsr.py" in capsys.readouterr().err
    for more in ({"dataset_split": "validation"}, {"dataset_split": "validation", "dry_run": "true"}):
        with pytest.raises(SystemExit):
            run("uncompared", compare_with=first, **more)
        assert "first has none of these problems: evaluate the same ones" in capsys.readouterr().err
    assert FixedEngine.opened == engines, "refused before anything is sampled"


def test_runs_on_part_of_the_problems_are_compared_on_what_both_hold(run, first):
    shorter = run("shorter", max_problems=20)
    ids = set(metrics_from_samples(shorter).problems["lenient"]["tiny/mix"].ids)
    known = set(metrics_from_samples(first).problems["lenient"]["tiny/mix"].ids)
    assert ids & known and ids != known
    assert compare(shorter, first)["tiny/mix"]["pass@1"]["value"] == 0.0, "the fixed engine repeats itself"
    far = run("far", dataset_split="validation", max_problems=10)
    with pytest.raises(ValueError, match="no problem in common"):
        compare(far, first)


@pytest.mark.parametrize(
    ("text", "copied"),
    [("<think>Both agree.</think>\n\nIt is 7.\n", True), ("It is 8.", False), ("<think>It is 7.", False)],
)
def test_a_copy_is_told_by_what_stands_after_the_thinking_part(text, copied):
    task = Task("selfref", candidates=[0, 3], shown=[(0, "It is 9."), (3, "It is 7.")])
    stages = Stages(None, get_template("tiny"), 512, 40, 40, 512, "drop")
    assert evaluation._is_copy(evaluation.Sample(0, text), task, stages) is copied


def test_refinement_of_a_single_candidate_is_evaluated_too(run):
    folder = run("single", num_candidates=1, max_problems=10)
    values = json.loads((folder / "eval.json").read_text())["benchmarks"]["tiny/mix"]
    assert values["pass@1"]["n"] == values["maj@1"]["n"] == values["selfref@1"]["n"] == 10
    assert {"maj@2", "refinement_gap"} <= set(values)


def test_a_vote_at_equal_tokens_says_where_it_lacks_candidates(run):
    folder = run("few", num_generations=4, max_problems=30)
    header, samples = read_samples(folder / "samples.parquet")
    for sample in samples:
        sample["tokens"] = 10 if sample["method"] == "direct" else 5 + 10 * (sample["index"] == 1)
    write_samples(folder / "samples.parquet", samples, header)
    values = metrics_from_samples(folder).problems["lenient"]["tiny/mix"].values
    assert values["maj@tokens_capped"] == [0.5] * 30, "3 candidates and 15 tokens are more than the 4 that there are"


def test_frozen_candidates_are_the_other_runs_sets(run, first, samples):
    frozen = run("frozen", candidates_from=first / "samples.parquet", seed=5)
    rows = read_samples(frozen / "samples.parquet")[1]
    theirs = {(s["problem_id"], s["index"]): s["candidates"] for s in samples if s["method"] == "selfref"}
    ours = {(s["problem_id"], s["index"]): s["candidates"] for s in rows if s["method"] == "selfref_frozen"}
    live = {(s["problem_id"], s["index"]): s["candidates"] for s in rows if s["method"] == "selfref"}
    assert ours == theirs != live
    value = json.loads((frozen / "eval.json").read_text())["benchmarks"]["tiny/mix"]["selfref_frozen"]["value"]
    theirs = json.loads((first / "eval.json").read_text())["benchmarks"]["tiny/mix"]["selfref@3"]["value"]
    assert value == theirs, "an engine with fixed outputs refines the same sets to the same texts"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_candidates": 4}, "sets of 3 candidates, num_candidates is 4: set it to 3"),
        ({"dataset_split": "validation"}, "has no problem .* evaluate the same problems"),
    ],
)
def test_frozen_candidates_that_do_not_fit_are_refused(run, first, capsys, more, message):
    for dry in ("true", "false"):
        with pytest.raises(SystemExit) as stopped:
            run("refused", candidates_from=first / "samples.parquet", dry_run=dry, **more)
        assert stopped.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_what_another_run_gives_is_known_before_anything_is_sampled(first, samples):
    config = SimpleNamespace(candidates_from=str(first / "samples.parquet"), own_candidates=True, num_candidates=3)
    own = {s["problem_id"]: s["candidates"] for s in samples if s["method"] == "selfref" and s["index"] == 1}
    one = next(s for s in samples if s["method"] == "direct")
    row = {"benchmark": "tiny/mix", "id": one["problem_id"], "problem": one["problem"], "answer": one["gold"]}
    frozen, taken, other = evaluation.from_other_run([row], config)
    assert frozen[f"tiny/mix/{row['id']}"][1][1] == own[row["id"]] and taken is other is None
    config.own_candidates, config.num_generations, config.num_candidate_sets = False, 5, 2
    frozen, taken, other = evaluation.from_other_run([row], config)
    assert frozen is None and len(taken[0]["samples"]) == 5 and other["k"] == 3
    with pytest.raises(ValueError, match="has no problem far of tiny/mix: evaluate the same problems"):
        evaluation.from_other_run([row | {"id": "far"}], config)


def test_unscored_samples_and_skipped_refinements(first, samples, tmp_path):
    header, _ = read_samples(first / "samples.parquet")
    changed = copy.deepcopy(samples)
    lost = changed[0]["problem_id"]
    for sample in changed:
        if sample["problem_id"] == lost:
            for key in ("correct_lenient", "correct_strict"):
                sample[key] = None
    skipped = next(s for s in changed if s["method"] == "selfref" and s["correct_lenient"] == 1.0)
    skipped |= {"skipped": True, "correct_lenient": 0.0, "text": ""}
    write_samples(tmp_path / "samples.parquet", changed, header)
    results = metrics_from_samples(tmp_path)
    values = results.problems["lenient"]["tiny/mix"]
    summary = summarise(results)["benchmarks"]["tiny/mix"]
    assert all(math.isnan(values.values[name][0]) for name in ("pass@1", "maj@3", "selfref@3", "refinement_gap"))
    assert summary["pass@1"]["n"] == summary["selfref@3"]["n"] == 59
    assert summary["fix_rate"]["n"] + summary["break_rate"]["n"] == pytest.approx(59)
    assert results.skipped["selfref"]["skipped"] == 1 and results.counts["unscored_samples"] == 11


def test_refinements_that_cannot_be_prompted_are_wrong_and_counted(run):
    folder = run("narrow", max_refinement_prompt_length=20, max_problems=20)
    summary = json.loads((folder / "eval.json").read_text())
    assert summary["skipped"]["selfref"]["skipped"] > 0
    assert summary["benchmarks"]["tiny/mix"]["selfref@3"]["n"] == 20


def test_a_run_that_could_ask_for_no_refinement_says_so_by_method(run, capsys):
    """Chains of the tiny world have more than the 12 tokens; a control without candidates does not fit either."""
    folder = run("unasked", dataset_name="tiny/chain", max_refinement_prompt_length=12, max_problems=10)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    methods = ("selfref", "selfref_none", "selfref_foreign")
    for method, line in zip(methods, warned, strict=True):
        assert line.startswith(
            f"warning: {method}: 20 of 20 samples were not requested and count as wrong: nothing fits"
        )
        assert "max_refinement_prompt_length=12" in line and "raise max_refinement_prompt_length" in line
    summary = json.loads((folder / "eval.json").read_text())
    assert summary["skipped"] == {method: {"skipped": 20, "samples": 20} for method in methods}
    assert summary["benchmarks"]["tiny/chain"]["selfref@3"]["value"] == 0.0


def test_skipped_samples_are_counted_by_method():
    made = [("direct", False), ("selfref", True), ("selfref", False), ("direct", False), ("select", True)]
    counts = skipped_of([{"method": method, "skipped": skipped} for method, skipped in made])
    assert counts == {"selfref": {"skipped": 1, "samples": 2}, "select": {"skipped": 1, "samples": 1}}


def test_figures_read_as_percent_with_their_interval():
    assert figure({"value": 0.63, "low": 0.612, "high": 0.6494}) == "63.0 [61.2, 64.9]"
    assert figure({"value": None, "low": None, "high": None}) == figure(None) == "-"


@pytest.mark.slow
@pytest.mark.vllm
def test_the_program_with_a_real_engine(tiny_model, tmp_path, monkeypatch):
    keys = EVALUATION | {"max_problems": 12, "model": tiny_model, "output_dir": tmp_path}
    run_recipe(monkeypatch, "eval", max_model_length=256, max_refinement_prompt_length=200, **keys)
    header, rows = read_samples(tmp_path / "samples.parquet")
    assert header["versions"]["vllm"] and len(rows) == 12 * 11
    assert {row["tokens"] > 0 for row in rows if not row["skipped"]} == {True}


def test_a_second_evaluation_in_a_folder_in_use_is_refused_with_the_same_settings_or_others(run, monkeypatch, capsys):
    """What the first leaves is still tied to the first's settings."""
    said = []

    def complete(engine, ids, place, plain=FixedEngine.complete):
        while len(said) < 2:
            said.append("")
            with pytest.raises(SystemExit):
                run("raced", refinement_temperature=[0.7, 0.1][len(said) - 1])
            said[-1] = capsys.readouterr().err
        return plain(engine, ids, place)

    monkeypatch.setattr(FixedEngine, "complete", complete)
    folder = run("raced", refinement_temperature=0.7)
    assert f"is in use by process {os.getpid()} on " in said[0] and "wait for it or end it" in said[0]
    assert "refinement_temperature was 0.7, is 0.1" in said[1] or "is in use by process" in said[1]
    settings = json.loads((folder / "shards" / "selfref" / "settings.json").read_text())
    assert settings["refinement_temperature"] == 0.7


def test_runs_with_other_problems_under_the_same_ids_are_not_paired(run, first, tmp_path, capsys):
    header, rows = read_samples(first / "samples.parquet")
    ids = list(dict.fromkeys(row["problem_id"] for row in rows))
    shifted = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    write_samples(
        tmp_path / "samples.parquet", [row | {"problem_id": shifted[row["problem_id"]]} for row in rows], header
    )
    with pytest.raises(ValueError, match=r"of tiny/mix is not the same problem in both runs"):
        compare(first, tmp_path)
    for own in ("true", "false"):
        with pytest.raises(SystemExit):
            run(f"shifted {own}", candidates_from=tmp_path / "samples.parquet", own_candidates=own)
        assert "is not the same problem in both runs" in capsys.readouterr().err


def test_a_further_method_of_the_base_leaves_the_runs_over_its_candidates_resumable(run):
    base = run("base")
    taken = {"candidates_from": base / "samples.parquet", "own_candidates": "false"}
    frozen = {"candidates_from": base / "samples.parquet", "seed": 5}
    before = [(run(name, **keys) / "eval.json").read_text() for name, keys in (("t", taken), ("f", frozen))]
    run("base", methods=["selfref", "selfref_none", "selfref_foreign", "select"])
    engines = FixedEngine.opened
    after = [(run(name, **keys) / "eval.json").read_text() for name, keys in (("t", taken), ("f", frozen))]
    assert [json.loads(text)["benchmarks"] for text in after] == [json.loads(text)["benchmarks"] for text in before]
    assert FixedEngine.opened == engines, "nothing was sampled anew"


def test_stored_texts_graded_anew_have_their_grades_again(first, samples):
    """Whatever has become of the stored grades; only what is right or wrong now and was not is counted."""
    again, changed = evaluation.regraded(samples, None)
    assert changed == 0 and [s["text"] for s in again] == [s["text"] for s in samples]
    for sample, new in zip(samples, again, strict=True):
        assert all(new[f"{field}_strict"] == sample[f"{field}_strict"] for field in ("answer", "correct"))
    damaged = [sample | {"correct_strict": 1.0 - sample["correct_strict"]} for sample in samples]
    restored, changed = evaluation.regraded(damaged, r"boxed\{1")
    assert changed == len(samples) and [s["correct_strict"] for s in restored] == [
        s["correct_strict"] for s in samples
    ]
    candidates = [s for s in restored if s["stage"] == "candidate"]
    assert all(s["verdict"] == ("boxed{1" in s["text"]) for s in candidates)


def test_a_selection_regraded_has_the_grade_of_its_candidate():
    """Its text names candidate 2, whose answer is wrong, though a boxed 2 is the gold answer."""
    row = {"benchmark": "b", "problem_id": "p", "gold": "2", "skipped": False}
    row |= {f"{name}_{grading}": None for name in ("answer", "correct", "class") for grading in ("lenient", "strict")}
    texts = [r"\boxed{2}", r"\boxed{3}"]
    samples = [row | {"stage": "candidate", "index": index, "text": text} for index, text in enumerate(texts)]
    samples += [row | {"stage": STAGES["select"], "index": 0, "text": r"\boxed{2}", "chosen": 1}]
    samples += [row | {"stage": STAGES["select"], "index": 1, "text": r"\boxed{7}", "chosen": None}]
    again, _ = evaluation.regraded(samples, None)
    assert [s["correct_strict"] for s in again] == [1.0, 0.0, 0.0, 0.0]
    assert [s["answer_lenient"] for s in again] == ["2", "3", "3", None]


def test_a_run_regraded_has_the_figures_of_before(first, tmp_path, capsys, monkeypatch):
    run_recipe(monkeypatch, "eval", from_samples=first, regrade="true", output_dir=tmp_path)
    assert "0 grades differ" in capsys.readouterr().out
    assert (tmp_path / "samples.parquet").is_file()
    old, new = (json.loads((folder / "eval.json").read_text())["benchmarks"] for folder in (first, tmp_path))
    assert new == old
