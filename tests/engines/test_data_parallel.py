"""Copies of a model in processes of their own: the same completions, whatever becomes of a copy."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gsr_rl.engines.base import Request, Sampling
from gsr_rl.engines.open import DataParallelEngine, _Copy, _devices, open_engine
from tests.support.paths import ROOT

PROMPTS = [[5 + i, 6, 7 + i % 3] + [8] * (i % 5) for i in range(24)]
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12)


def opened(model, kind="transformers", copies=2):
    return open_engine(kind, model, dtype="float32", data_parallel_size=copies, max_num_seqs=4)


@pytest.mark.slow
def test_two_copies_share_the_work_and_agree_with_one(tiny_model):
    with open_engine("transformers", tiny_model, dtype="float32") as one:
        expected = one.generate(PROMPTS, GREEDY)
    with opened(tiny_model) as two:
        assert two.generate(PROMPTS, GREEDY) == expected
        sampled = two.generate(PROMPTS, Sampling(n=4, max_tokens=12))
        assert [len(group) for group in sampled] == [4] * 24
        assert two.counts["requests"] == 48 and two.max_model_length == 512
        pids = [copy.process.pid for copy in two._copies]
        by_copy = {len(copy.held) for copy in two._copies}
        assert by_copy == {0}
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_copy_that_dies_gives_its_requests_to_the_other(tiny_model, capsys):
    with open_engine("transformers", tiny_model, dtype="float32") as one:
        expected = [group[0] for group in one.generate(PROMPTS, GREEDY)]
    requests = [Request(index, ids, GREEDY) for index, ids in enumerate(PROMPTS)]
    found = {}
    with opened(tiny_model) as two:
        for number, result in enumerate(two.stream(requests)):
            assert result.key not in found
            found[result.key] = result.completions[0]
            if number == 2:
                two._copies[0].process.kill()
        assert len(two._copies) == 1
        assert [found[index] for index in range(24)] == expected
    assert "has died (exit code -9); 1 left take its" in capsys.readouterr().out


def test_copies_that_die_together_give_their_requests_to_the_one_that_is_left():
    copies = []
    for number in range(3):
        ours, theirs = multiprocessing.Pipe()
        copies.append(_Copy(SimpleNamespace(name=f"copy {number}", join=lambda _: None, exitcode=-9), ours))
        copies[-1].theirs = theirs
    engine = DataParallelEngine.__new__(DataParallelEngine)
    engine._copies, engine._last_error = list(copies), ""
    for number in range(9):
        engine._submit(Request(number, [1], GREEDY))
    for copy in copies[:2]:
        copy.theirs.close()
    while len(engine._copies) > 1:
        assert engine._step() == []
    assert engine._copies == copies[2:] and set(copies[2].held) == set(range(9))


@pytest.mark.slow
def test_with_no_copy_left_the_job_ends(tiny_model):
    requests = [Request(index, ids, GREEDY) for index, ids in enumerate(PROMPTS)]
    with opened(tiny_model) as two, pytest.raises(RuntimeError, match="every copy of the engine has died"):
        for _ in two.stream(requests):
            for copy in two._copies:
                copy.process.kill()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):  # no weights
        shutil.copy(ROOT / "recipes/tiny/models/base" / name, tmp_path)
    with pytest.raises(RuntimeError, match=f"{tmp_path}: a copy could not be loaded: "):
        opened(str(tmp_path))


@pytest.mark.slow
def test_the_copies_end_with_a_process_that_is_killed(tiny_model, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\nfrom gsr_rl.engines.open import open_engine\n"
        "if __name__ == '__main__':\n"
        "    engine = open_engine('transformers', sys.argv[1], data_parallel_size=2)\n"
        "    print(*[copy.process.pid for copy in engine._copies], flush=True)\n    time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script), tiny_model], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(_alive, pids))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, pids))


def test_gpus_are_dealt_out_in_blocks(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _devices(4, 2) == ["0,1", "2,3", "4,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-abc")
    assert _devices(3, 1) == ["3", "5", "GPU-abc"]
    with pytest.raises(ValueError, match=r"needs 4 GPUs, 3 are visible: set data_parallel_size to at most 1"):
        _devices(2, 2)


@pytest.mark.vllm
@pytest.mark.slow
def test_two_copies_of_vllm_agree_with_one(tiny_model):
    with open_engine("vllm", tiny_model, dtype="float32", max_num_seqs=8) as one:
        expected = one.generate(PROMPTS, GREEDY)
    with opened(tiny_model, "vllm") as two:
        assert two.generate(PROMPTS, GREEDY) == expected
