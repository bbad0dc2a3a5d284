"""Shared fixtures. Tests that need several processes launch the small programs in tests/programs."""

import os
import subprocess
import sys
from pathlib import Path

# Before torch and vLLM are imported: one thread per worker, and a GiB of cache per engine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gsr_rl.engines.local import has_gpu  # noqa: E402
from tests.support.paths import for_cpu  # noqa: E402
from tests.support.programs import FORKED_RANKS, Program, environment  # noqa: E402

LAUNCHES = {"tests/training/test_trainer.py", "tests/training/test_matrix.py"}

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A small random model with the tiny world's tokenizer: its path. Not Qwen2: AutoTokenizer swaps those."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from gsr_rl.data.tiny_world import build_tokenizer

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        attention_bias=True,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    path = tmp_path_factory.mktemp("tiny_model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory, tiny_model):
    """A random sequence-classification model with the tiny world's tokenizer: its path."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("reward_model")
    config = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Run a Python program, under `accelerate launch` if an accelerate config is named, and return its output.

    `two_on_cpu` runs a configuration for GPUs on two processes without any. accelerate's own `--cpu` would run one.
    `forked` starts it and its ranks where torch, transformers and TRL are imported already.
    Fails with the end of the output on any other exit code than `expect`, and after `timeout` seconds.
    """

    def run(
        *command: str,
        accelerate: str | None = None,
        two_on_cpu: bool = False,
        timeout: int = 400,
        expect: int = 0,
        env: dict | None = None,
        forked: bool = False,
    ) -> str:
        prefix = []
        if accelerate is not None:
            config = ROOT / "accelerate_configs" / f"{accelerate}.yaml"
            if two_on_cpu:
                config = for_cpu(config, tmp_path_factory.mktemp("accelerate"))
            prefix += ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
            prefix += ["--num_processes", "2"] if two_on_cpu else []
        if forked:
            program = Program(*prefix, *command, **FORKED_RANKS, **(env or {}))
            assert program.wait(timeout) == expect, f"exit code {program.wait(0)}\n{program.output()[-6000:]}"
            return program.output()
        done = subprocess.run(
            [sys.executable, *prefix, *map(str, command)],
            cwd=ROOT,
            env=environment(**(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            start_new_session=True,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    return run


def pytest_collection_modifyitems(items):
    """Launches of several processes start first: they take longest. Tests of a GPU are skipped without one."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: item.get_closest_marker("distributed") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run on one worker, with its fixtures; so do the launches of several processes of all files.

    xdist 3.8's own `loadgroup` has no effect under pytest 9.2, which does not read the ids that it gives to tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "launches" if file in LAUNCHES else file

    return ByFile(config, log)
