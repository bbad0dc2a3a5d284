"""On a CUDA device: packed rows against padded ones by its kernels, and a push of weights into a colocated vLLM."""

import json

import pytest
import torch

from tests.support.paths import ROOT

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128])
def test_packed_rows_are_as_near_to_float64_as_padded_rows(monkeypatch, width, dtype):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_check_attention import RAGGED, parity_errors

    for packed, padded in parity_errors(width, dtype, RAGGED).values():
        assert packed <= 2 * padded < 1


@pytest.mark.vllm
@pytest.mark.distributed
def test_a_push_brings_the_engine_to_the_trainers_weights(launch, tmp_path):
    keys = {"use_cpu": False, "bf16": True, "vllm_dtype": "bfloat16", "vllm_gpu_memory_utilization": 0.3}
    out, model = tmp_path / "out.json", "recipes/tiny/models/base"
    launch("tests/programs/joint_step.py", out, model, json.dumps(keys))
    found = json.loads(out.read_text())
    assert found["synced"][0] < min(0.05, 0.5 * found["stale"][0])
