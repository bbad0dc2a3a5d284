"""README says what results/ holds."""

import importlib
import json
import re
import runpy
import sys
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import yaml

from gsr_rl.evaluation.evaluate import regraded
from gsr_rl.refinement.metrics import share
from gsr_rl.report.intervals import estimate_over_seeds
from gsr_rl.report.markdown import comparison_markdown, figure, report_markdown
from gsr_rl.report.problem_values import SIZED, metrics_from_samples
from gsr_rl.report.samples import read_samples
from gsr_rl.report.tables import comparison, summarise
from tests.support.paths import ROOT

TINY = ROOT / "recipes" / "tiny"
SETS, MODELS = ("chain_sum", "knights"), ("base", "sft", "grpo")


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(TINY))
    try:
        yield runpy.run_path(str(TINY / "paper_tables.py"))
    finally:
        sys.path.remove(str(TINY))


def test_readmes_results_are_made_from_the_figures(tables, monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    config = yaml.safe_load((TINY / "arms.yaml").read_text())["tables"]
    readme = importlib.import_module("paper_readme")
    text, lines = (ROOT / "README.md").read_text(), readme.block(config, ROOT / "results" / "paper")
    assert readme.not_shown(config, ROOT / "results" / "paper") is None
    assert readme.with_block(text, lines) == text, "run `python recipes/tiny/paper.py --report`"
    assert len(lines.splitlines()) == 7 and lines.count("*Against it:*") == 3
    assert readme.with_block(text, lines + " changed") != text


def test_the_tables_are_made_from_the_results(tables):
    config = yaml.safe_load((TINY / "arms.yaml").read_text())["tables"]
    made = tables["all_tables"](config, ROOT / "results" / "paper")
    assert (ROOT / "results" / "paper" / "tables.md").read_text() == made, (
        "run `python recipes/tiny/paper.py --report`"
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def test_the_figures_of_smollm2_are_those_of_its_reports():
    folder, shown = ROOT / "results" / "smollm2", set()
    columns = ["pass@1", "maj@4", "selfref@4", "pass@4", "refinement_gap", "selfref_frozen", "selfref_foreign"]
    for line in (folder / "README.md").read_text().splitlines():
        if found := re.match(r"\| \[[^\]]*\]\((\w+\.md)\) \|", line):
            report = (folder / found[1]).read_text().splitlines()
            figures = {cells(row)[0]: cells(row)[1] for row in reversed(report) if row.startswith("| ")}
            for column, cell in zip([*columns, "selfref_none"], cells(line)[1:], strict=True):
                assert figures.get(column, "") == cell, (found[1], column)
            shown.add(found[1])
    assert {f"{set_}_{model}.md" for set_ in (*SETS, "gsm8k") for model in MODELS} == shown


ESTIMATE = re.compile(r"-?\d+\.\d \[-?\d+\.\d, -?\d+\.\d\]")


@pytest.mark.parametrize(("page", "sources"), [("", ["paper/*.md", "demo/*.json"]), ("smollm2", ["smollm2/*_*.md"])])
def test_every_figure_with_an_interval_stands_in_the_file_that_it_is_from(page, sources):
    """Lines with a dagger tell what no log was kept of."""
    results, known = ROOT / "results", set()
    for path in (path for pattern in sources for path in results.glob(pattern)):
        if path.suffix == ".md":
            known |= set(ESTIMATE.findall(path.read_text()))
        else:
            summary = json.loads(path.read_text())
            known |= {figure(gap) for gap in (*summary["claims"].values(), *summary["within"]["grpo"].values())}
    lines = (results / page / "README.md").read_text().splitlines()
    shown = [estimate for line in lines if "†" not in line for estimate in ESTIMATE.findall(line)]
    assert len(shown) > 50 and not set(shown) - known, f"not in {sources}: {sorted(set(shown) - known)}"


def test_the_seeds_of_each_arm_are_those_that_are_stored():
    stored = defaultdict(list)
    for path in sorted((ROOT / "results" / "paper").glob("seed*/*.json")):
        stored[path.stem].append(path.parent.name.removeprefix("seed"))
    table = (ROOT / "results" / "README.md").read_text().split("| arms |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [(re.findall(r"`(\w+)`", cells(line)[0]), cells(line)[-1].split(", ")) for line in table]
    named = {arm for arms, _ in rows for arm in arms}
    for arms, seeds in rows[:-1]:
        assert {arm: stored[arm] for arm in arms} == dict.fromkeys(arms, seeds)
    others = {arm: seeds for arm, seeds in stored.items() if arm not in named or arm in rows[-1][0]}
    assert others == dict.fromkeys(others, rows[-1][1])


@pytest.mark.parametrize("name", [f"{set_}_{model}" for set_ in SETS for model in MODELS])
def test_the_reports_of_smollm2_are_made_from_its_samples(name):
    folder = ROOT / "results" / "smollm2"
    results = metrics_from_samples(folder / f"{name}.parquet")
    assert (folder / f"{name}.md").read_text() == report_markdown(summarise(results))
    if not name.endswith("_base"):
        before = name.replace("_sft", "_base").replace("_grpo", "_sft")
        text = comparison_markdown(comparison(results, folder / f"{before}.parquet"))
        assert (folder / f"{name}_compare.md").read_text() == text


@pytest.mark.parametrize(
    ("bound", "low", "high", "word"),
    [
        ({}, 0.01, 0.03, "reproduced"),
        ({}, -0.01, 0.05, "not reproduced"),
        ({}, -0.05, -0.01, "opposite"),
        ({"at_least": -2}, -0.01, 0.05, "reproduced"),
        ({"at_most": 1}, -0.05, 0.01, "reproduced"),
        ({"at_most": 1}, 0.02, 0.05, "opposite"),
    ],
)
def test_a_verdict_says_on_which_side_of_the_bound_the_interval_lies(tables, bound, low, high, word):
    assert tables["verdict"](bound, {"low": low, "high": high}) == word


def test_a_verdict_that_the_seed_of_the_bootstrap_decides_is_not_settled(tables):
    """Differences moved so that the lower end of the first bootstrap is a hundredth of a point above the bound."""
    values = np.random.default_rng(5).normal(0.1, 0.2, 400)
    low = estimate_over_seeds([share(values)], signed=True)["low"]

    def told(above: float, claim: dict):
        estimate, word = tables["settled"](claim, [share(values + above - low)])
        assert estimate["low"] == pytest.approx(above, abs=2e-6)
        return word

    assert told(0.0001, {}) == told(-0.0001, {}) == "not settled"
    assert told(0.0101, {"at_least": 1}) == "not settled" and told(0.0101, {}) == "reproduced"
    assert told(-0.01, {}) == "not reproduced" and told(0.0001, {"at_least": -1}) == "reproduced"
    two = [share(values + 0.0001 - low)] * 2  # over seeds that are alike
    assert tables["settled"]({}, two)[1] == "not settled"


def test_a_share_of_sets_has_an_interval_over_seeds_and_sets(tables):
    share = tables["paper_right"].share_of_sets
    one = share([{"n": 100, "selfref": 0.3}])
    assert one["value"] == 0.3 and (round(one["low"], 2), round(one["high"], 2)) == (0.22, 0.4)
    pooled = share([{"n": 300, "selfref": 0.1}, {"n": 100, "selfref": 0.5}])  # seeds differ more than sets do
    assert pooled["value"] == pytest.approx(0.2) and pooled["low"] < 0.1 and pooled["high"] > 0.5
    many = share([{"n": 1000, "selfref": 0.3}] * 3)
    assert 0.025 < many["high"] - many["low"] < 0.036  # 2 * 1.96 * sqrt(0.21 / 3000) is 0.033
    assert share([{"n": 7, "selfref": 1.0}])["low"] == pytest.approx(0.646, abs=1e-3)  # Wilson's


def test_unseen_candidates_copies_and_novel_answers_are_shown_where_they_are_stored(tables):
    from types import SimpleNamespace

    old = {"n": 30, "selfref": 0.5, "maj": 0.5}
    new = [old | {"n": n, "unseen": share, "copied": 0.5, "novel": None} for n, share in ((30, 0.1), (10, 0.5))]
    arm = lambda *rows: SimpleNamespace(settings=[{"by_num_correct": {"made": {"1": row}}} for row in rows])  # noqa: E731
    first = tables["paper_right"].table({"old": arm(old)})
    assert "unseen" not in first
    header, _, *lines = tables["paper_right"].table({"old": arm(old), "new": arm(*new)}).splitlines()
    assert cells(header)[-3:] == ["unseen", "copied", "novel"]
    assert [cells(line)[-3:] for line in lines] == [["-", "-", "-"], ["20.0", "50.0", "-"]]


def test_each_seeds_refinements_stand_against_candidates_that_were_not_in_their_sets(tables):
    from types import SimpleNamespace

    over = {"value": 0.3, "low": 0.25, "high": 0.35}
    first = {"0": {"n": 9, "selfref": 0.5, "maj": 0.0, "unseen": 0.2, "over_unseen": over}}
    second = {"1": {"n": 8, "selfref": 0.6, "maj": 0.5, "unseen": None, "over_unseen": None}}
    arm = SimpleNamespace(seeds=[0, 7], settings=[{"by_num_correct": {"made": rows}} for rows in (first, second)])
    header, _, *lines = tables["paper_right"].table({"new": arm}).splitlines()
    assert cells(header)[-2:] == [f"selfref - unseen (over problems), seed {seed}" for seed in (0, 7)]
    assert [cells(line)[-2:] for line in lines] == [["50.0 - 20.0 = 30.0 [25.0, 35.0]", "-"], ["-", "-"]]


def test_every_arm_starts_from_another_and_every_claim_names_arms_of_its_table(tables):
    config = yaml.safe_load((TINY / "arms.yaml").read_text())
    arms, rows = config["arms"], config["rows"]
    columns = importlib.import_module("paper_arms").COLUMNS
    is_stored = lambda column: column in columns or SIZED.fullmatch(column)  # noqa: E731
    assert not set(arms) & set(rows), "both are names of steps"
    for arm in arms.values():
        assert ("model" in arm) or arm.get("program") == "base" or arm["from"] in arms
        assert (
            arm.get("program") in (None, "base", "teacher", "sft", "grpo", "served")
            and arm.get("rows", "distill") in rows
        )
    assert all(spec.get("of", "distill") in rows and spec.get("student", "base") in arms for spec in rows.values())
    for table in config["tables"].values():
        assert set(table["arms"]) <= set(arms) and all(map(is_stored, table.get("columns", [])))
        for claim in table["claims"]:
            for arm, column in (claim["new"], claim["old"]):
                assert arm in table["arms"] and is_stored(column)


@pytest.mark.parametrize(
    ("claim", "interval", "word"),
    [
        ({}, (0.01, 0.03), "reproduced"),
        ({}, (-0.01, 0.03), "not reproduced"),
        ({}, (-0.03, -0.01), "opposite"),
        ({"at_least": -1}, (-0.009, 0.03), "reproduced"),
        ({"at_most": 1}, (-0.02, 0.01), "reproduced"),
        ({"at_most": 1}, (0.0, 0.02), "not reproduced"),
        ({"at_most": 1}, (0.011, 0.02), "opposite"),
    ],
)
def test_a_claim_is_told_by_the_side_of_its_bound_that_the_interval_lies_on(tables, claim, interval, word):
    assert tables["verdict"](claim, dict(zip(("low", "high"), interval, strict=True))) == word


def test_steps_that_stand_in_a_candidate_are_told_from_others():
    known = runpy.run_path(str(TINY / "select_rows.py"))["only_known_steps"]
    chains = ["47+5=52*3=56\\boxed{56}", "47+5=53*3=59\\boxed{59}"]
    row = lambda text, candidates: {"completion": [{"content": text}], "candidates": candidates}  # noqa: E731
    assert known(row("47+5=52*3=56\\boxed{56}", chains[:1])) and known(row(chains[1], chains))
    assert not known(row("47+5=52*3=57\\boxed{57}", chains))
    assert known(row("GABBDok\\boxed{G}", ["GABBDok\\boxed{G}"])) and not known(row("HABBDok\\boxed{H}", ["GABBDok"]))


@pytest.mark.parametrize("arm", ["sft_k", "sft_k_most", "grpo_k", "grpo_k_pools"])
def test_a_part_of_the_stored_texts_graded_anew_has_its_grades_and_its_figures(arm):
    """Of seed 0: 40 problems of its samples, against the figures by problem."""
    _, samples = read_samples(ROOT / "results" / "paper" / "samples" / f"{arm}.parquet")
    problems = list(dict.fromkeys(sample["problem_id"] for sample in samples))[:: len(samples) // 9 // 40 or 1][:40]
    part, changed = regraded([sample for sample in samples if sample["problem_id"] in set(problems)], None)
    assert changed == 0
    figures = pd.read_parquet(ROOT / "results" / "paper" / "seed0" / f"{arm}.parquet").set_index("problem_id")
    for problem in problems:
        right = [s["correct_lenient"] for s in part if s["problem_id"] == problem and s["stage"] == "candidate"]
        assert sum(right) / len(right) == pytest.approx(figures.loc[problem, "pass@1"], abs=1e-6)
        mine = [s["correct_lenient"] for s in part if s["problem_id"] == problem and s["method"] == "selfref"]
        assert sum(mine) / len(mine) == pytest.approx(figures.loc[problem, "selfref@K"], abs=1e-6)
