"""The evaluation with real vLLM: every method on the tiny world, and 20 rows of each benchmark with a small LLM."""

import json

import pytest

from gsr_rl.report.samples import read_samples
from tests.support.benchmark_rows import path_of
from tests.support.fixed_engine import run_recipe
from tests.support.paths import ROOT

METHODS = ["selfref", "selfref_none", "selfref_foreign", "rounds", "select", "best_of_n", "weighted_vote", "orders"]
COMPOSED = {"flat_sizes": [2], "pool_sizes": [5]}  # with K = 4: a tree of two refinements and one over both


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """The tiny base model with a random head for scores: its path."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base, path = ROOT / "recipes/tiny/models/base", tmp_path_factory.mktemp("reward")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


@pytest.mark.vllm
def test_every_method_through_vllm_in_the_tiny_world(reward_model, tmp_path, monkeypatch):
    keys = {"config": ROOT / "recipes/tiny/eval.yaml", "output_dir": tmp_path, "max_problems": 40}
    keys |= {"model": ROOT / "recipes/tiny/models/base", "reward_model": reward_model} | COMPOSED
    keys |= {"methods": [*METHODS, "flat", "refine_and_vote", "tree"]}
    run_recipe(monkeypatch, "eval", **keys)
    header, rows = read_samples(tmp_path / "samples.parquet")
    orders = sum(row["method"] == "orders" for row in rows)  # of problems whose set can be shown in another one
    assert header["versions"]["vllm"] and len(rows) - orders == 40 * (5 + 3 + 2 * 4 + 1 + 1 + 5 + 3)
    assert 30 * 4 < orders <= 40 * 4 and orders % 4 == 0
    assert {row["tokens"] > 0 for row in rows if not row["skipped"]} == {True}
    assert sum(row["score"] is not None for row in rows) == 200
    summary = json.loads((tmp_path / "eval.json").read_text())
    values = summary["benchmarks"]["tiny/mix"]
    wanted = {"pass@1", "pass@4", "maj@4", "maj@5", "maj@tokens", "selfref@4", "refinement_gap", "selfref_none"}
    wanted |= {"selfref_foreign", "rounds_1", "rounds_2", "select@4", "best_of@4", "weighted_maj@4", "fix_rate"}
    wanted |= {"order_disagreement", "resample_disagreement", "copy_rate", "novel_answer"}
    wanted |= {"selfref@2", "refine_and_vote@5", "maj@tokens@5", "tree@5", "verdict@4"}
    assert wanted <= set(values) and 0.2 < values["pass@1"]["value"] < 0.7
    assert all((tmp_path / f"scaling.{kind}").is_file() for kind in ("json", "png"))
    assert summary["power"]["tiny/mix"] and (tmp_path / "report.html").stat().st_size > 20_000


SMOLLM2 = ROOT / "runs" / "SmolLM2-135M-Instruct"
FILES = {
    "aime24": "aime24",
    "aime25": "aime25",
    "amc23": "amc23",
    "math500": "math500",
    "olympiadbench": "olympiadbench",
    "gsm8k": "gsm8k_test",
    "knights_knaves/4": "knights_knaves_4",
    "knights_knaves/4/choice": "knights_knaves_4",
}


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)  # ten minutes did not suffice on two cores with AVX2 alone
def test_20_rows_of_every_benchmark_with_a_small_llm_to_a_full_report(tmp_path, monkeypatch):
    if not SMOLLM2.is_dir():
        pytest.skip(f"{SMOLLM2} is not here: make smollm2")
    files = ", ".join(f"{name}: {path_of(file)}" for name, file in FILES.items())
    keys = {"benchmarks": list(FILES), "benchmark_files": f"{{{files}}}", "max_problems": 20, "model": SMOLLM2}
    keys |= {"output_dir": tmp_path, "num_candidates": 2, "num_generations": 3, "max_completion_length": 48}
    keys |= {"max_refinement_prompt_length": 900, "unfinished_candidates": "cut", "engine_dtype": "float32"}
    keys |= {"max_model_length": 1024, "temperature": 0.6, "refinement_temperature": 0.6, "methods": METHODS[:5]}
    run_recipe(monkeypatch, "eval", **keys)
    summary = json.loads((tmp_path / "eval.json").read_text())
    assert set(summary["benchmarks"]) == set(FILES) and summary["num_problems"] == 20 * len(FILES)
    assert all(one["pass@1"]["n"] == one["selfref@2"]["n"] == 20 for one in summary["benchmarks"].values())
    page = (tmp_path / "report.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in FILES)
