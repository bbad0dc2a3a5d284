"""The account of a step: tokens and operations against counts by hand, and what the machine reaches."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gsr_rl.packed_rows import pack_rows
from gsr_rl.rollout import Block, CandidateSet, Rollout
from gsr_rl.step_account import StepAccount, attended_pairs, matmul_rate, unique_tokens

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


def test_operations_of_a_small_model_are_those_counted_by_hand():
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    account = StepAccount()
    account.start(LlamaForCausalLM(config), torch.float32)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # q, k and v, o, the three of the MLP
    account.add_packed(packed(), with_gradient=True)
    tokens, scored, pairs = PROMPT + ROWS * (COMPLETION - 1), ROWS * COMPLETION, 15 + ROWS * 21
    assert account.tokens == tokens
    assert account.operations == 3 * (2 * (tokens * 2 * layer + scored * 16 * 8) + 4 * pairs * 2 * 8)
    found = account.metrics(0.5, 20, OneProcess)
    assert found["tokens/computed"] == tokens and found["tokens/useful"] == 20
    assert found["tokens/per_second"] == 2 * tokens
    assert account.tokens == account.operations == 0
    account.add_padded(rows=3, width=9, scored=8, with_gradient=False)
    assert account.operations == 2 * (27 * 2 * layer + 24 * 16 * 8) + 4 * 3 * 45 * 2 * 8


def test_unique_tokens_count_prompts_once_and_only_what_is_trained():
    def rollout(prompt, completion, **more):
        return Rollout([1] * prompt, [2] * completion, None, "", True, correct=1.0, **more)

    sets = [
        CandidateSet([0], refinements=[rollout(30, 7), rollout(30, 8)]),
        CandidateSet([1], refinements=[rollout(40, 1, usable=False)] * 2),  # its prompt did not fit
    ]
    block = Block({}, candidates=[rollout(10, 3), rollout(10, 4), rollout(10, 5, dropped=True)], sets=sets)
    assert unique_tokens([block], ["candidate", "refinement"]) == (10 + 3 + 4) + (30 + 7 + 8)
    assert unique_tokens([block], ["candidate"]) == 17
    assert unique_tokens([block], ["refinement"]) == 45


def test_the_matmul_rate_is_what_a_clock_says():
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e9 < rate < 1e16
