"""From units to SFT rows: the paper's balance, shares, direct solutions, duplicates; and bad SFT rows."""

import json
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from gsr_rl.data import tiny_world
from gsr_rl.distillation.rows import balanced, make_rows, training_text, with_shares
from gsr_rl.training.sft_trainer import load_sft_rows
from tests.support.distilled import config, run, units
from tests.support.distilled import rows as problems


@pytest.fixture(scope="module")
def rows():
    return problems()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_the_papers_balance_keeps_all_right_ones_unless_all_are_right():
    rng = random.Random(0)
    assert balanced(list(range(9)), 10, 4, rng) == list(range(9))
    kept = balanced(list(range(10)), 10, 4, rng)
    assert len(kept) == 4 and set(kept) < set(range(10)) and kept == sorted(kept)
    assert balanced([0, 1], 2, 4, rng) == [0, 1] and balanced([], 10, 4, rng) == []


@pytest.mark.parametrize("source", ["student", "student_right", "teacher", "gold", "none"])
def test_direct_solutions_come_from_their_source_in_the_stated_ratio(rows, whole, source):
    candidates, refinements = units(whole)
    gold = [row | {"solution": tiny_world.solve(row)} for row in rows]
    one = config(whole.folder, direct_source=source, direct_ratio=0.5, keep_duplicate_solutions=True)
    found, counts = make_rows(gold, candidates, refinements, one)
    direct = [row for row in found if row["stage"] == "candidate"]
    if source == "none":
        assert direct == []
        return
    assert len(direct) == round(0.5 * counts["funnel"]["refinement rows"])
    right = [tiny_world.boxed(row["completion"][0]["content"]) == row["answer"] for row in direct]
    assert all(right) == (source != "student"), "a student's replay holds its honest failures"
    texts = defaultdict(set)
    for identity, unit in (candidates if source.startswith("student") else refinements).items():
        texts[identity] = {s["text"] for s in unit["samples"] if s.get("stage") != "refinement" and s["finished"]}
    if source == "gold":
        texts = {row["id"]: {tiny_world.solve(row)} for row in rows}
    assert all(row["completion"][0]["content"] in texts[row["problem_id"]] for row in direct)
    spread = Counter(row["problem_id"] for row in direct)
    assert max(spread.values()) - min(spread.values()) <= 1 or source != "student", "one of each before a second"


def test_a_row_of_the_store_can_be_wrong_without_becoming_a_training_row(rows, whole):
    candidates, refinements = units(whole)
    broken = json.loads(json.dumps(dict(refinements)))
    for unit in broken.values():
        for sample in unit["samples"]:
            sample["correct"] = None
    found, counts = make_rows(rows, candidates, broken, config(whole.folder, direct_source="teacher"))
    assert list(found) == [] and counts["funnel"]["refinements right"] == 0


def test_thinking_is_kept_whole_or_left_out():
    assert training_text("so</think>\n4", True) == "<think>\nso</think>\n4"
    assert training_text("<think>so</think>4", True) == "<think>so</think>4"
    assert training_text("so</think>\n4", False) == "4"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi", "completion": [{"role": "assistant", "content": "x"}]}, "row 1: `prompt` must be a list"),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": [{"content": ""}]}, "row 1: `completion` must"),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": [{"content": "x"}]}, "row 1: stage=None"),
    ],
)
def test_a_bad_sft_row_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    values = {"dataset_name": path, "stages": ["candidate", "refinement"], "max_rows": None, "seed": 0}
    values |= {"num_candidates": 3, "min_num_candidates": None}
    with pytest.raises(ValueError, match=message):
        load_sft_rows(SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("shown", "stated", "fix"),
    [
        ([4, 4], (4, None), None),
        ([1, 8], (8, 1), None),
        ([2, 7], (8, 1), None),
        ([3, 4], (4, None), None),  # an unfinished candidate is not shown
        ([8, 8], (4, None), "show K = 8, but num_candidates=4: set num_candidates to 8"),
        ([1, 8], (4, None), "show K = 1 to 8, but num_candidates=4: set num_candidates to 8, and min_num_candidates"),
        ([None, None], (4, None), None),
    ],
)
def test_rows_show_no_more_candidates_than_the_models_settings_will_say(tmp_path, shown, stated, fix):
    row = {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]}
    found = [row | {"stage": "refinement", "candidates": number and ["c"] * number} for number in shown]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*found, row | {"stage": "candidate"}]))
    values = {"dataset_name": path, "stages": ["candidate", "refinement"], "max_rows": None, "seed": 0}
    values |= {"num_candidates": stated[0], "min_num_candidates": stated[1]}
    if fix is None:
        assert len(load_sft_rows(SimpleNamespace(**values))) == 3
        return
    with pytest.raises(ValueError, match=fix):
        load_sft_rows(SimpleNamespace(**values))


def test_rows_are_in_the_stated_shares_of_right_candidates(rows, whole):
    candidates, refinements = units(whole)
    shares = {0: 0.25, 1: 0.25, 2: 0.5}
    found, counts = make_rows(rows, candidates, refinements, config(whole.folder, num_correct_shares=shares))
    by_nc = Counter(row["num_correct"] for row in found if row["stage"] == "refinement")
    whole_count = sum(by_nc.values())
    assert set(by_nc) == {0, 1, 2} and whole_count > 8
    assert all(abs(by_nc[nc] - share * whole_count) <= 1 for nc, share in shares.items())
    left_out = counts["funnel"]["refinements left out by num_correct_shares"]
    assert left_out == whole.counts["funnel"]["refinement rows"] - whole_count > 0
    assert {nc: one["kept"] for nc, one in counts["by_num_correct"].items() if one["kept"]} == {
        str(nc): count for nc, count in by_nc.items()
    }


def test_shares_use_as_many_rows_as_they_allow():
    rng = random.Random(0)
    picks = {0: [("r", i) for i in range(10)], 1: [("r", 100 + i) for i in range(40)], 3: [("r", 200)]}
    kept = with_shares(picks, {0: 0.5, 1: 0.5}, rng)
    assert sum(pick in picks[0] for pick in kept) == sum(pick in picks[1] for pick in kept) == 10
    kept = with_shares(picks, {"0": 0.2, "1": 0.8}, rng)
    assert sum(pick in picks[0] for pick in kept) == 10 and len(kept) == 50
    kept = with_shares(picks, {0: 0.2, 1: 0.3, 2: 0.5}, rng)  # of 2 there is none: its share goes to the others
    assert sum(pick in picks[0] for pick in kept) == 10 and len(kept) == 25
    assert with_shares(picks, {4: 1.0}, rng) == []


def test_a_refinement_that_says_the_same_twice_is_one_row(rows, whole):
    candidates, refinements = units(whole)
    doubled = {}
    for identity, unit in refinements.items():
        again = [sample | {} for sample in unit["samples"] if sample["stage"] == "refinement"]
        doubled[identity] = unit | {"samples": unit["samples"] + again}
    one = config(whole.folder, max_if_all_right=100)
    found, counts = make_rows(rows, candidates, doubled, one)
    single, before = make_rows(rows, candidates, refinements, one)
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, single))
    extra = counts["funnel"]["duplicate refinements"] - before["funnel"]["duplicate refinements"]
    assert extra == before["funnel"]["refinements right"]


THOUGHTS = ["<think>a</think>so 4", "<think>b</think>so 4", "so 4", "so 4", "", "<think>c</think>"]


def _of_one_problem(tmp_path, texts: list[str], **more):
    """Rows and funnel of a problem whose candidates and refinements are these texts, all of them right."""
    samples = [{"text": text, "tokens": 1, "finished": True, "correct": 1.0, "class": 0} for text in texts]
    group = {"samples": samples, "requests": 1, "prompt_tokens": 1}
    one = {"prompt": [{"role": "user", "content": "q"}], "candidates": ["a"], "num_correct": 1, "policy": "paper"}
    refined = [sample | {"stage": "refinement", "set": 0} for sample in samples]
    unit = group | {"samples": refined, "sets": [one | {"chosen": [0], "cut": 0, "prompt_tokens": 1}], "dropped": 0}
    settings = config(tmp_path, max_if_all_right=100, direct_ratio=10.0, **more)
    return make_rows([problems(1)[0] | {"id": "p"}], {"p": group}, {"p": unit}, settings)


@pytest.mark.parametrize(
    ("source", "keep", "direct"),
    [("student", False, 1), ("student", True, 4), ("student_right", True, 1), ("student_right", False, 1)],
)
def test_rows_that_train_on_the_same_are_one_and_on_nothing_none(tmp_path, source, keep, direct):
    more = {"direct_source": source, "keep_duplicate_solutions": keep, "keep_thinking": False}
    found, counts = _of_one_problem(tmp_path, THOUGHTS, **more)
    assert Counter(row["stage"] for row in found) == {"refinement": 1, "candidate": direct}
    assert {row["completion"][0]["content"] for row in found} == {"so 4"}
    funnel = counts["funnel"]
    assert funnel["duplicate refinements"] == 3 and funnel["refinements without a text to train on"] == 2
    assert funnel["direct solutions without a text or like another"] == len(THOUGHTS) - direct


def test_with_thinking_rows_that_think_otherwise_differ_and_sft_reads_them_all(tmp_path):
    found, _ = _of_one_problem(tmp_path, THOUGHTS, direct_source="student")
    assert Counter(row["stage"] for row in found) == {"refinement": 4, "candidate": 4}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    values = {"dataset_name": path, "stages": ["candidate", "refinement"], "max_rows": None, "seed": 0}
    values |= {"num_candidates": 1, "min_num_candidates": None}
    assert len(load_sft_rows(SimpleNamespace(**values))) == 8


@pytest.mark.parametrize("keep", [False, True])
def test_direct_solutions_are_of_problems_with_a_refinement_row_first(rows, whole, keep):
    candidates, refinements = units(whole)
    few = {row["id"] for row in rows[::3]}
    refinements = {i: unit if i in few else unit | {"samples": []} for i, unit in refinements.items()}
    more = {"direct_source": "student", "keep_duplicate_solutions": keep}
    for ratio in (0.5, 10.0):
        found, _ = make_rows(rows, candidates, refinements, config(whole.folder, direct_ratio=ratio, **more))
        refined = {row["problem_id"] for row in found if row["stage"] == "refinement"}
        solved = {row["problem_id"] for row in found if row["stage"] == "candidate"}
        assert refined and (solved <= refined) is (ratio < 1 and not keep)
    assert solved == {row["id"] for row in rows}, "the others come after them"


def test_a_slice_of_rows_is_a_list_and_the_same_rows(whole):
    assert whole.rows[:5] == [whole.rows[i] for i in range(5)] and whole.rows[-1] == list(whole.rows)[-1]


def _unit(correct, classes):
    samples = [{"text": f"c{i}", "tokens": 1, "finished": True, "correct": c, "class": k}
               for i, (c, k) in enumerate(zip(correct, classes, strict=True))]  # fmt: skip
    return {"unit": "p", "samples": samples, "requests": 1, "prompt_tokens": 5}


def test_fixed_and_broken_are_measured_against_the_majority_of_the_set(rows, whole):
    # Three candidates: two wrong ones agree (the majority is wrong), then two right ones (it is right).
    row = rows[0]
    group = _unit([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    sets = [
        {"chosen": chosen, "policy": "uniform", "candidates": [f"c{i}" for i in chosen], "cut": 0, "prompt_tokens": 9,
         "prompt": [{"role": "user", "content": str(chosen)}], "num_correct": nc}
        for chosen, nc in (([0, 1, 2], 1), ([1, 2, 3], 2))
    ]  # fmt: skip
    samples = [
        {
            "text": f"r{place}{i}",
            "tokens": 2,
            "finished": True,
            "correct": correct,
            "stage": "refinement",
            "set": place,
        }
        for place, graded in enumerate(([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]))
        for i, correct in enumerate(graded)
    ]
    unit = {"unit": "p", "samples": samples, "sets": sets, "dropped": 0, "requests": 2, "prompt_tokens": 18}
    one = config(whole.folder, direct_source="none")
    _, counts = make_rows([row], {row["id"]: group}, {row["id"]: unit}, one)
    low, high = counts["by_num_correct"]["1"], counts["by_num_correct"]["2"]
    assert (low["sampled"], low["majority"], low["fixed"], low["broken"]) == (4, 0, 1, 0)
    assert (high["sampled"], high["majority"], high["fixed"], high["broken"]) == (4, 4, 0, 1)
