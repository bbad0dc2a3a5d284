"""Training against a real vLLM server on loopback: its weights follow the trainer's, and its end is a clear error."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import requests
import torch

from gsr_rl.training.vllm_colocated import longest_request
from tests.support.paths import ROOT

URL = "http://127.0.0.1:9"
BASE = "recipes/tiny/models/base"
EXTENSION = ["--worker-extension-cls", "gsr_rl.server_worker.ReloadFromDisk"]


@contextlib.contextmanager
def serve(log, extension=EXTENSION):
    """A vLLM server of the tiny base: its port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", BASE, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-num-seqs", "32", *extension]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(0.5)
        yield port, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Session(requests.Session):
    """Tells which context length the server has, and finds nobody at any other address."""

    def get(self, url):
        if not url.endswith("/v1/models"):
            return super().get(url)
        models = {"data": [{"id": "served", "max_model_len": 256}]}
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: models)


class Client:
    """Stands for TRL's client of a server that answers, and has no weight-transfer engine."""

    def __init__(self, base_url, group_port, connection_timeout):
        self.base_url, self.session = base_url, Session()

    def init_communicator(self, device):
        self.deadline = self.session.request.keywords["timeout"]
        raise RuntimeError("no weight-transfer engine")

    def generate(self, **asked):
        self.asked = asked
        return {"completion_ids": [[1], [2]], "logprobs": [[[0.0]]] * 2, "logprob_token_ids": [[[1]], [[2]]]}


@pytest.fixture
def engine(monkeypatch):
    """The engine of a trainer on a GPU, before it connects."""
    from gsr_rl.training import vllm_server as server_engine

    monkeypatch.setattr(server_engine, "VLLMClient", Client)
    made = object.__new__(server_engine.ServerVLLM)
    vars(made).update(
        accelerator=SimpleNamespace(device=torch.device("cuda"), is_main_process=True, process_index=0),
        request_timeout=5.0, sync_seconds=0.0, server_base_url=URL, server_timeout=1.0, group_port=1, logprobs=0,
        temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0, max_completion_length=4,
        structured_outputs_regex="[0-9]+", generation_kwargs={}, longest_request=256,
    )  # fmt: skip
    return made


def test_weights_by_nccl_are_set_up_with_deadlines_and_an_error_reaches_all_ranks(engine):
    with pytest.raises(RuntimeError, match=rf"the vLLM server at {URL} failed \(deadline 5 s .*no weight-transfer"):
        engine._init_vllm()
    assert engine.vllm_client.deadline == 5.0


def test_the_servers_context_is_known_and_one_too_small_for_the_run_is_refused_on_all_ranks(engine):
    engine.accelerator.device = torch.device("cpu")
    engine._init_vllm()
    assert engine.context_length == 256
    engine.longest_request = 257
    with pytest.raises(RuntimeError, match=r"its context is 256 tokens, .* start it with --max-model-len 257"):
        engine._init_vllm()


def test_the_longest_request_is_a_refinement_or_a_candidate():
    limits = {"max_completion_length": 100, "max_refinement_prompt_length": 200, "max_refinement_length": 50}
    assert longest_request(SimpleNamespace(refinement_weight=1.0, **limits)) == 250
    assert longest_request(SimpleNamespace(refinement_weight=0.0, **limits)) == 101
    assert longest_request(SimpleNamespace(refinement_weight=1.0, **limits | {"max_completion_length": 300})) == 301


def test_a_push_by_nccl_first_looks_on_all_ranks_whether_the_server_is_there(engine, monkeypatch):
    from gsr_rl.training.vllm_server import VLLMGeneration

    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: pytest.fail("a push to a server that is away"))
    engine.vllm_client = Client(URL, 1, 1.0)
    with pytest.raises(RuntimeError, match=rf"the vLLM server at {URL} failed"):
        engine.sync_weights()


def test_a_server_is_asked_for_structured_outputs(engine):
    engine.vllm_client = Client(URL, 1, 1.0)
    engine.generate([[7], [7]], None, 2)
    assert engine.vllm_client.asked["structured_outputs_regex"] == "[0-9]+"


def keys(folder, port, **more) -> list[str]:
    values = {
        "config": "recipes/tiny/grpo.yaml",
        "model_name_or_path": BASE,
        "output_dir": folder,
        "vllm_mode": "server",
        "vllm_server_base_url": f"http://127.0.0.1:{port}",
        "vllm_server_timeout": 20,
        "server_request_timeout": 60,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_problems": 50,
        "max_steps": 3,
        "learning_rate": 0.02,
        "warmup_steps": 0,
        "num_examples": 0,
    }
    return [word for key, value in (values | more).items() for word in (f"--{key}", str(value))]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("accelerate", [None, "zero3_cpu"])
def test_the_servers_weights_follow_the_trainers(launch, tmp_path, accelerate):
    with serve(tmp_path / "server.log") as (port, _):
        launch("recipes/grpo_gsr.py", *keys(tmp_path / "run", port), accelerate=accelerate)
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [log for log in logs if "loss" in log]
    assert len(steps) == 3 and steps[0]["grad_norm"] > 0
    for log in steps:  # after two steps of a large rate old weights would be far off
        assert log["candidate/sampling_logp_difference/mean"] < 1e-3
    assert not (tmp_path / "run" / "weights-for-server").exists()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_that_dies_or_lacks_the_extension_is_named_and_the_checkpoint_is_whole(launch, tmp_path):
    with serve(tmp_path / "server.log") as (port, process):
        words = keys(
            tmp_path / "run", port, max_steps=200, save_strategy="steps", save_steps=1, server_request_timeout=5
        )
        trainer = subprocess.Popen(
            [sys.executable, "recipes/grpo_gsr.py", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        deadline = time.monotonic() + 200
        while not list((tmp_path / "run").glob("checkpoint-[0-9]*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        _, errors = trainer.communicate(timeout=60)
        assert trainer.returncode == 1 and time.monotonic() - killed < 30
        assert f"the vLLM server at http://127.0.0.1:{port} failed" in errors
        newest = max((tmp_path / "run").glob("checkpoint-[0-9]*"), key=lambda path: int(path.name[11:]))
        assert (newest / "trainer_state.json").is_file() and (newest / "optimizer.pt").is_file()
    away = launch("recipes/grpo_gsr.py", *keys(tmp_path / "away", port, vllm_server_timeout=3), expect=1)
    assert "can't be reached" in away
    with serve(tmp_path / "plain.log", extension=[]) as (port, _):
        output = launch("recipes/grpo_gsr.py", *keys(tmp_path / "plain", port), expect=1)
    assert "gsr_rl.server_worker.ReloadFromDisk" in output
