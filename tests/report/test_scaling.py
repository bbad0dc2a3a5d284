"""The scaling report of samples that are small enough to work every figure out by hand."""

import json
import random
from itertools import combinations
from math import comb

import pyarrow.parquet as pq
import pytest

from gsr_rl.refinement import metrics
from gsr_rl.report.html import write_report
from gsr_rl.report.problem_values import metrics_from_samples
from gsr_rl.report.samples import FIELDS, Problem, read_samples, write_samples
from gsr_rl.report.scaling import of_pool, of_tree, points_of, tree_sizes
from gsr_rl.report.tables import compare, summarise
from tests.support.made_samples import HEADER

# K = 2 of four candidates with the answers 1, 1, 2, 3, of which 1 is right; they take 100 tokens, 25 on average.
ABOUT = HEADER | {"k": 2, "num_samples": 4, "num_candidate_sets": 1, "num_problems": 1}
VOTES = {1: 1 / 2, 2: 1 / 2, 3: 2 / 3, 4: 1.0}


def row(problem: str, method: str, index: int, answer: int, tokens: int, prompt: int, **more) -> dict:
    sample = dict.fromkeys(FIELDS) | {
        "benchmark": "made",
        "problem_id": problem,
        "problem": f"{problem}?",
        "gold": "1",
        "method": method,
    }
    sample |= {"stage": "candidate" if method == "direct" else "refinement", "index": index, "text": str(answer)}
    sample |= {"tokens": tokens, "prompt_tokens": prompt, "finished": True, "skipped": False, "repeat": 0}
    for grading in ("lenient", "strict"):
        sample |= {f"answer_{grading}": str(answer), f"class_{grading}": answer}
        sample[f"correct_{grading}"] = float(answer == 1)
    return sample | {"copied": None if method == "direct" else False} | more


def made(problem: str = "a", right: int = 1) -> list[dict]:
    """The samples of a problem; where `right` is no 1, all that were right are wrong."""

    def add(method, index, answer, *more, **fields):
        return row(problem, method, index, right if answer == 1 else answer, *more, **fields)

    rows = [
        add("direct", 0, 1, 10, 5, score=3.0, verdict=True),
        add("direct", 1, 1, 20, 5, score=1.0, verdict=True),
        add("direct", 2, 2, 30, 5, score=2.0, verdict=False),
        add("direct", 3, 3, 40, 5, score=2.0, verdict=False),
        add("selfref", 0, 1, 12, 30, candidates=[1, 2]),
        add("flat", 0, 7, 8, 40, candidates=[3, 0, 1], pool=3),
    ]
    rows += [add("refine_and_vote", i, a, t, 31 + i, candidates=[0, i], pool=4)
             for i, (a, t) in enumerate([(1, 6), (1, 9), (2, 3)])]  # fmt: skip
    tree = [(1, 0, 1, 4, 20), (1, 1, 2, 5, 21), (2, 0, 1, 7, 22)]
    return rows + [add("tree", *fields, candidates=[0, 1], round=level, pool=4) for level, *fields in tree]


EXPECTED = {  # value; tokens, prompt tokens, those of different prompts
    ("vote", 1, 0): (VOTES[1], 25, 5, 5),
    ("vote", 2, 0): (VOTES[2], 50, 10, 5),
    ("vote", 4, 0): (VOTES[4], 100, 20, 5),
    # the first has the highest score, the third and the fourth come next
    ("best of n", 1, 0): (1 / 2, 25, 5, 5),
    ("best of n", 2, 0): (3 / 6, 50, 10, 5),
    ("best of n", 4, 0): (1.0, 100, 20, 5),
    # of the pairs only that of the third and the fourth has no right one that says its check held
    ("verdict", 1, 0): (1 / 2, 25, 5, 5),
    ("verdict", 2, 0): (5 / 6, 50, 10, 5),
    ("verdict", 4, 0): (1.0, 100, 20, 5),
    ("flat", 2, 1): (1.0, 20 + 30 + 12, 2 * 5 + 30, 5 + 30),
    ("flat", 3, 1): (0.0, 40 + 10 + 20 + 8, 3 * 5 + 40, 5 + 40),
    ("tree", 4, 3): (1.0, 100 + 4 + 5 + 7, 20 + 20 + 21 + 22, 5 + 20 + 21 + 22),
    # one of three refinements; two, of which a pair of three agrees on the right answer and two are tied; all three
    ("refine and vote", 4, 1): (2 / 3, 100 + 6, 20 + 32, 5 + 32),
    ("refine and vote", 4, 2): (2 / 3, 100 + 12, 20 + 64, 5 + 64),
    ("refine and vote", 4, 3): (1.0, 100 + 18, 20 + 96, 5 + 96),
}


def test_every_point_is_what_it_comes_to_by_hand():
    points = points_of(Problem("a", made(), ABOUT, "lenient"))
    assert set(points) == set(EXPECTED)
    for key, (value, *tokens) in EXPECTED.items():
        spent = points[key].spent
        assert points[key].value == pytest.approx(value), key
        assert [spent.tokens, spent.prompt_tokens, spent.distinct_prompt_tokens] == pytest.approx(tokens), key
    assert points["flat", 2, 1].maj == pytest.approx(0.52 * VOTES[2] + 0.48 * VOTES[3]), (
        "62 tokens are 2.48 candidates"
    )
    assert (points["flat", 2, 1].capped, points["refine and vote", 4, 1].capped) == (0.0, 1.0)
    assert points["refine and vote", 4, 1].maj == VOTES[4], "106 tokens are more than all candidates take"


def write(folder, rows: list[dict], **header):
    folder.mkdir(exist_ok=True)
    write_samples(folder / "samples.parquet", rows, ABOUT | header)
    return summarise(metrics_from_samples(folder))


def test_figures_are_means_over_problems_and_do_not_depend_on_the_order_of_samples(tmp_path):
    rows = made("a") + made("b", right=8)  # of b nothing is right
    summary = write(tmp_path / "one", rows)
    shuffled = random.Random(0).sample(rows[: len(rows) // 2], len(rows) // 2) + rows[len(rows) // 2 :]
    assert write(tmp_path / "two", shuffled) == summary
    table = {(r["method"], r["candidates"], r["refinements"]): r for r in summary["scaling"]["made"]}
    for key, (value, tokens, *_) in EXPECTED.items():
        assert table[key]["value"] == pytest.approx(value / 2, abs=1e-6) and table[key]["tokens"] == tokens
        assert 0 <= table[key]["low"] <= table[key]["value"] <= table[key]["high"] <= 1
    assert table["tree", 4, 3]["difference"]["value"] == pytest.approx((1.0 - VOTES[4]) / 2)
    assert table["flat", 2, 1]["difference"]["value"] == pytest.approx((1.0 - 0.58) / 2, abs=1e-6)
    assert "difference" not in table["vote", 4, 0] and table["refine and vote", 4, 3]["capped"] == 1.0
    values = summary["benchmarks"]["made"]
    assert [values[m]["value"] for m in ("refine_and_vote@4", "tree@4", "selfref@3")] == [0.5, 0.5, 0.0]
    assert values["maj@tokens@4"]["value"] == VOTES[4] / 2 and values["verdict@2"]["value"] == 0.5
    assert summary["tokens"]["made"]["refine_and_vote@4"] == 118
    assert {"refine_and_vote@4-maj@tokens@4", "refine_and_vote@4-selfref@2", "selfref@3-maj@2"} <= set(
        summary["differences"]["made"]
    )
    row = summary["by_num_correct"]["made"]["1"]
    assert (row["n"], row["unseen"], row["copied"], row["novel"]) == (1, 0.5, 0.0, 0.0)


def test_a_run_without_these_methods_or_from_before_them_has_the_figures_of_then(tmp_path):
    plain = [sample for sample in made() if sample["method"] in ("direct", "selfref")]
    new = write(tmp_path / "new", plain)
    table = pq.read_table(tmp_path / "new" / "samples.parquet")
    (tmp_path / "old").mkdir()
    pq.write_table(table.drop_columns(["pool", "verdict"]), tmp_path / "old" / "samples.parquet")
    old = summarise(metrics_from_samples(tmp_path / "old"))
    assert new["scaling"] == old["scaling"] == {}
    values = new["benchmarks"]["made"]
    assert old["benchmarks"]["made"] == {name: value for name, value in values.items() if name != "verdict@2"}
    assert old["by_num_correct"] == new["by_num_correct"]
    write_report(tmp_path / "old", old)
    assert not (tmp_path / "old" / "scaling.json").exists()
    assert compare(tmp_path / "old", tmp_path / "new")["made"]["selfref@2"]["value"] == 0.0


def test_the_report_holds_the_table_its_json_and_a_plot(tmp_path):
    summary = write(tmp_path, [*made("a"), *made("b", right=8), *made("c")], pools={"4": 3})
    write_report(tmp_path, summary, read_samples(tmp_path / "samples.parquet")[1])
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert content["scaling"] == summary["scaling"] and (content["k"], content["pools"]) == (2, {"4": 3})
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    for words in ("refine and vote", "of different prompts"):
        assert words in text and words in page
    assert page.count("<img") == 5 and "made: accuracy against the tokens spent, more candidates" in page


def test_a_vote_over_some_refinements_is_the_mean_over_all_groups_of_them():
    rng = random.Random(0)
    for _ in range(20):
        answers = [rng.choice([1, 1, 2, 3, 4]) for _ in range(7)]
        pool = [row("a", "refine_and_vote", i, a, 9, 9, pool=3) for i, a in enumerate(answers)]
        rows = [*made(), *pool]
        problem = Problem("a", rows, ABOUT, "lenient")
        for number in range(1, 8):
            groups = [metrics.maj_correct(g, [float(a == 1) for a in g]) for g in combinations(answers, number)]
            assert of_pool(problem, 3, number).value == pytest.approx(sum(groups) / len(groups))


def test_the_best_of_some_is_the_mean_over_all_groups_of_them():
    scores, correct = [1.0, None, 3.0, 3.0, 2.0, None], [1.0, 1.0, 0.0, 1.0, 0.0, None]
    places = [place for place, value in enumerate(correct) if value is not None]
    for number in range(1, 6):
        groups = [
            metrics.best_of([scores[i] for i in g], [correct[i] for i in g]) for g in combinations(places, number)
        ]
        assert len(groups) == comb(5, number)
        assert metrics.best_at_k(scores, correct, number) == pytest.approx(sum(groups) / len(groups))


def test_a_tree_holds_smaller_ones_whose_mean_is_taken_where_they_are_whole():
    """Nine candidates of K = 2: five refinements, three, two, one; those of four are over 1-4 and 5-8."""
    levels = {1: [1, 2, 2, 1, 2], 2: [1, 2, 1], 3: [2, 1], 4: [1]}
    rows = [row("a", "direct", i, 1, 10 * (i < 4) + 1, 5) for i in range(9)]
    for level, answers in levels.items():
        fields = {"round": level, "pool": 9}
        rows += [row("a", "tree", i, answer, 100 * level + i, 7, **fields) for i, answer in enumerate(answers)]
    problem = Problem("a", rows, ABOUT | {"num_samples": 9}, "lenient")
    assert tree_sizes(problem) == {2: 4, 3: 8, 4: 9}
    four, eight, nine = (of_tree(problem, n) for n in (4, 8, 9))
    assert (four.value, eight.value, nine.value) == (0.5, 0.0, 1.0)
    first, second = 44 + (100 + 101) + 200, 4 + (102 + 103) + 201
    assert four.spent.tokens == (first + second) / 2 and four.spent.prompt_tokens == 4 * 5 + 3 * 7
    assert eight.spent.tokens == first + second + 300 and eight.spent.distinct_prompt_tokens == 5 + 7 * 7
    assert nine.spent.tokens == 49 + sum(100 * lv + i for lv, answers in levels.items() for i in range(len(answers)))
    keys = [key for key in points_of(problem) if key[0] == "tree"]
    assert keys == [("tree", 4, 3), ("tree", 8, 7), ("tree", 9, 11)]
