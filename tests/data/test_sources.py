"""Known sets of the Hub: layout, filters and splits, on local files of the same columns. The Hub is not asked."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsr_rl.data.config import DistillProblemConfig, ProblemConfig
from gsr_rl.data.problems import evaluation_rows, load_problems, read_problems
from gsr_rl.data.sources import HUB_SETS, failed_filter

SOLUTION = "<think>long</think> So it is \\boxed{7}."


def open_math(problem, answer="7", kind="has_answer_extracted", rate="0.5"):
    return {
        "expected_answer": answer,
        "problem_type": kind,
        "problem_source": "aops_c6_high_school_olympiads",
        "generation_model": "QwQ-32B",
        "pass_rate_72b_tir": rate,
        "problem": problem,
        "generated_solution": SOLUTION,
        "inference_mode": "cot",
        "used_in_kaggle": True,
    }


LAYOUTS = {
    "nvidia/OpenMathReasoning": ("cot", [open_math("A?"), open_math("A?"), open_math("B?", "\\frac{1}{2}")]),
    "openai/gsm8k": ("train", [{"question": "A?", "answer": "6*7=<<6*7=42>>42\n#### 42"}]),
    "EleutherAI/hendrycks_math": (
        "test",
        [{"problem": "A?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{x+1}$."}],
    ),
    "DigitalLearningGmbH/MATH-lighteval": (
        "train",
        [{"problem": "A?", "solution": "$\\boxed{7}$", "type": "Algebra"}],
    ),
    "HuggingFaceH4/MATH-500": (
        "test",
        [{"problem": "A?", "solution": "...", "answer": "p - q", "subject": "Algebra", "level": 2, "unique_id": "u"}],
    ),
    "agentica-org/DeepScaleR-Preview-Dataset": (
        "train",
        [{"problem": "A?", "answer": "-\\frac{2}{3}", "solution": ""}],
    ),
    "HuggingFaceH4/aime_2024": (
        "train",
        [{"id": 60, "problem": "A?", "solution": "...", "answer": "204", "year": 2024}],
    ),
    "math-ai/aime24": ("test", [{"id": 60, "problem": "A?", "solution": "\\boxed{204}", "url": "x"}]),
    "math-ai/aime25": ("test", [{"problem": "A?", "answer": "70", "id": "0"}]),
    "math-ai/amc23": ("test", [{"id": 0, "question": "A?", "answer": 27.0, "url": "x"}]),
    "Hothan/OlympiadBench": (
        "train",
        [
            {"id": 1606, "question": "A?", "solution": ["..."], "final_answer": ["$2$"], "is_multiple_answer": False},
            {"id": 1607, "question": "B?", "solution": ["..."], "final_answer": None, "is_multiple_answer": False},
        ],
    ),
}
ANSWERS = {
    "nvidia/OpenMathReasoning": ["7", "\\frac{1}{2}"],
    "openai/gsm8k": ["42"],
    "EleutherAI/hendrycks_math": ["x+1"],
    "DigitalLearningGmbH/MATH-lighteval": ["7"],
    "HuggingFaceH4/MATH-500": ["p - q"],
    "agentica-org/DeepScaleR-Preview-Dataset": ["-\\frac{2}{3}"],
    "HuggingFaceH4/aime_2024": ["204"],
    "math-ai/aime24": ["204"],
    "math-ai/aime25": ["70"],
    "math-ai/amc23": ["27.0"],
    "Hothan/OlympiadBench": ["$2$"],
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets.load_dataset` on local parquet files; `hub(name, split, rows)` puts one there."""
    real, calls = datasets.load_dataset, []

    def load_dataset(name, config=None, *, split, **options):
        calls.append({"name": name, "config": config, "split": split} | options)
        path = tmp_path / name / f"{split}.parquet"
        return real(
            "parquet", data_files={split: str(path)}, split=split, cache_dir=str(tmp_path / "cache"), **options
        )

    def put(name, split, rows):
        path = tmp_path / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        return calls

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return put


def test_every_known_set_is_tried_here():
    assert set(LAYOUTS) == set(HUB_SETS) == set(ANSWERS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_set_needs_its_name_only(hub, name):
    split, rows = LAYOUTS[name]
    calls = hub(name, split, rows)
    found = load_problems(ProblemConfig(name, dataset_split=split))
    assert [row["answer"] for row in found] == ANSWERS[name] and found[0]["problem"] == "A?"
    assert len({row["id"] for row in found}) == len(found)
    assert [call["config"] for call in calls] == list(HUB_SETS[name].configs or [None])


def test_the_papers_filters_keep_extracted_answers_of_middling_difficulty(hub):
    name = "nvidia/OpenMathReasoning"
    rates = ["0.0", "0.24", "0.25", "0.5", "0.90", "0.91", "1.0", "n/a"]
    rows = [open_math(f"rate {rate}?", rate=rate) for rate in rates]
    rows += [open_math("proof?", kind="converted_proof"), open_math("none?", kind="no_answer_extracted")]
    calls = hub(name, "cot", rows)
    problems = read_problems(ProblemConfig(name, dataset_split="cot"))
    assert [row["problem"] for row in problems.rows] == ["rate 0.25?", "rate 0.5?", "rate 0.90?"]
    counts = problems.counts
    assert counts["by the filter on problem_type"] == 2 and counts["by the filter on pass_rate_72b_tir"] == 5
    assert calls[0]["streaming"] and "generated_solution" not in calls[0]["columns"], "solutions are not downloaded"
    assert len(read_problems(ProblemConfig(name, dataset_split="cot", row_filters={})).rows) == 10


def test_reading_stops_where_enough_problems_are_found(hub):
    name = "nvidia/OpenMathReasoning"
    hub(name, "cot", [open_math(f"{i}?") for i in range(50)])
    problems = read_problems(ProblemConfig(name, dataset_split="cot", max_problems=5))
    assert len(problems.rows) == 5 == problems.counts["rows read"]


def test_a_split_that_a_known_set_lacks_is_refused_before_it_is_asked_for():
    from gsr_rl import cli

    with pytest.raises(
        ValueError, match="dataset_split=train: nvidia/OpenMathReasoning has its problems in cot and tir"
    ):
        cli.check_values("grpo", {"dataset_name": "nvidia/OpenMathReasoning"})


def test_rows_without_a_usable_answer_are_dropped_and_counted(hub, tmp_path):
    rows = [
        {"problem": f"{i}?", "answer": answer} for i, answer in enumerate(["1", "", None, "\\frac{1}{", "x^", "5"])
    ]
    hub("some/set", "train", rows)
    path = tmp_path / "rows.json"
    path.write_text('[{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "\\\\frac{1}{"}, {"answer": "3"}]')
    problems = read_problems(ProblemConfig("some/set"))
    assert [row["answer"] for row in problems.rows] == ["1", "5"] and problems.counts["without a usable answer"] == 4
    local = read_problems(DistillProblemConfig(str(path)))
    assert len(local.rows) == 1 and local.counts["without a usable answer"] == 1
    assert local.counts["without a problem"] == 1
    with pytest.raises(ValueError, match=r"row 2: no usable answer .* --unusable_rows drop"):
        read_problems(ProblemConfig(str(path)))


@pytest.mark.parametrize(
    ("filters", "row", "column"),
    [
        ({"level": 5}, {"level": 5}, None),
        ({"level": 5}, {"level": 4}, "level"),
        ({"level": [4, 5]}, {"level": 4}, None),
        ({"level": [4, 5]}, {"level": "4"}, None),
        ({"level": 5}, {"level": "5.0"}, None),
        ({"level": [4, 5]}, {"level": "easy"}, "level"),
        ({"level": None}, {"level": "easy"}, "level"),
        ({"rate": {"min": 0.25, "max": 0.9}}, {"rate": "0.9"}, None),
        ({"rate": {"min": 0.25}}, {"rate": 3}, None),
        ({"rate": {"max": 0.25}}, {"rate": "n/a"}, "rate"),
        ({"rate": {"max": 0.25}}, {}, "rate"),
        ({"kind": "a", "level": 1}, {"kind": "a", "level": 2}, "level"),
        ({}, {}, None),
    ],
)
def test_a_filter_is_a_value_a_list_or_a_range(filters, row, column):
    assert failed_filter(row, filters) == column


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row_filters": {"family": "chain"}, "dataset_name": "tiny/mix"}, "generated problems are not filtered"),
        ({"row_filters": {"rate": {"above": 1}}}, "a range has the numbers min, max or both"),
        ({"decontaminate_against": ["no/such.jsonl"]}, "decontaminate_against=no/such.jsonl: there is no such file"),
        ({"decontaminate_against": "some/set@train"}, "dataset_name=some/set is this evaluation set"),
        ({"decontaminate_against": ["x/y", "some/set@train"]}, "decontaminate_against=some/set@train: dataset_name="),
        ({"decontamination_threshold": 0}, "decontamination_threshold=0: a share"),
        ({"decontamination_ngram": 0}, "decontamination_ngram=0: at least 1"),
        ({"unusable_rows": "keep"}, "unusable_rows='keep': use error or drop"),
        ({"max_problems": 0}, "max_problems=0: at least 1"),
        ({"expected": {"problems": "many"}}, "expected: problems='many': a number of at least 0"),
        ({"expected": {"pages": 3}}, "expected={'pages': 3}: a mapping is expected, with keys of problems"),
    ],
)
def test_a_bad_problem_key_is_named(values, message):
    from gsr_rl import cli

    with pytest.raises(ValueError) as caught:
        cli.check_values("distill", {"dataset_name": "some/set", "student_model": "m", "output_dir": "o"} | values)
    assert message in str(caught.value)


def test_evaluation_sets_are_read_by_name_and_need_no_answers(hub):
    hub("math-ai/aime25", "test", [{"problem": "A?", "answer": "70", "id": "0"}])
    hub("some/exam", "dev", [{"problem": "B?"}])
    assert [row["problem"] for row in evaluation_rows("math-ai/aime25")] == ["A?"]
    assert [row["problem"] for row in evaluation_rows("some/exam@dev")] == ["B?"]
    assert len(evaluation_rows("tiny/mix@validation")) == 1000


def test_a_set_is_not_decontaminated_against_itself(hub):
    hub("math-ai/aime25", "test", [{"problem": "A?", "answer": "70", "id": "0"}])
    config = ProblemConfig("math-ai/aime25", dataset_split="test", decontaminate_against=["math-ai/aime25"])
    assert len(load_problems(config)) == 1


def test_a_local_set_that_is_trained_on_is_no_evaluation_set(tmp_path, monkeypatch):
    from gsr_rl import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "exam.jsonl").write_text('{"problem": "A?", "answer": "70"}\n')
    values = {"dataset_name": str(tmp_path / "exam.jsonl"), "decontaminate_against": ["exam.jsonl"]}
    with pytest.raises(ValueError, match=r"decontaminate_against=exam.jsonl: .* train on another set or split"):
        cli.check_values("grpo", values)
    values |= {"model": "m", "output_dir": "o"}
    cli.check_values("eval", values)


def test_an_evaluation_set_that_cannot_be_read_is_named(hub):
    hub("some/set", "train", [{"problem": "A?", "answer": "1"}])
    with pytest.raises(ValueError, match="decontaminate_against=some/other@dev: it cannot be read"):
        load_problems(ProblemConfig("some/set", decontaminate_against=["some/other@dev"]))
