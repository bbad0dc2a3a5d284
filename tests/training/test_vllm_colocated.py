"""The colocated engine's requests, through TRL's own `generate`, with a stand-in for vLLM's engine."""

from types import SimpleNamespace

import pytest
import torch

from gsr_rl.training.vllm_colocated import ColocatedVLLM, RequestStream

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
