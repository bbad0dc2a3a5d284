"""Distillation: which rows are kept, in which format, and that no kill loses or doubles a unit."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from fixed_engine import FixedEngine, run_recipe

from gsr_rl import tiny_world
from gsr_rl.distill import distill, open_store
from gsr_rl.sft_rows import balanced, load_sft_rows, make_rows, training_text
from gsr_rl.shards import ShardStore


def problem_config(**more):
    from gsr_rl.configs import ProblemConfig

    return ProblemConfig(dataset_name="tiny/mix", dataset_split="sft", max_problems=30, **more)


def config(folder, **more):
    from gsr_rl.configs import DistillConfig

    (folder / "model").mkdir(exist_ok=True)
    values = {
        "student_model": str(folder / "model"),
        "teacher_model": str(folder),
        "output_dir": str(folder / "run"),
        "prompt_template": "tiny",
        "num_candidates": 3,
        "num_generations": 6,
        "num_candidate_sets": 2,
        "refinements_per_set": 3,
        "max_completion_length": 40,
        "problems_per_chunk": 4,
    }
    return DistillConfig(**(values | more))


@pytest.fixture(scope="module")
def rows():
    return tiny_world.generate("mix", "sft", 30, 0)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """An uninterrupted run: folder, config, SFT rows, counts."""
    folder = tmp_path_factory.mktemp("whole")
    one = config(folder)
    sft_rows, counts = distill(rows, problem_config(), one, open_engine=FixedEngine)
    return SimpleNamespace(folder=folder, config=one, rows=sft_rows, counts=counts)


def units(whole):
    store = ShardStore.__new__(ShardStore)
    store.folder = whole.folder / "run" / "shards"
    return store.load("candidates"), store.load("refinements")


def test_every_refinement_row_is_right_and_shows_its_candidates(rows, whole):
    answers = {row["id"]: row["answer"] for row in rows}
    problems = {row["id"]: row["problem"] for row in rows}
    refine = [row for row in whole.rows if row["stage"] == "refinement"]
    assert len(refine) == whole.counts["funnel"]["refinement rows"] > 20
    for row in refine:
        assert tiny_world.boxed(row["completion"][0]["content"]) == answers[row["problem_id"]] == row["answer"]
        shown = "".join(f"\n#{text}" for text in row["candidates"])
        assert row["prompt"] == [{"role": "user", "content": f"refine {problems[row['problem_id']]}{shown}\n>"}]
        assert row["num_correct"] == sum(tiny_world.boxed(text) == row["answer"] for text in row["candidates"])
        assert row["source"] == whole.config.teacher_model and row["completion"][0]["role"] == "assistant"


def test_rows_have_the_stated_keys_and_no_doubles(whole):
    keys = {"prompt", "completion", "stage", "problem_id", "answer", "candidates", "num_correct", "source"}
    assert all(set(row) == keys for row in whole.rows)
    assert all(row["candidates"] is row["num_correct"] is None for row in whole.rows if row["stage"] == "candidate")
    texts = [json.dumps([row["prompt"], row["completion"]]) for row in whole.rows]
    assert len(texts) == len(set(texts))
    assert {row["stage"] for row in whole.rows[:12]} == {"candidate", "refinement"}, "shuffled"


def test_counts_add_up(whole):
    funnel = whole.counts["funnel"]
    assert funnel["candidates sampled"] == 30 * 6 and funnel["refinements sampled"] == funnel["candidate sets"] * 3
    assert funnel["refinements right"] >= funnel["refinements after balance"] >= funnel["refinement rows"]
    table = whole.counts["by_num_correct"]
    assert sum(one["sampled"] for one in table.values()) == funnel["refinements sampled"]
    assert sum(one.get("kept", 0) for one in table.values()) == funnel["refinement rows"]
    assert funnel["rows"] == len(whole.rows) == funnel["refinement rows"] + funnel["direct rows"]


def test_candidate_sets_hold_k_finished_candidates(whole):
    candidates, refinements = units(whole)
    for identity, unit in refinements.items():
        for one in unit["sets"]:
            group = candidates[identity]["samples"]
            assert len(set(one["chosen"])) == 3 and all(group[i]["finished"] for i in one["chosen"])
            assert one["candidates"] == [group[i]["text"] for i in one["chosen"]]


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
    one = config(whole.folder, direct_source=source, direct_ratio=0.5)
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


# Resuming ---------------------------------------------------------------------------------------------------


class SlowEngine(FixedEngine):
    def _step(self):
        time.sleep(0.003)
        return super()._step()


def _distill_in_child(rows, folder):
    os.setsid()
    distill(rows, problem_config(), config(folder), open_engine=SlowEngine)


def test_kills_at_random_moments_lose_and_double_nothing(rows, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    killed = 0
    for _ in range(10):
        child = context.Process(target=_distill_in_child, args=(rows, tmp_path))
        child.start()
        child.join(rng.uniform(0.05, 0.45))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
    assert killed >= 3
    found, counts = distill(rows, problem_config(), config(tmp_path), open_engine=FixedEngine)
    lines = [
        line for path in (tmp_path / "run/shards").glob("[cr]*-*.jsonl") for line in path.read_text().splitlines()
    ]
    assert len(lines) == 2 * 30, "each unit was written once"

    def plain(rows):
        return sorted(json.dumps({key: row[key] for key in row if key != "source"}) for row in rows)

    assert plain(found) == plain(whole.rows) and counts["funnel"] == whole.counts["funnel"]


def test_a_finished_job_opens_no_engine(rows, whole):
    before = FixedEngine.opened
    again, counts = distill(rows, problem_config(), whole.config, open_engine=FixedEngine)
    assert FixedEngine.opened == before and list(again) == list(whole.rows) and counts == whole.counts


def test_a_student_that_is_its_own_teacher_is_loaded_once(rows, tmp_path):
    before = FixedEngine.opened
    one = config(tmp_path, teacher_model=None, direct_source="student_right")
    assert one.teacher_model == one.student_model
    distill(rows[:5], problem_config(), one, open_engine=FixedEngine)
    assert FixedEngine.opened == before + 1


@pytest.mark.parametrize(
    ("more", "message"),
    [({"num_generations": 7}, "num_generations was 6, is 7"), ({"seed": 1}, "seed was 0, is 1")],
)
def test_another_configuration_in_the_same_folder_is_refused_by_key(rows, whole, more, message):
    with pytest.raises(ValueError, match=message):
        distill(rows, problem_config(), config(whole.folder, **more), open_engine=FixedEngine)


def test_other_problems_in_the_same_folder_are_refused(rows, whole):
    changed = [rows[0] | {"answer": "0"}, *rows[1:]]
    with pytest.raises(ValueError, match="problems_hash was"):
        distill(changed, problem_config(), whole.config, open_engine=FixedEngine)


def test_balance_and_mixing_may_change_without_sampling_again(rows, whole):
    before = FixedEngine.opened
    found, _ = distill(rows, problem_config(), config(whole.folder, direct_ratio=0.0), open_engine=FixedEngine)
    assert FixedEngine.opened == before and all(row["stage"] == "refinement" for row in found)


# The program, and reading its rows --------------------------------------------------------------------------


def test_the_program_writes_rows_that_sft_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gsr_rl.generation.open_engine", FixedEngine)
    (tmp_path / "m").mkdir()
    run_recipe(
        monkeypatch,
        "distill",
        dataset_name="tiny/mix",
        dataset_split="sft",
        max_problems=20,
        student_model=tmp_path / "m",
        output_dir=tmp_path / "run",
        prompt_template="tiny",
        num_candidates=3,
        num_generations=4,
        max_completion_length=40,
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"sft_rows.jsonl", "distill_report.md", "config.yaml", "versions.json", "metrics.jsonl", "shards"}
    report = (tmp_path / "run" / "distill_report.md").read_text()
    assert "| candidates sampled " in report and "## refinement" in report
    path = tmp_path / "run" / "sft_rows.jsonl"
    values = {"dataset_name": path, "stages": ["candidate", "refinement"], "max_rows": None, "seed": 0}
    both = load_sft_rows(SimpleNamespace(**values))
    refine = load_sft_rows(SimpleNamespace(**(values | {"stages": ["refinement"], "max_rows": 5})))
    assert len(both) == len(path.read_text().splitlines()) and len(refine) == 5
    assert {row["stage"] for row in refine} == {"refinement"}
    assert refine == load_sft_rows(SimpleNamespace(**(values | {"stages": ["refinement"], "max_rows": 5})))


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
    with pytest.raises(ValueError, match=message):
        load_sft_rows(SimpleNamespace(**values))


def test_the_recipe_refuses_another_configurations_folder_in_one_message(rows, tmp_path, monkeypatch, capsys):
    before = config(tmp_path, num_candidate_sets=1)
    open_store(rows, problem_config(), before)
    keys = {"dataset_name": "tiny/mix", "dataset_split": "sft", "max_problems": 30, "num_candidate_sets": 2}
    shared = ("student_model", "teacher_model", "output_dir", "prompt_template", "num_candidates", "num_generations")
    keys |= {name: getattr(before, name) for name in (*shared, "refinements_per_set", "max_completion_length")}
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, "distill", **keys)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "num_candidate_sets was 1, is 2" in said and "new output_dir" in said
