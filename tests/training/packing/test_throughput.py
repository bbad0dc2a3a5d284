"""The account of a step: tokens and operations against counts by hand, and what the machine reaches."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gsr_rl.training.packing.batching import stage_parts
from gsr_rl.training.packing.rows import pack_rows
from gsr_rl.training.packing.throughput import (
    StepAccount,
    attended_pairs,
    layer_operations,
    least_saving,
    matmul_rate,
    synchronized_seconds,
    unique_tokens,
)

PROMPT, COMPLETION, ROWS = 5, 4, 3


def packed(least_saving=0):
    """Three completions of four tokens behind one prompt of five."""
    ids = torch.cat([torch.arange(3, 3 + PROMPT).repeat(ROWS, 1), torch.arange(12).view(ROWS, COMPLETION)], dim=1)
    return pack_rows(ids, torch.ones_like(ids), COMPLETION, least_saving)


@pytest.mark.parametrize("least_saving", [0, 1000], ids=["shared", "alone"])
def test_attended_pairs_are_those_of_the_full_mask(least_saving):
    """A completion's last token is not computed: three of its four attend to the prompt and to themselves."""
    rows = packed(least_saving)
    own = sum(PROMPT + place for place in range(1, COMPLETION))
    prompt = sum(range(1, PROMPT + 1))
    expected = prompt + ROWS * own if least_saving == 0 else ROWS * (prompt + own)
    assert sum(attended_pairs(group) for group in rows.groups) == expected


class OneProcess:
    device, num_processes = "cpu", 1

    @staticmethod
    def reduce(tensor, reduction):
        return tensor


def small_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def started(model) -> StepAccount:
    account = StepAccount()
    account.start(model, torch.device("cpu"), torch.float32)
    return account


def test_what_sharing_must_save_is_its_devices_cost_over_a_layers_operations():
    model = small_model()
    assert layer_operations(model) == 6 * LAYER
    assert least_saving(model, "cpu") == 100_000_000 // (6 * LAYER)
    assert least_saving(model, "cuda") == least_saving(model, "xpu") == 40_000_000_000 // (6 * LAYER)


LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # q, k and v, o, the three of the MLP
TOKENS, SCORED, PAIRS = PROMPT + ROWS * (COMPLETION - 1), ROWS * COMPLETION, 15 + ROWS * 21


def test_operations_of_a_small_model_are_those_counted_by_hand():
    account = started(small_model())
    account.add_packed(packed(), with_gradient=True)
    assert account.tokens == TOKENS
    assert account.operations == 3 * (2 * (TOKENS * 2 * LAYER + SCORED * 16 * 8) + 4 * PAIRS * 2 * 8)
    found = account.metrics(0.5, 14, OneProcess)
    assert found["tokens/computed"] == TOKENS and found["tokens/useful"] == 14
    assert found["tokens/per_second"] == 2 * TOKENS
    assert account.tokens == account.operations == 0
    account.add_padded(rows=3, width=9, scored=8, with_gradient=True)
    assert account.operations == 3 * (2 * (27 * 2 * LAYER + 24 * 16 * 8) + 4 * 3 * 45 * 2 * 8)


def test_passes_without_gradient_are_computed_tokens_but_not_part_of_the_updates_speed():
    account = started(small_model())
    account.add_packed(packed(), with_gradient=True)
    before = account.metrics(0.5, 14, OneProcess)
    account.add_packed(packed(), with_gradient=False)
    account.add_packed(packed(), with_gradient=True)
    found = account.metrics(0.5, 14, OneProcess)
    assert found["tokens/computed"] == 2 * TOKENS
    for name in ("tokens/per_second", "speed/matmul_share"):
        assert found[name] == before[name] > 0


def test_frozen_layers_have_no_product_for_the_gradient_of_their_weights():
    from peft import LoraConfig, get_peft_model

    account = started(get_peft_model(small_model(), LoraConfig(r=2, target_modules=["q_proj"])))
    account.add_packed(packed(), with_gradient=True)
    adapter = 8 * 2 + 2 * 8
    layers, head = 2 * (2 * LAYER + 3 * adapter), 2 * 16 * 8
    assert account.operations == 2 * (TOKENS * layers + SCORED * head) + 3 * 4 * PAIRS * 2 * 8


def test_useful_tokens_count_a_stages_prompts_once_and_are_what_one_pass_a_stage_computes():
    def rows(prompt, lengths, stage):
        mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
        return {
            "prompt_ids": torch.tensor([[0] * (5 - len(prompt)) + prompt] * len(lengths)),
            "prompt_mask": torch.tensor([[0] * (5 - len(prompt)) + [1] * len(prompt)] * len(lengths)),
            "completion_ids": torch.full((len(lengths), 6), 3),
            "completion_mask": mask,
            "stage": torch.full((len(lengths),), stage),
        }

    parts = [
        rows([4, 5, 6], [3, 4, 0], 0),
        rows([4, 5, 6], [2], 0),  # the same problem again
        rows([4, 5, 6, 7], [0, 0], 0),  # left out
        rows([7, 8, 9, 1, 2], [1, 6], 1),
    ]
    batch = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert unique_tokens(batch) == (3 + 2 + 3 + 1) + (5 + 0 + 5)
    account = started(small_model())
    for part in stage_parts(batch):
        ids, mask = (
            torch.cat([part[f"{side}_{of}"] for side in ("prompt", "completion")], 1) for of in ("ids", "mask")
        )
        account.add_packed(pack_rows(ids, mask, part["completion_ids"].shape[1]), with_gradient=True)
    assert account.tokens == unique_tokens(batch)


def test_the_matmul_rate_is_what_a_clock_says():
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e9 < rate < 1e16


def test_the_clock_waits_for_a_device_that_works_on_its_own(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    synchronized_seconds(torch.device("cpu"))
    assert waited == []
    synchronized_seconds(torch.device("cuda"))
    assert waited == [torch.device("cuda")]
