"""Problem sources: what comes out, what is refused, and that generated splits share nothing."""

import csv
import gzip
import json
import re
from itertools import combinations
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsr_rl.data import gym_tasks
from gsr_rl.data.config import check_problems
from gsr_rl.data.problems import final_answer, load_problems, read_local, read_problems, training_rows
from gsr_rl.data.sources import from_hub, normalise_text, problem_id
from tests.support.findings import GRPO, TINY
from tests.support.fixed_engine import run_recipe


def config(name, **more):
    values = {
        "dataset_config": None,
        "dataset_split": "train",
        "problem_column": None,
        "answer_column": None,
        "max_problems": None,
        "problem_seed": 0,
        "dataset_kwargs": None,
        "row_filters": None,
        "unusable_rows": "error",
        "decontaminate_against": None,
        "decontamination_ngram": 10,
        "decontamination_threshold": 0.5,
    }
    return SimpleNamespace(dataset_name=str(name), **(values | more))


ROWS = [{"problem": "What is 1+1?", "answer": 2, "level": "easy"}, {"problem": "What is 2+2?", "answer": "4"}]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows]), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_kind_of_local_file_gives_the_same_rows(tmp_path, suffix):
    rows = load_problems(config(write(tmp_path / f"rows{suffix}", ROWS)))
    reference = load_problems(config(write(tmp_path / "reference.jsonl", ROWS)))
    assert [(r["id"], r["problem"], r["answer"]) for r in rows] == [
        (r["id"], r["problem"], r["answer"]) for r in reference
    ]
    assert [row["answer"] for row in rows] == ["2", "4"] and rows[0]["level"] == "easy"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_skipped(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"problem": "x?", "answer": "1"}])
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert [row["problem"] for row in load_problems(config(path))] == ["x?"]


def test_a_csv_file_may_hold_long_fields_numbers_to_filter_by_and_more_fields_than_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"problem,answer,level,solution\nx?,1,4,{'a' * 140_000}\ny?,2,3,b\n")
    assert [row["answer"] for row in load_problems(config(path, row_filters={"level": [4, 5]}))] == ["1"]
    path.write_text("problem,answer\nx?,,3\n")
    with pytest.raises(ValueError, match="row 1: no usable answer"):
        load_problems(config(path))


def test_a_row_with_half_a_character_is_dropped_or_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"problem": "x \ud83d?", "answer": "1"}, ROWS[0]])
    found = read_problems(config(path, unusable_rows="drop"))
    assert len(found.rows) == 1 and found.counts["with half a character"] == 1
    with pytest.raises(ValueError, match=r"row 1: problem holds half a character .* --unusable_rows drop"):
        load_problems(config(path))


def test_ids_depend_on_the_text_and_not_on_its_spacing_or_place(tmp_path):
    one = load_problems(config(write(tmp_path / "a.jsonl", ROWS)))
    spaced = [{"problem": " What  is\n2+2? ", "answer": "4"}, ROWS[0]]
    two = load_problems(config(write(tmp_path / "b.jsonl", spaced)))
    assert {row["id"] for row in one} == {row["id"] for row in two} and len({row["id"] for row in one}) == 2
    assert normalise_text("Ａ  b\tC") == "a b c"


def test_given_ids_are_kept_and_repeated_texts_dropped(tmp_path, capsys):
    rows = [{"id": 7, **ROWS[0]}, {"id": 8, "problem": "what is 1+1?", "answer": "2"}, {"id": 9, **ROWS[1]}]
    assert [row["id"] for row in load_problems(config(write(tmp_path / "a.jsonl", rows)))] == ["7", "9"]
    assert "left out 1 rows with a text seen before\n" in capsys.readouterr().err
    rows[1]["answer"] = "3"
    assert load_problems(config(write(tmp_path / "a.jsonl", rows)))[0]["answer"] == "2"
    assert "1 rows with a text seen before and another answer, the first is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], {"problem": "x", "answer": " "}], r"row 2: no usable answer .*--answer_column"),
        ([ROWS[0], {"answer": "3"}], r"row 2: no usable problem .*--problem_column"),
        ([{"problem": "x", "solution": "It is clear."}], "row 1: no usable answer .*, solution='It is clear.'"),
        ([{"problem": "x", "answer": ["2", "-2"]}], r"answer=\['2', '-2'\]\): write several values as one text"),
        ([{"id": "a", **ROWS[0]}, {"id": "a", **ROWS[1]}], "row 2: the id 'a' is used twice"),
        ([[1, 2]], "row 1: an object is expected, got list"),
        ([], "no usable problems"),
    ],
)
def test_a_bad_local_row_is_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_problems(config(write(tmp_path / "rows.json", rows)))


def test_a_filter_on_a_column_that_no_row_has_is_named(tmp_path):
    path = write(tmp_path / "rows.json", ROWS)
    with pytest.raises(ValueError, match=r"row_filters: no row has levl, the columns are problem, answer, level"):
        load_problems(config(path, row_filters={"levl": [1]}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": ""}\n',
            "a.jsonl, row 2: no usable",
        ),
        ("a.csv", b"problem,answer\n1+1,2\n1+2,\n", "a.csv, row 2: no usable answer .*--answer_column"),
        ("a.csv", b"problem,answer\n", "a.csv: there are no usable problems"),
        ("a.csv", "problem,answer\né,1\n".encode("latin-1"), "a.csv: it is not UTF-8 text"),
        ("a.jsonl", b'{"problem": "1+1", "answer": "2"}\n{"problem"\n', "a.jsonl: line 2 is no JSON object"),
    ],
)
@pytest.mark.parametrize("program", ["distill", "grpo", "eval"])
def test_a_dry_run_refuses_a_bad_file(program, name, content, message, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes(content)
    keys = {
        "distill": {"student_model": TINY, "output_dir": tmp_path, "expected": "{problems: 2}"},
        "grpo": GRPO | {"model_name_or_path": TINY, "output_dir": tmp_path},
        "eval": {"model": TINY, "output_dir": tmp_path, "benchmark_name": "none"},
    }[program]
    lengths = {"max_completion_length": 40, "max_refinement_prompt_length": 200, "dry_run": True}
    with pytest.raises(SystemExit) as stop:
        run_recipe(
            monkeypatch, program, **keys | lengths | {"dataset_name": tmp_path / name, "unusable_rows": "error"}
        )
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("She has 6*7=<<6*7=42>>42 eggs.\n#### 1,042", "1042"),
        ("so #### (1, 2)", "(1, 2)"),
        ("so #### $1,234,567.50", "$1234567.50"),
        ("so #### 100,200 or 3", "100,200 or 3"),
        ("so #### x = 1,000/3 m^2", "x = 1000/3 m^2"),
        (r"so #### \{1,2\}", r"\{1,2\}"),
        (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("#### Step 1\nSo.\n#### Step 2: hence\nthe answer is $\\boxed{5}$.", "5"),
        (204, "204"),
        (["$5$"], "$5$"),
        (["a", "b"], ""),
        (None, ""),
    ],
)
def test_answers_are_found_in_solutions(value, answer):
    assert final_answer(value) == answer


def test_no_solution_is_an_answer(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"problem": "x?", "answer": "none"}])
    assert [row["answer"] for row in load_problems(config(path))] == ["none"]


@pytest.mark.parametrize("answer", [float("nan"), "nan", "NaN", None, "None", "null", "N/A", " unknown ", "", [], {}])
def test_a_row_whose_answer_is_missing_is_dropped_and_counted(tmp_path, answer):
    path = write(tmp_path / "rows.jsonl", [{"problem": "x?", "answer": answer}, ROWS[0]])
    found = read_problems(config(path, unusable_rows="drop"))
    assert [row["answer"] for row in found.rows] == ["2"] and found.counts["without a usable answer"] == 1
    with pytest.raises(ValueError, match="row 1: no usable answer"):
        load_problems(config(path))


@pytest.mark.parametrize("problem", [{"text": "x?"}, ["x?"], float("nan"), None, " "])
def test_a_row_whose_problem_is_no_text_is_dropped_and_counted(tmp_path, problem):
    path = write(tmp_path / "rows.jsonl", [{"problem": problem, "answer": "1"}, ROWS[0]])
    found = read_problems(config(path, unusable_rows="drop"))
    assert len(found.rows) == 1 and found.counts["without a problem"] == 1


@pytest.mark.parametrize("unusable_rows", ["error", "drop"])
@pytest.mark.parametrize("column", ["problem", "answer"])
def test_a_column_of_bytes_is_refused_by_name(tmp_path, column, unusable_rows):
    rows = [{"problem": "What is 2+3?", "answer": "5"}, {"problem": "What is 3+3?", "answer": "6"}]
    path = tmp_path / "problems.parquet"
    pq.write_table(
        pa.table({key: [row[key].encode() if key == column else row[key] for row in rows] for key in rows[0]}), path
    )
    with pytest.raises(ValueError, match=f"problems.parquet, row 1: the column {column} holds bytes"):
        read_problems(config(path, unusable_rows=unusable_rows))


def test_columns_can_be_named_and_the_number_limited(tmp_path):
    rows = [{"frage": f"{i}+1?", "antwort": str(i + 1)} for i in range(5)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = load_problems(config(path, problem_column="frage", answer_column="antwort", max_problems=3))
    assert [row["answer"] for row in found] == ["1", "2", "3"]


def test_rewards_get_a_sets_other_columns(capsys):
    rows = [
        {"id": "a", "problem": "1+1", "answer": "2", "level": 1, "tests": ["x"], "stage": "mine", "mixed": 1},
        {"id": "b", "problem": "1+2", "answer": "3", "level": None, "prompt": "mine", "mixed": "one"},
    ]
    first, second = training_rows(rows, "tiny")
    assert set(first) == set(second) == {"prompt", "problem", "problem_id", "answer", "level", "tests"}
    assert (first["level"], first["tests"], second["level"], second["tests"]) == (1, ["x"], None, None)
    assert first["prompt"] != "mine" and (second["problem_id"], second["answer"]) == ("b", "3")
    assert "column mixed: rewards do not get it" in capsys.readouterr().err


def test_a_solution_column_that_is_named_may_hold_plain_answers(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"problem": "x?", "solution": "42"}])
    assert [row["answer"] for row in load_problems(config(path, answer_column="solution"))] == ["42"]
    with pytest.raises(ValueError, match="no usable answer"):
        load_problems(config(path))


def test_reasoning_gym_splits_and_seeds_share_no_text():
    pytest.importorskip("reasoning_gym")
    kwargs = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}  # small enough to collide
    seen = {}
    for split in ("train", "validation", "test"):
        rows = load_problems(
            config("reasoning_gym/chain_sum", dataset_split=split, max_problems=400, dataset_kwargs=kwargs)
        )
        seen[split] = {normalise_text(row["problem"]) for row in rows}
        assert len(seen[split]) == len({row["id"] for row in rows}) == 400
    for one, other in combinations(seen, 2):
        assert not seen[one] & seen[other]
    again = load_problems(config("reasoning_gym/chain_sum", max_problems=400, problem_seed=1, dataset_kwargs=kwargs))
    texts = {normalise_text(row["problem"]) for row in again}
    assert texts != seen["train"] and not texts & seen["test"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dataset_split": "dev"}, "dataset_split='dev'"),
        ({"problem_seed": 5000}, "problem_seed=5000"),
        ({"max_problems": 500, "dataset_kwargs": {"max_terms": 2, "max_digits": 1}}, "has only .* lower max_problems"),
        ({"dataset_kwargs": "[1]"}, "dataset_kwargs=.*mapping"),
    ],
)
def test_what_reasoning_gym_cannot_give_is_said(more, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=message):
        load_problems(config("reasoning_gym/chain_sum", **more))


def test_a_task_whose_answers_cannot_be_graded_is_refused(monkeypatch):
    gym = pytest.importorskip("reasoning_gym")
    assert set(gym.factory.DATASETS) >= gym_tasks.SEVERAL_RIGHT | gym_tasks.ASKS_FOR_A_FORM
    with pytest.raises(ValueError, match="reasoning_gym/power_function: its problems ask for a form of a value"):
        load_problems(config("reasoning_gym/power_function", max_problems=5))
    with pytest.raises(ValueError, match="reasoning_gym/puzzle24: its problems have several right answers"):
        load_problems(config("reasoning_gym/puzzle24", max_problems=5))
    monkeypatch.setattr(gym_tasks, "SEVERAL_RIGHT", set())
    with pytest.raises(ValueError, match=r"reasoning_gym/n_queens: rewards cannot read \d+ of \d+ answers, such as '"):
        load_problems(config("reasoning_gym/n_queens", max_problems=500))


@pytest.mark.parametrize("task", ["mini_sudoku", "string_synthesis", "bitwise_arithmetic", "sudoku", "maze"])
def test_another_problems_answer_of_a_reasoning_gym_task_is_wrong(task):
    pytest.importorskip("reasoning_gym")
    import rewards

    golds = list({row["answer"]: None for row in load_problems(config(f"reasoning_gym/{task}", max_problems=8))})
    texts = [f"\\boxed{{{answer}}}" for answer in golds]
    assert len(golds) > 2 and rewards.grade(texts, golds) == [1.0] * len(golds)
    assert rewards.grade(texts, golds[1:] + golds[:1]) == [0.0] * len(golds)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{broken", r"a\.json: it is no json file \(Expecting property name.*: fix it"),
        ("a.json", b'{"problem": "1+1"}', "a JSON list of objects is expected, got dict"),
        ("a.jsonl", '{"problem": "1+1"}'.encode("utf-16"), r"a\.jsonl: it is not UTF-8 text .*: convert it"),
        ("a.csv", "problem,answer".encode("utf-16"), r"a\.csv: it is not UTF-8 text"),
        ("a.parquet", b"PAR1 no more", r"a\.parquet: it is no parquet file \("),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_local(tmp_path / name)


ROW = {"problem": "1+1; 2, or 3", "answer": "2"}
LINES = json.dumps(ROW) + "\n" + json.dumps({"problem": "1+2", "answer": "3"}) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.JSONL", LINES.encode()),
        ("a.json", LINES.encode()),
        ("a.jsonl", json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1).encode()),
        ("a.tsv", b"problem\tanswer\n1+1; 2, or 3\t2\n1+2\t3\n"),
        ("a.csv", b'\xef\xbb\xbfproblem;answer\n"1+1; 2, or 3";2\n1+2;3\n'),
        ("a.csv", b'Problem,Answer\n"1+1; 2, or 3",2\n1+2,3\n'),
        ("a.CSV.GZ", gzip.compress(b'ID,QUESTION,SOLUTION,ANSWER\n7,"1+1; 2, or 3",so,2\n8,1+2,so,3\n', mtime=0)),
    ],
)
def test_a_file_is_read_by_its_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    values = config(str(tmp_path / name))
    assert check_problems(values) == [] and not from_hub(values.dataset_name)
    rows = load_problems(values)
    assert [(row["problem"], row["answer"]) for row in rows] == [("1+1; 2, or 3", "2"), ("1+2", "3")]
    assert rows[0]["id"] == ("7" if "GZ" in name else problem_id(ROW["problem"]))


def test_a_column_that_is_named_by_its_key_keeps_its_letters(tmp_path):
    (tmp_path / "a.csv").write_text("Problem,problem,answer\n1+1,2+2,2\n")
    assert load_problems(config(str(tmp_path / "a.csv"), problem_column="Problem"))[0]["problem"] == "1+1"
    assert load_problems(config(str(tmp_path / "a.csv")))[0]["problem"] == "2+2"


def test_a_file_of_another_kind_is_no_name_on_the_hub(tmp_path):
    (tmp_path / "a.xlsx").write_text("")
    (message,) = check_problems(config(str(tmp_path / "a.xlsx")))
    assert "such a file is not read, convert it to one of .jsonl" in message
    (tmp_path / "a.jsonl.gz").write_text("no gzip")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: it is no jsonl file"):
        read_local(tmp_path / "a.jsonl.gz")


def test_the_tiny_world_is_a_source():
    rows = load_problems(config("tiny/mix", dataset_split="test", max_problems=10, dataset_kwargs='{"steps": 5}'))
    assert len(rows) == 10 and {row["family"] for row in rows} == {"chain", "guess"}
    assert rows == load_problems(
        config("tiny/mix", dataset_split="test", max_problems=10, dataset_kwargs={"steps": 5})
    )


def test_generated_splits_of_every_set_share_no_text_with_another_split():
    pytest.importorskip("reasoning_gym")
    seen: dict[str, set[str]] = {}
    kwargs = [{"min_terms": 2, "max_terms": 2, "max_digits": 2}, {"min_terms": 2, "max_terms": 3, "max_digits": 2}]
    for split in ("sft", "grpo", "validation", "test"):
        for seed in (0, 1, 7):
            for one in kwargs:
                more = {"dataset_split": split, "max_problems": 120, "problem_seed": seed, "dataset_kwargs": one}
                rows = load_problems(config("reasoning_gym/chain_sum", **more))
                seen.setdefault(split, set()).update(normalise_text(row["problem"]) for row in rows)
    assert all(not seen[one] & seen[other] for one, other in combinations(seen, 2))
    whole = load_problems(config("reasoning_gym/chain_sum", max_problems=300, dataset_kwargs=kwargs[0]))
    assert not {normalise_text(row["problem"]) for row in whole} & (seen["validation"] | seen["test"])


def test_a_local_set_can_be_filtered_by_its_columns(tmp_path):
    rows = [{"problem": f"{i}?", "answer": "1", "level": i % 3} for i in range(9)]
    found = load_problems(config(write(tmp_path / "rows.jsonl", rows), row_filters={"level": [1, 2]}))
    assert len(found) == 6 and all(row["level"] for row in found)
