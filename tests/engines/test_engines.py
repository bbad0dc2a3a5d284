"""The seam to engines: order, limits, ends, and two engines one after the other in one process."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gsr_rl.engines import open as open_module
from gsr_rl.engines.base import Request, Sampling
from gsr_rl.engines.local import set_vllm_environment
from gsr_rl.engines.open import _devices, copies_that_fit, open_engine
from tests.support.fixed_engine import FixedEngine

PROMPTS = [[5, 6, 7], [8] * 30, [9, 10]]


def check_engine(engine):
    completions = engine.generate(PROMPTS, Sampling(n=8, temperature=1.0, max_tokens=40))
    assert [len(group) for group in completions] == [8, 8, 8]
    end = engine.tokenizer.eos_token_id
    flat = [completion for group in completions for completion in group]
    for completion in flat:
        assert completion.finished == (completion.token_ids[-1] == end)
        assert completion.finished or len(completion.token_ids) == 40
        assert end not in completion.token_ids[:-1]
        assert completion.text == engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert len({tuple(completion.token_ids) for completion in flat}) > 12, "samples differ"
    greedy = engine.generate(PROMPTS, Sampling(n=2, temperature=0.0, max_tokens=5))
    assert [[a.token_ids == b.token_ids for a, b in [group]] for group in greedy] == [[True]] * 3
    assert engine.generate(PROMPTS[::-1], Sampling(n=1, temperature=0.0, max_tokens=5))[0][0] == greedy[2][0]
    with pytest.raises(ValueError, match=r"prompt 1 has 30 tokens, with max_tokens=500 .* context of 512 tokens"):
        engine.generate(PROMPTS, Sampling(max_tokens=500))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine.generate([[]], Sampling())
    assert engine.generate([], Sampling()) == []
    return [completion.token_ids for completion in flat]


def test_transformers_engine(tiny_model):
    with open_engine("transformers", tiny_model, seed=1) as engine:
        check_engine(engine)


@pytest.mark.vllm
def test_two_vllm_engines_one_after_the_other_and_the_seed_counts(tiny_model):
    streams = []
    for seed in (1, 2, 1):
        with open_engine("vllm", tiny_model, seed=seed, dtype="float32") as engine:
            streams.append(check_engine(engine))
    assert streams[0] != streams[1]
    assert streams[0] == streams[2]


@pytest.mark.vllm
def test_engines_agree_on_the_greedy_completion(tiny_model):
    texts = []
    for kind in ("vllm", "transformers"):
        with open_engine(kind, tiny_model, dtype="float32") as engine:
            texts.append(engine.generate(PROMPTS, Sampling(temperature=0.0, max_tokens=12)))
    assert texts[0] == texts[1]


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(ValueError, match="engine='sglang' is not known: use one of"):
        open_engine("sglang", "model")


@pytest.mark.parametrize(
    ("installed", "gpu", "problems", "size", "kind"),
    [
        (True, False, 1, 10, "transformers"),
        (True, False, 2, 10, "vllm"),
        (True, False, None, 10, "vllm"),  # a `Solver`, which does not know how many come
        (True, True, 1, 10, "vllm"),
        (True, False, 1, 11, "vllm"),
        (True, False, 1, None, "vllm"),  # on the Hub, or an adapter of a model whose size nobody knows
        (False, True, 2, 11, "transformers"),
    ],
)
def test_the_engine_that_is_chosen_starts_soon_for_one_problem_of_a_small_model_on_a_cpu(
    installed, gpu, problems, size, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(open_module, "find_spec", lambda name: installed)
    monkeypatch.setattr(open_module, "has_gpu", lambda: gpu)
    monkeypatch.setattr(open_module, "SMALL_BYTES", 10)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"few")
    for part in range(2 if size else 0):
        (tmp_path / f"model-0000{part}-of-00002.safetensors").write_bytes(b"." * (size - 4 if part else 4))
    assert open_module.automatic_kind(str(tmp_path), problems) == kind


def test_the_tokenizer_is_loaded_once_for_transformers(tiny_model, monkeypatch):
    loads, load = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *words, **keys: loads.append(words) or load(*words, **keys)
    )
    with open_engine("transformers", tiny_model):
        assert len(loads) == 1


def test_importing_the_seam_imports_no_engine():
    code = "import sys, gsr_rl.engines.base; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_stream_reads_requests_only_as_there_is_room_and_gives_each_back_once():
    read = 0

    def requests():
        nonlocal read
        for index in range(50):
            read += 1
            yield Request(index, tokenizer_ids("38+1"), Sampling(n=1 + index % 7))

    engine, seen = FixedEngine(), []
    engine.capacity = 12
    for result in engine.stream(requests()):
        seen.append(result.key)
        assert len(result.completions) == 1 + result.key % 7
        assert engine.load < 12 + 7 and read - len(seen) <= 12 + 1
    assert sorted(seen) == list(range(50)) and engine.counts["requests"] == 50


def tokenizer_ids(problem: str) -> list[int]:
    return FixedEngine().tokenizer.encode(problem)


def test_one_transformers_stream_holds_several_ways_to_sample(tiny_model):
    ways = [Sampling(n=2, max_tokens=4), Sampling(n=1, temperature=0.0, max_tokens=7), Sampling(n=3, max_tokens=2)]
    requests = [Request(index, PROMPTS[index % 3], ways[index % 3]) for index in range(9)]
    with open_engine("transformers", tiny_model) as engine:
        found = {result.key: result.completions for result in engine.stream(requests)}
    for request in requests:
        assert len(found[request.key]) == request.sampling.n
        assert all(len(one.token_ids) <= request.sampling.max_tokens for one in found[request.key])
    assert found[1] == found[4] == found[7], "greedy"


VLLM_READS = ("PYTORCH_NVML_BASED_CUDA_CHECK", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_USE_FLASHINFER_SAMPLER")


@pytest.fixture
def machine_with_a_gpu(monkeypatch):
    """The environment of a machine whose CUDA device must be asked for without initializing it; no nvcc."""

    def available() -> bool:
        assert os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") == "1", "asked in a way that breaks a fork after it"
        return True

    for name in (*VLLM_READS, "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING", "TORCH_COMPILE_DISABLE",
                 "ACCELERATE_USE_CPU", "CUDA_HOME"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what is set below goes again
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    return monkeypatch


def test_on_a_gpu_vllm_spawns_its_processes_and_does_without_a_compiler(machine_with_a_gpu):
    assert not set_vllm_environment()
    assert [os.environ[name] for name in VLLM_READS] == ["1", "spawn", "0"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


def test_what_the_user_has_set_stays(machine_with_a_gpu):
    machine_with_a_gpu.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    machine_with_a_gpu.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    set_vllm_environment()
    assert [os.environ[name] for name in VLLM_READS] == ["1", "fork", "1"]


def test_with_nvcc_flashinfer_may_compile_its_sampler(machine_with_a_gpu):
    machine_with_a_gpu.setenv("CUDA_HOME", "/opt/cuda")
    folder = f"/opt/cuda{os.sep}bin"
    machine_with_a_gpu.setattr(
        shutil, "which", lambda name, path: f"{folder}/nvcc" if name == "nvcc" and folder in path else None
    )
    set_vllm_environment()
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in os.environ


@pytest.mark.parametrize("by_launcher", [False, True])
def test_use_cpu_counts_on_a_machine_with_a_gpu(machine_with_a_gpu, by_launcher):
    if by_launcher:
        machine_with_a_gpu.setenv("ACCELERATE_USE_CPU", "True")  # as accelerate launch has it
    assert set_vllm_environment(use_cpu=not by_launcher)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ


def test_copies_are_counted_without_initializing_cuda(machine_with_a_gpu):
    machine_with_a_gpu.setattr(torch.cuda, "device_count", lambda: 8)
    assert copies_that_fit(2) == 4
    assert _devices(1, 2) == ["0,1"]


def test_cuda_is_asked_for_in_one_place():
    asking = re.compile(r"cuda\.is_available\(")
    places = [path.name for path in Path("gsr_rl").rglob("*.py") if asking.search(path.read_text(encoding="utf-8"))]
    assert places == ["local.py"]
