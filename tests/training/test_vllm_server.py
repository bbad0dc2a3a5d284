"""Training against a real vLLM server on loopback: its weights follow the trainer's, and its end is a clear error."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import torch

from gsr_rl.training.server_requests import Servers, ServerStream
from gsr_rl.training.vllm_colocated import longest_request
from tests.support.paths import ROOT
from tests.support.vllm_stand_in import StandIn
from tests.training.test_rollout import TOKENIZER, Trainer, differing

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


@pytest.fixture
def engine(tmp_path, monkeypatch, tiny_model):
    """`engine(*servers)`: the engine of a trainer on a CPU, connected to these stand-ins or servers."""
    from transformers import AutoModelForCausalLM

    from gsr_rl.training.vllm_server import ServerVLLM

    def make(*servers, device="cpu", path=tiny_model, **values):
        made = object.__new__(ServerVLLM)
        accelerator = SimpleNamespace(device=torch.device(device), is_main_process=True, process_index=0)
        accelerator.unwrap_model = lambda model: model
        model = AutoModelForCausalLM.from_pretrained(path)
        vars(made).update(
            accelerator=accelerator, model=model, request_timeout=5.0, sync_seconds=0.0, server_timeout=1.0,
            server_base_url=[server.url for server in servers], temperature=1.0, top_p=1.0, top_k=0, min_p=None,
            repetition_penalty=1.0, max_completion_length=4, structured_outputs_regex=None, generation_kwargs={},
            longest_request=256, exchange_folder=tmp_path / "weights", _told=set(), _look=None, _weight_metadata=None,
        )  # fmt: skip
        vars(made).update(values)
        made._iter_named_params = lambda: iter(model.named_parameters())
        made._init_vllm()
        return made

    return make


@pytest.fixture
def reports(monkeypatch):
    """What the other ranks tell: a list that a test fills, of (problem, lost servers)."""
    others = []
    monkeypatch.setattr("gsr_rl.training.vllm_server.gather_object", lambda mine: [*mine, *others])
    return others


def test_the_servers_contexts_are_known_and_one_too_small_for_the_run_is_refused(engine):
    with StandIn(max_model_len=300) as first, StandIn(max_model_len=256) as second:
        assert engine(first, second).context_length == 256
        with pytest.raises(
            RuntimeError, match=rf"{second.url}: its context is 256 .* start it with --max-model-len 257"
        ):
            engine(first, second, longest_request=257)


def test_a_server_that_is_away_or_does_not_tell_its_version_is_refused_at_the_start(engine):
    with StandIn() as server, StandIn() as away:
        away.kill()
        with pytest.raises(RuntimeError, match=rf"{away.url} can't be reached after 1 s"):
            engine(server, away)
        server.faults["/server_info"] = ["hang"]
        with pytest.raises(RuntimeError, match=rf"{server.url}: no answer within 1 s"):
            engine(server)
        server.faults["/weight_info"] = [404]
        with pytest.raises(RuntimeError, match=r"does not tell its weights' version, .*VLLM_SERVER_DEV_MODE=1"):
            engine(server)


def test_trl_is_told_of_the_server_whose_log_probabilities_would_bias_the_ratio(engine):
    with StandIn() as first, StandIn() as second:
        for mode in ("processed_logprobs", "raw_logprobs"):
            second.logprobs_mode = mode
            info = engine(first, second).vllm_client.get_server_info()
            assert info["model_config"]["logprobs_mode"] == mode


def test_a_push_reaches_all_servers_which_stand_still_meanwhile_and_echo_its_version(engine):
    with StandIn() as first, StandIn() as second:
        pushing = engine(first, second)
        for number in (1, 2):
            pushing.sync_weights()
            version = f"{pushing.servers.run}-{number}"
            assert first.version == second.version == version and first.pushes[-1] == second.pushes[-1] == version
        push = ["/pause", "/collective_rpc", "/update_weight_version", "/resume"]
        assert first.calls == second.calls == push * 2
        assert not pushing.exchange_folder.exists() and pushing.sync_seconds > 0


def test_a_push_keeps_what_is_in_flight_with_its_caches_which_new_requests_do_not_find(engine):
    with StandIn(seconds=0.3) as server:
        pushing = engine(server)
        pushing.sync_weights()
        with pushing.stream() as stream:
            stream.add([7], 2, 4)
            while not server.in_flight:
                time.sleep(0.01)
            pushing.sync_weights()
            assert stream.step() == [("0", [[5, 6], [5, 6]], [[-0.5, -0.5]] * 2)]
            stream.add([7], 2, 4)
            stream.step()
        assert server.calls.count("/v1/completions") == 2
        assert server.pauses == [{"mode": "keep", "clear_cache": "false"}] * 2
        assert server.salts == [f"{pushing.servers.run}-1", f"{pushing.servers.run}-2"]


@pytest.mark.parametrize(
    "path, fault, why",
    [
        ("/collective_rpc", "hang", "no answer within 1 s"),
        ("/collective_rpc", 500, "it does not take new weights"),
        ("/collective_rpc", {"results": ["an older version"]}, r"have read \['an older version'\]"),
        ("/weight_info", {"weight_version": "another-run-3"}, "says that it has the weights another-run-3"),
    ],
)
def test_a_server_that_fails_in_a_push_is_lost_and_the_run_goes_on_with_the_others(engine, path, fault, why, caplog):
    with StandIn() as failing, StandIn() as other:
        pushing = engine(failing, other, request_timeout=1.0)
        pushing.sync_weights()
        failing.faults[path] = [fault]
        start = time.monotonic()
        pushing.sync_weights()
        assert time.monotonic() - start < 5
        assert re.search(why, pushing.servers.lost[failing.url]) and pushing.servers.alive[0].url == other.url
        pushing.generate([[1]] * 8, None, 2)
        assert len(other.prompts) == 4 and not failing.prompts
        told = [record for record in caplog.records if "its requests go to the others" in record.message]
        assert len(told) == 1 and failing.url in told[0].message
        for server in (failing, other):
            server.faults["/collective_rpc"] = [500]
        with pytest.raises(RuntimeError, match=r"failed in pushing weights: no vLLM server is left .*Checkpoints are"):
            pushing.sync_weights()


def test_a_lost_server_that_answers_again_gets_weights_and_then_requests(engine, caplog):
    """Not one that another run has taken meanwhile, nor one whose context has become too small."""
    with StandIn() as other, StandIn() as dying, StandIn() as taken, StandIn() as small:
        pushing = engine(other, dying, taken, small)
        pushing.sync_weights()
        for server in (dying, taken, small):
            server.kill()
        pushing.generate([[1]] * 8, None, 1)
        pushing.sync_weights()
        assert {*pushing.servers.lost} == {dying.url, taken.url, small.url}
        with StandIn(port=dying.port) as again, StandIn(port=taken.port) as foreign, StandIn(port=small.port) as less:
            foreign.version, less.max_model_len = "gsr-0123456789ab-7", 255
            for _ in range(3):  # looked at beside the update, pushed to with the next one
                pushing.sync_weights()
                pushing._look.result(10)
            assert {*pushing.servers.lost} == {foreign.url, less.url} and not foreign.pushes + less.pushes
            assert again.version == f"{pushing.servers.run}-{pushing.servers.pushed}" == other.version
            pushing.generate([[1]] * 8, None, 1)
            assert len(again.prompts) == 4 and "/v1/completions" not in again.calls[: again.calls.index("/resume")]
            assert sum("is back" in record.message for record in caplog.records) == 1
            again.kill()
            pushing.sync_weights()
            told = [record.message for record in caplog.records if "go to the others" in record.message]
            assert sum(again.url in message for message in told) == 2, "lost a second time"


def test_the_first_push_refuses_a_server_that_was_started_otherwise(engine):
    with StandIn() as server, StandIn() as plain:
        plain.faults["/collective_rpc"] = [500]
        with pytest.raises(
            RuntimeError, match=rf"{plain.url}: it does not take .*gsr_rl.server_worker.ReloadFromDisk"
        ):
            engine(server, plain).sync_weights()


def test_another_ranks_error_is_raised_here_and_what_it_has_lost_is_lost_here(engine, reports):
    with StandIn() as first, StandIn() as second:
        sampling = engine(first, second)
        reports.append((None, {second.url: "refused"}))
        assert sampling.on_all_ranks("sampling", lambda: 7) == 7
        assert sampling.servers.lost == {second.url: "refused"}
        reports[0] = ("no vLLM server is left", {})
        with pytest.raises(RuntimeError, match=r"failed in sampling: no vLLM server is left \(rank 1\)"):
            sampling.on_all_ranks("sampling", lambda: 7)


def test_completions_have_the_shape_of_trls_and_the_prompts_their_order(engine):
    with StandIn(lambda ids, place: [ids[0], place]) as server:
        sampling = engine(server, structured_outputs_regex="[0-9]+", generation_kwargs={"stop": ["x"]})
        sampling.sync_weights()
        prompts, ids, logprobs, tokens = sampling.generate([[7], [7], [8], [8]], None, 2)
    assert prompts == [[7], [7], [8], [8]] and ids == [[7, 0], [7, 1], [8, 0], [8, 1]]
    assert logprobs == [[[-0.5], [-0.5]]] * 4 and tokens[3] == [[8], [1]]
    body = sampling.stream()._sampling
    assert body["structured_outputs"] == {"regex": "[0-9]+"} and body["stop"] == ["x"]


def test_weights_by_nccl_go_to_one_server_after_another_and_a_transfer_that_fails_names_it(engine, monkeypatch):
    from vllm.distributed.weight_transfer import packed_tensor

    from gsr_rl.training.vllm_server import ServerVLLM

    sent = []

    def broadcast(iterator, group, src, post_iter_func):
        sent.append((group, len(list(iterator))))

    monkeypatch.setattr(packed_tensor, "packed_nccl_broadcast_producer", broadcast)
    monkeypatch.setattr(
        ServerVLLM, "_open_group", lambda self, server: SimpleNamespace(communicator=f"group {server.number}")
    )
    with StandIn() as first, StandIn() as second:
        pushing = engine(first, second, device="cuda")
        pushing.sync_weights()
        tensors = len(list(pushing.model.named_parameters()))
        assert sent == [("group 0", tensors), ("group 1", tensors)]
        push = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
        assert first.calls == second.calls == push
        assert first.version == second.version == f"{pushing.servers.run}-1"
        second.faults["/update_weights"] = [500]
        with pytest.raises(RuntimeError, match=rf"pushing weights: {second.url}: .*fault 500"):
            pushing.sync_weights()
        first.kill()  # before a transfer that would hang
        second.faults.clear()
        pushing.sync_weights()
        assert list(pushing.servers.lost) == [first.url]


def test_the_longest_request_is_a_refinement_or_a_candidate():
    limits = {"max_completion_length": 100, "max_refinement_prompt_length": 200, "max_refinement_length": 50}
    assert longest_request(SimpleNamespace(refinement_weight=1.0, **limits)) == 250
    assert longest_request(SimpleNamespace(refinement_weight=0.0, **limits)) == 101
    assert longest_request(SimpleNamespace(refinement_weight=1.0, **limits | {"max_completion_length": 300})) == 301


@pytest.mark.parametrize("overrides", [{}, {"num_candidate_sets": 2, "candidate_choice": "balanced"}])
def test_streamed_from_servers_and_in_two_waves_make_the_same_blocks(tmp_path, overrides):
    stages = []

    def answer(ids, place):
        prompt = TOKENIZER.decode(ids)
        stages.append("refinement" if "refine" in prompt else "candidate")
        text = differing(prompt, place, stages[-1])
        end = None if text.endswith("...") else TOKENIZER.eos_token_id
        return [*TOKENIZER(text.removesuffix("..."))["input_ids"], end]

    waves = Trainer(tmp_path, differing, rows=8, **overrides)
    expected = [dataclasses.asdict(block) for block in waves.roll()[0]]
    with StandIn(answer, seconds=0.02) as first, StandIn(answer, seconds=0.5) as second:
        servers = Servers([first.url, second.url], 5.0)
        servers.run, first.version, second.version = "run", "run-1", "run-1"
        streamed = Trainer(tmp_path, differing, rows=8, **overrides)
        streamed.stream = lambda: ServerStream(servers, {})
        assert [dataclasses.asdict(block) for block in streamed.roll()[0]] == expected
        assert "candidate" in stages[stages.index("refinement") :]  # refined while others' candidates are sampled
        assert sorted(first.prompts + second.prompts) == sorted(waves.prompts)


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
def test_no_request_after_a_push_finds_what_is_cached_of_older_weights(engine, tmp_path):
    prompt = [5 + place % 20 for place in range(200)]  # longer than a block of the cache, 128 tokens on a CPU
    with serve(tmp_path / "server.log") as (port, _):
        pushing = engine(
            SimpleNamespace(url=f"http://127.0.0.1:{port}"), path=BASE, request_timeout=60.0, server_timeout=60.0
        )

        def error() -> float:
            """How far the log-probability of a completion's token is off that of the trainer's weights."""
            with pushing.stream() as stream:
                stream.add(prompt, 1, 1)
                [(_, [[token]], [[logprob]])] = stream.step()
            with torch.no_grad():
                logits = pushing.model(torch.tensor([prompt])).logits[0, -1]
            return abs(logprob - logits.log_softmax(-1)[token].item())

        pushing.sync_weights()
        assert error() < 1e-3 and error() < 1e-3
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in pushing.model.parameters():
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
        pushing.sync_weights()
        assert error() < 1e-3
        pushing.servers.pushed = 1  # a request of before the push, sent after it
        assert error() > 0.01


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_that_dies_or_lacks_the_extension_is_named_and_the_checkpoint_is_whole(launch, tmp_path):
    with serve(tmp_path / "server.log") as (port, process):
        words = keys(
            tmp_path / "run", port, max_steps=200, save_strategy="steps", save_steps=1, server_request_timeout=60
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
        assert trainer.poll() is None, trainer.communicate()[1][-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        _, errors = trainer.communicate(timeout=60)
        assert trainer.returncode == 1 and time.monotonic() - killed < 30
        assert f"no vLLM server is left (http://127.0.0.1:{port}: " in errors
        newest = max((tmp_path / "run").glob("checkpoint-[0-9]*"), key=lambda path: int(path.name[11:]))
        assert (newest / "trainer_state.json").is_file() and (newest / "optimizer.pt").is_file()
    away = launch("recipes/grpo_gsr.py", *keys(tmp_path / "away", port, vllm_server_timeout=3), expect=1)
    assert "can't be reached" in away
    with serve(tmp_path / "plain.log", extension=[]) as (port, _):
        output = launch("recipes/grpo_gsr.py", *keys(tmp_path / "plain", port), expect=1)
    assert "gsr_rl.server_worker.ReloadFromDisk" in output
