"""What an evaluation refuses before it samples anything, and what its dry run shows."""

import json
from functools import partial

import pytest

from gsr_rl.data import tiny_world
from tests.support.fixed_engine import FixedEngine, evaluate


@pytest.fixture
def run(tmp_path):
    """Evaluate with the fixed engine; returns the run folder."""
    return partial(evaluate, tmp_path)


def test_a_dry_run_counts_and_opens_no_engine(run, capsys):
    before = FixedEngine.opened
    folder = run("dry", dry_run="true")
    text = capsys.readouterr().out
    assert FixedEngine.opened == before and not folder.exists()
    assert "refinements, controls included  360" in text and "num_candidates: 3" in text


def test_refinements_are_sampled_as_candidates_unless_said(run, capsys):
    run("dry", dry_run="true", temperature=0.6, top_p=0.95, max_completion_length=90)
    text = capsys.readouterr().out
    assert "refinement_temperature: 0.6" in text and "refinement_top_p: 0.95" in text
    run("dry", dry_run="true", temperature=0.6, refinement_temperature=0, refinement_top_p=0.9)
    text = capsys.readouterr().out
    assert "refinement_temperature: 0\n" in text.replace("0.0", "0") and "refinement_top_p: 0.9\n" in text


def test_a_window_without_room_for_a_refinement_is_said_before_any_candidate(run, capsys):
    with pytest.raises(SystemExit):
        run("narrow_window", max_refinement_length=512)
    assert "max_refinement_length=512 leaves no room for a prompt" in capsys.readouterr().err


def test_a_files_own_benchmark_column_names_no_benchmark(run, tmp_path):
    rows = tiny_world.generate("mix", "test", 4, 0)
    rows = [row | {"benchmark": name} for row, name in zip(rows, ("aime24", None, 7, "mine"), strict=True)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = run("column", dataset_name=tmp_path / "own.jsonl")
    two = run("column_of_a_benchmark", dataset_name="null", benchmarks=tmp_path / "own.jsonl")
    for folder in (one, two):
        assert json.loads((folder / "eval.json").read_text())["names"] == ["own"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_generations": 3}, "maj@4, the compute-matched vote: set num_generations to at least 4"),
        ({"top_p": 0}, "top_p=0"),
        ({"candidates_from": "nowhere.parquet"}, "candidates_from=nowhere.parquet: there is no such file"),
        ({"methods": "self"}, "methods=['self']: use selfref, selfref_none"),
        ({"methods": ["selfref", "selfref"]}, "methods names selfref twice"),
        ({"methods": ["selfref", "best_of_n"]}, "best_of_n need reward_model"),
        ({"reward_model": "some/model"}, "reward_model=some/model is not used: add best_of_n or weighted_vote"),
        ({"methods": "orders", "order_repeats": 1}, "order_repeats=1: at least 2 are needed"),
        ({"methods": "rounds", "refinement_rounds": 0}, "refinement_rounds=0"),
        ({"grouping": "apart"}, "grouping='apart': use disjoint or resampled"),
        ({"grouping": "disjoint"}, "num_candidate_sets=2 x num_candidates=3 is more than num_generations=5"),
        ({"own_candidates": "false"}, "own_candidates=false needs candidates_from"),
        ({"benchmarks": ["aime24", "aime2024"]}, "benchmarks: aime24 is named twice"),
        ({"benchmarks": ["a/test.jsonl", "b/test.jsonl"]}, "test is named twice: leave one out, or rename one of two"),
        ({"benchmarks": "aim24"}, "'aim24' is not known: did you mean aime24?"),
        ({"benchmark_files": "{aime24: x.jsonl}"}, "benchmarks is not set"),
        ({"benchmarks": "aime24", "benchmark_files": "{aime24: x.jsonl}"}, "x.jsonl: there is no such file"),
        ({"benchmarks": "aime24", "benchmark_files": "{amc23: x.jsonl}"}, "amc23 is none of benchmarks (aime24)"),
        ({"num_candidate_sets": 0}, "num_candidate_sets=0: at least 1 is needed"),
        ({"from_samples": "README.md"}, "README.md: not a samples.parquet of eval_gsr.py"),
        ({"benchmarks": "tiny/nope", "dataset_name": "null"}, "tiny/nope: there are tiny/chain, tiny/guess, tiny/mix"),
        ({"benchmarks": "reasoning_gym/chain_sums", "dataset_name": "null"}, "did you mean reasoning_gym/chain_sum"),
        ({"benchmarks": "knights_knaves/60"}, "at most 51 inhabitants are generated"),
        ({"benchmarks": "reasoning_gym/countdown", "dataset_name": "null"}, "its problems have several right answers"),
        ({"output_dir": "README.md"}, "output_dir=README.md is a file: give a folder"),
        (
            {"from_samples": "tests", "update_model_card": "true"},
            "update_model_card=true is ignored with",
        ),
        ({"from_samples": "tests", "dry_run": "true"}, "dry_run=true is ignored with from_samples"),
        ({"compare_with": "nowhere"}, "compare_with=nowhere: there is no samples.parquet"),
        ({"from_samples": "nowhere"}, "from_samples=nowhere: there is no samples.parquet"),
        ({"model": "./nowhere"}, "model=./nowhere: there is no such folder"),
        (
            {"max_model_length": 64, "max_refinement_prompt_length": 60},
            "set max_refinement_prompt_length to at most 24",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_fix(run, capsys, more, message):
    with pytest.raises(SystemExit) as end:
        run("bad", **more)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_key_to_split_by_has_to_be_there(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("split", split_by="colour")
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("eval_gsr.py: error: split_by=colour: problem ") and "has no such key" in message


def test_a_local_benchmark_that_is_another_set_ends_a_dry_run_too(run, tmp_path, capsys):
    path = tmp_path / "amc.jsonl"
    path.write_text("".join(json.dumps({"problem": f"What is {i} + 1?", "answer": i + 1}) + "\n" for i in range(83)))
    with pytest.raises(SystemExit) as stopped:
        named = {"dataset_name": "null", "benchmarks": "amc23", "benchmark_files": f"{{amc23: {path}}}"}
        run("dry", dry_run="true", **named)
    message = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "amc23 has 40 problems" in message and "has 83" in message
    assert "amc22-23" in message
