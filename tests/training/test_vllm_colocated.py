"""The colocated engine's requests, through TRL's own `generate`, with a stand-in for vLLM's engine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl.generation.vllm_generation import VLLMGeneration

from gsr_rl.training import vllm_colocated
from gsr_rl.training.vllm_colocated import ColocatedVLLM, RequestStream, engine_in_place

pytest.importorskip("vllm", reason="TRL imports vLLM's sampling parameters")
N = 3


class Engine:
    """Answers each request with as many completions as it asks for, each [prompt's first token, number]."""

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked = [prompt["prompt_token_ids"] for prompt in prompts], sampling_params.n
        return [
            SimpleNamespace(
                prompt_token_ids=ids,
                outputs=[
                    SimpleNamespace(
                        token_ids=[ids[0], number], logprobs=[{7: SimpleNamespace(rank=1, logprob=-float(number))}] * 2
                    )
                    for number in range(sampling_params.n)
                ],
            )
            for ids in (prompt["prompt_token_ids"] for prompt in prompts)
        ]


def engine() -> ColocatedVLLM:
    made = object.__new__(ColocatedVLLM)
    vars(made).update(
        accelerator=None, llm=Engine(), mode="colocate", tensor_parallel_size=1, enable_sleep_mode=False, logprobs=0,
        temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0, max_completion_length=4,
        structured_outputs_regex=None, generation_kwargs={"min_tokens": 1}, model=torch.nn.Linear(1, 1),
    )  # fmt: skip
    made.llm.llm_engine = None
    return made


def test_a_prompt_is_sent_once_for_all_its_completions_and_the_rows_come_in_the_batchs_order():
    made = engine()
    prompts = [[1, 2]] * N + [[5]] * N
    prompt_ids, completions, logprobs, _ = made.generate(prompts, None, N)
    assert made.llm.asked == ([[1, 2], [5]], N)
    assert prompt_ids == prompts
    assert completions == [[1, 0], [1, 1], [1, 2], [5, 0], [5, 1], [5, 2]]
    assert [row[0] for row in logprobs] == [[-0.0], [-1.0], [-2.0]] * 2
    assert made.generation_kwargs == {"min_tokens": 1}


@pytest.mark.parametrize("kwargs", [{"stop": ["so"]}, {"structured_outputs": {"regex": "[0-9]+"}}])
def test_what_needs_text_goes_in_two_waves_and_the_rest_is_streamed(kwargs):
    made = engine()
    assert isinstance(made.stream(), RequestStream)
    made.generation_kwargs |= kwargs
    assert made.stream() is None
    made.generate([[1, 2]] * N, None, N)  # as TRL asks it


def test_a_sleeping_engine_is_woken_and_put_to_sleep_once_around_many_calls():
    made, calls = engine(), []
    made.enable_sleep_mode, made._llm_weights_sleeping = True, False
    made.llm.wake_up, made.llm.sleep = lambda tags: calls.append(tags), lambda level: calls.append(level)
    with made.awake():
        for _ in range(3):
            with made.awake():
                made.generate([[1, 2]] * N, None, N)
    assert calls == [["kv_cache"], 2]
    assert made.enable_sleep_mode and made._llm_weights_sleeping


def test_ranks_that_share_an_engine_give_its_requests_the_same_seeds(monkeypatch):
    """Each rank's vLLM draws them from numpy's global generator, which the ranks have used differently."""

    class Drawing(Engine):
        def generate(self, prompts, sampling_params, use_tqdm):
            self.seeds = [int(np.random.randint(-(2**63), 2**63 - 1)) for _ in prompts]
            return super().generate(prompts, sampling_params, use_tqdm)

    first_ranks: list[int] = []

    def broadcast(values, group, group_src):
        if rank == 0:
            first_ranks[:] = values
        values[:] = first_ranks

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda out, prompts, group: out.__setitem__(
        slice(None), [prompts] * len(out)))  # fmt: skip
    states = [np.random.RandomState(number).get_state() for number in range(2)]
    seeds = [[], []]
    before = np.random.get_state()
    try:
        for _ in range(2):
            for rank in range(2):
                np.random.set_state(states[rank])
                made = engine()
                vars(made).update(llm=Drawing(), tensor_parallel_size=2, tp_group="both")
                made.generate([[1, 2]] * N, None, N)
                seeds[rank].append(made.llm.seeds)
                expected = np.random.RandomState()
                expected.set_state(states[rank])
                expected.randint(2**31)
                states[rank] = np.random.get_state()
                assert states[rank][2] == expected.get_state()[2]  # one number further, whatever the engine drew
    finally:
        np.random.set_state(before)
    assert seeds[0] == seeds[1] and len(seeds[0][0]) == 2 * N
    assert seeds[0][0] != seeds[0][1], "the next call has others"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_trainers_threads_come_back_after_vllm_has_left_one(monkeypatch, device):
    made, threads = engine(), [8]
    made.seed, made.engine_options = 0, {}
    made.accelerator = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: threads.append(1))
    made._init_vllm()
    assert threads == ([8, 1, 8] if device == "cuda" else [8, 1])  # on a CPU vLLM has bound its threads to cores


def colocated(tmp_path, use_cpu: bool) -> SimpleNamespace:
    return SimpleNamespace(use_vllm=True, vllm_mode="colocate", use_cpu=use_cpu, vllm_enforce_eager=None,
                           vllm_dtype="auto", seed=0, output_dir=str(tmp_path))  # fmt: skip


@pytest.mark.parametrize("use_cpu", [False, True])
def test_use_cpu_counts_for_the_engine_on_a_machine_with_a_gpu(monkeypatch, tmp_path, use_cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: True))
    for name in ("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_USE_FLASHINFER_SAMPLER", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(name, "")
    with engine_in_place(colocated(tmp_path, use_cpu)):
        options = vllm_colocated.grpo_trainer.VLLMGeneration.keywords["engine_options"]
    assert options == {"dtype": "auto", "enforce_eager": use_cpu}
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))
    if use_cpu:
        with pytest.raises(ValueError, match="use_cpu=true with use_vllm=true: the installed vLLM is built for GPUs"):
            engine_in_place(colocated(tmp_path, use_cpu)).__enter__()
