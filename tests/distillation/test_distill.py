"""Distillation: which rows are kept, in which format, and that no kill loses or doubles a unit."""

import dataclasses
import io
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from gsr_rl.data import tiny_world
from gsr_rl.distillation.distill import Unfinished, distill, open_store, part_of
from gsr_rl.engines.base import Result
from gsr_rl.training.sft_trainer import load_sft_rows
from tests.support.distilled import config, problem_config, run, units
from tests.support.distilled import rows as problems
from tests.support.fixed_engine import FixedEngine, run_recipe


@pytest.fixture(scope="module")
def rows():
    return problems()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


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


def test_each_set_draws_its_number_of_candidates_and_shows_as_many(whole, rows, tmp_path):
    drawn = run(tmp_path, num_candidates=5, min_num_candidates=1)
    _, refinements = units(drawn)
    sets = [one for unit in refinements.values() for one in unit["sets"]]
    sizes = Counter(len(one["chosen"]) for one in sets)
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert all(one["prompt"][0]["content"].count("\n#") == len(one["candidates"]) for one in sets)
    refine = Counter(len(row["candidates"]) for row in drawn.rows if row["stage"] == "refinement")
    table = drawn.counts["by_num_candidates"]
    assert {int(number): one.get("kept", 0) for number, one in table.items()} == refine
    assert {int(number): one["sampled"] for number, one in table.items()} == {k: 3 * sizes[k] for k in sizes}
    assert set(whole.counts["by_num_candidates"]) == {"3"}


def test_the_numbers_drawn_are_those_of_the_problem_whatever_the_order_of_work(whole, rows, tmp_path):
    def sizes(order) -> dict[str, list[int]]:
        folder = tmp_path / str(order)
        folder.mkdir()
        keys = {"num_candidates": 5, "min_num_candidates": 2, "max_completion_length": 40}
        distill(rows[::order], problem_config(), config(folder, **keys), open_engine=FixedEngine)
        _, refinements = units(SimpleNamespace(folder=folder))
        return {name: [len(one["chosen"]) for one in unit["sets"]] for name, unit in refinements.items()}

    assert sizes(1) == sizes(-1) and len({tuple(one) for one in sizes(2).values()}) > 3


def test_a_set_with_too_few_usable_candidates_for_its_number_is_left_out(rows, tmp_path):
    class Ending(FixedEngine):
        """Only every other candidate ends."""

        def _step(self):
            (result,) = super()._step()
            if result.key[1] is not None:  # refinements
                return [result]
            texts = enumerate(result.completions)
            return [
                dataclasses.replace(
                    result, completions=[dataclasses.replace(one, finished=place % 2 == 0) for place, one in texts]
                )
            ]

    one = config(tmp_path, num_candidates=6, min_num_candidates=1)
    distill(rows, problem_config(), one, open_engine=Ending)
    _, refinements = units(SimpleNamespace(folder=tmp_path))
    sizes = Counter(len(one["chosen"]) for unit in refinements.values() for one in unit["sets"])
    assert set(sizes) == {1, 2, 3} and sum(sizes.values()) < 2 * len(rows)


# Resuming ---------------------------------------------------------------------------------------------------


class SlowEngine(FixedEngine):
    def _step(self):
        time.sleep(0.02)
        return super()._step()


def _distill_in_child(rows, folder):
    os.setsid()
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the parent, which would wait for a killed child's
    distill(rows, problem_config(), config(folder), open_engine=SlowEngine)


def _plain(rows):
    """Rows without the models' names, which are paths of the test."""
    return [{key: value for key, value in row.items() if key != "source"} for row in rows]


def _stored(folder) -> list[str]:
    """The unit of every stored line, with its kind."""
    paths = (folder / "run" / "shards").glob("[cr]*-*.jsonl")
    return sorted(f"{path.name[0]} {json.loads(line)['unit']}" for path in paths for line in path.open())


def test_kills_at_ten_random_moments_lose_and_double_nothing(rows, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    killed = 0
    while killed < 10:
        child = context.Process(target=_distill_in_child, args=(rows, tmp_path))
        child.start()
        child.join(rng.uniform(0.02, 0.35))
        if not child.is_alive():
            break
        os.kill(child.pid, signal.SIGKILL)
        killed += 1
        child.join()
    assert killed == 10
    found, counts = distill(rows, problem_config(), config(tmp_path), open_engine=FixedEngine)
    assert _stored(tmp_path) == _stored(whole.folder) and len(_stored(tmp_path)) == 2 * 30
    assert _plain(found) == _plain(whole.rows) and counts == whole.counts


def test_a_second_distillation_in_a_folder_in_use_is_refused_before_a_model_is_loaded(rows, tmp_path):
    with (
        open_store(rows, problem_config(), config(tmp_path)).lock(),
        pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} on .*: wait for it or end it, or give"),
    ):
        distill(
            rows, problem_config(), config(tmp_path), open_engine=lambda *_, **__: pytest.fail("a model is loaded")
        )


def test_an_exception_in_the_middle_keeps_what_was_finished(rows, tmp_path):
    class Failing(FixedEngine):
        def _step(self):
            if self.counts["requests"] == 11:
                raise RuntimeError("the engine broke")
            return super()._step()

    with pytest.raises(RuntimeError, match="the engine broke"):
        distill(rows, problem_config(), config(tmp_path), open_engine=Failing)
    assert len(_stored(tmp_path)) == 11


def _shown(rows, folder, monkeypatch, terminal: bool, **more) -> str:
    """What a distillation writes to standard error, a terminal of 60 columns or a log file."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.setenv("TQDM_DELAY", "5")  # as the programs set it for the bars of libraries
    distill(rows, problem_config(), config(folder, **more), open_engine=FixedEngine)
    return stream.getvalue()


def test_a_log_has_a_line_per_state_with_problems_time_share_right_and_speed(rows, tmp_path, monkeypatch, capsys):
    lines = _shown(rows, tmp_path, monkeypatch, terminal=False, problems_per_chunk=10).splitlines()
    form = r"(\w+): \d+ %, (\d+) of 30 problems, [\d:?]+ left(, [\d.]+ % right)?(, [\d,]+ tokens/s.*)?"
    states = [re.fullmatch(form, line) for line in lines]
    assert all(states) and max(map(len, lines)) <= 160 and states[0][2] == "0"
    assert capsys.readouterr().out == f"student: {tmp_path}/model\nteacher: {tmp_path}\n"
    for kind in ("candidates", "refinements"):
        last = [state for state in states if state[1] == kind][-1]
        store = open_store(rows, problem_config(), config(tmp_path, problems_per_chunk=10)).load(kind)
        grades = [sample["correct"] for unit in store.values() for sample in unit["samples"]]
        assert last[2] == "30" and last[3] == f", {100 * sum(grades) / len(grades):.1f} % right", last[0]
    assert any(state[3] and int(state[2]) < 30 for state in states), "the share is there before the end"


def test_a_line_in_a_terminal_is_rewritten_and_never_wraps(rows, tmp_path, monkeypatch):
    shown = _shown(rows, tmp_path, monkeypatch, terminal=True)
    assert shown.count("\n") == 2, "of two stages"
    states = re.split(r"\r\x1b\[K|\n", shown)
    assert max(map(len, states)) == 59 and "refinements: 100 %, 30 of 30 problems, 00:00 left" in states[-2]


def test_units_without_an_answer_are_left_for_the_next_run(rows, whole, tmp_path):
    class Refusing(FixedEngine):
        def _step(self):
            (result,) = super()._step()
            refused = result.key[0] == rows[3]["id"] or result.key == (rows[5]["id"], 1)
            return [Result(result.key, [], "refused") if refused else result]

    def distil(opener, **more):
        return distill(rows, problem_config(), config(tmp_path, **more), open_engine=opener)

    said = r"2 of 30 problems got no answer, the first because of: refused.* the same command"
    with pytest.raises(Unfinished, match=said):
        distil(Refusing)
    assert len(_stored(tmp_path)) == 29 + 28, "all others are done, refinements included"
    found, counts = distil(Refusing, allow_unfinished=True)
    assert counts["funnel"]["problems"] == 28
    assert not {rows[3]["id"], rows[5]["id"]} & {row["problem_id"] for row in found}
    found, _ = distil(FixedEngine)
    assert _stored(tmp_path) == _stored(whole.folder) and _plain(found) == _plain(whole.rows)


def test_two_parts_joined_equal_one_run(rows, whole, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders, 1):
        folder.mkdir()
        one = config(folder, shard=f"{number}/2", teacher_model=whole.config.teacher_model,
                     student_model=whole.config.student_model)  # fmt: skip
        assert distill(rows, problem_config(), one, open_engine=FixedEngine) is None
    models = {"teacher_model": whole.config.teacher_model, "student_model": whole.config.student_model}
    joined = config(folders[0], join=str(folders[1] / "run"), **models)  # as YAML gives one folder
    before = FixedEngine.opened
    found, counts = distill(rows, problem_config(), joined, open_engine=FixedEngine)
    assert FixedEngine.opened == before, "nothing was left to sample"
    assert list(found) == list(whole.rows) and counts == whole.counts
    assert _stored(folders[0]) == _stored(whole.folder)


def test_parts_may_share_a_folder_and_the_last_command_does_what_is_left(rows, whole, tmp_path):
    assert distill(rows, problem_config(), config(tmp_path, shard="3/3"), open_engine=FixedEngine) is None
    found, counts = distill(rows, problem_config(), config(tmp_path), open_engine=FixedEngine)
    assert _plain(found) == _plain(whole.rows) and counts == whole.counts
    assert _stored(tmp_path) == _stored(whole.folder)


@pytest.mark.parametrize("parts", [1, 2, 7, 40])
def test_parts_cover_every_problem_once(rows, parts):
    dealt = [row["id"] for i in range(1, parts + 1) for row in part_of(rows, f"{i}/{parts}")]
    assert sorted(dealt) == sorted(row["id"] for row in rows)


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


def test_a_teacher_with_an_engine_of_its_own_is_opened_apart(rows, tmp_path):
    before = FixedEngine.opened
    one = config(tmp_path, teacher_model=None, teacher_tensor_parallel_size=2, direct_source="student_right")
    distill(rows[:5], problem_config(), one, open_engine=FixedEngine)
    assert FixedEngine.opened == before + 2


@pytest.mark.parametrize("policy", ["paper", "uniform", "balanced", "hard"])
def test_candidate_sets_follow_their_policy_and_hold_their_seed(rows, tmp_path, policy):
    found = run(tmp_path, candidate_choice=policy, uniform_share=0.0, direct_source="none")
    candidates, refinements = units(found)
    for identity, unit in refinements.items():
        group = candidates[identity]["samples"]
        usable = [i for i, s in enumerate(group) if s["finished"] and s["correct"] is not None]
        right = sum(group[i]["correct"] == 1.0 for i in usable)
        for place, one in enumerate(unit["sets"]):
            assert one["policy"] == policy and isinstance(unit["sets_seed"], int)
            if place == 0 and policy == "paper":
                assert one["num_correct"] == min(right, 3)
            if place == 0 and policy == "hard" and len(usable) - right >= 2:
                assert one["num_correct"] <= 1
            if place == 0 and policy == "balanced" and min(right, len(usable) - right) >= 2:
                assert one["num_correct"] in (1, 2)
    assert set(found.counts["policies"]) == {policy}


def test_overlong_prompts_are_cut_or_dropped_as_told(rows, tmp_path):
    for name in ("cut", "drop"):
        (tmp_path / name).mkdir()
    cut = run(tmp_path / "cut", max_refinement_prompt_length=75, overlong_prompts="cut").counts["funnel"]
    dropped = run(tmp_path / "drop", max_refinement_prompt_length=75, overlong_prompts="drop").counts["funnel"]
    assert cut["candidates cut to fit"] > 0 and dropped["candidates cut to fit"] == 0
    assert dropped["candidate sets over the prompt's budget"] > cut["candidate sets over the prompt's budget"]
    sets = "candidate sets"
    assert (
        dropped[sets] + dropped["candidate sets over the prompt's budget"]
        == cut[sets] + cut[f"{sets} over the prompt's budget"]
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_generations": 7}, "num_generations was 6, is 7"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"candidate_choice": "hard"}, "candidate_choice was 'paper', is 'hard'"),
        ({"max_completion_length": 41}, "max_completion_length was 40, is 41"),
    ],
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
    monkeypatch.setattr("gsr_rl.engines.open.open_engine", FixedEngine)
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
    values |= {"num_candidates": 3, "min_num_candidates": None}
    both = load_sft_rows(SimpleNamespace(**values))
    refine = load_sft_rows(SimpleNamespace(**(values | {"stages": ["refinement"], "max_rows": 5})))
    assert len(both) == len(path.read_text().splitlines()) and len(refine) == 5
    assert {row["stage"] for row in refine} == {"refinement"}
    assert refine == load_sft_rows(SimpleNamespace(**(values | {"stages": ["refinement"], "max_rows": 5})))


def test_the_recipe_refuses_another_configurations_folder_in_one_message(rows, tmp_path, monkeypatch, capsys):
    before = config(tmp_path, num_candidate_sets=1)
    open_store(rows, problem_config(), before).append("candidates", [{"unit": rows[0]["id"]}])
    keys = {"dataset_name": "tiny/mix", "dataset_split": "sft", "max_problems": 30, "num_candidate_sets": 2}
    shared = ("student_model", "teacher_model", "output_dir", "prompt_template", "num_candidates", "num_generations")
    keys |= {name: getattr(before, name) for name in (*shared, "refinements_per_set", "max_completion_length")}
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, "distill", **keys)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "num_candidate_sets was 1, is 2" in said and "new output_dir" in said


@pytest.mark.parametrize(("module", "name"), [("engines.open", "open_engine"), ("data.problems", "read_problems")])
def test_a_model_or_a_set_that_cannot_be_had_ends_the_recipe_in_one_message(
    tmp_path, monkeypatch, capsys, module, name
):
    def absent(*_, **__):
        raise OSError("no/such is not a local folder and is not on the Hub")

    monkeypatch.setattr(f"gsr_rl.{module}.{name}", absent)
    keys = {"dataset_name": "tiny/mix", "dataset_split": "sft", "max_problems": 3, "prompt_template": "tiny"}
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, "distill", **keys, student_model="no/such", output_dir=tmp_path / "run")
    assert stop.value.code == 2 and "error: no/such is not a local folder" in capsys.readouterr().err
