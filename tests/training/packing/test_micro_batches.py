import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.training.packing.batching import packed_tokens, share_out, token_passes


def columns(groups):
    """Of groups (stage, prompt length, completion lengths): prompt_ids, prompt_mask, completion_mask, stage."""
    rows = [(s, number, p, n) for number, (s, p, lengths) in enumerate(groups) for n in lengths]
    width, limit = max(p for _, _, p, _ in rows), max(1, *(n for *_, n in rows))
    prompt_mask = torch.tensor([[0] * (width - p) + [1] * p for _, _, p, _ in rows])
    prompt_ids = prompt_mask * torch.tensor([[number + 1] for _, number, _, _ in rows])
    completion_mask = torch.tensor([[1] * n + [0] * (limit - n) for *_, n in rows])
    return prompt_ids, prompt_mask, completion_mask, torch.tensor([s for s, *_ in rows])


def test_passes_worked_by_hand():
    # Computed tokens: 4+2+3=9 and 5+2+2=9 of stage 0, 10+1+1=12 of stage 1.
    groups = [(0, 4, [3, 4]), (0, 5, [3, 3]), (1, 10, [2, 2])]
    assert token_passes(*columns(groups), 18) == [[0, 1, 2, 3], [4, 5]]
    assert token_passes(*columns(groups), 17) == [[0, 1], [2, 3], [4, 5]]
    # Under 12 the refinements' prompt is computed twice, and no row's own tokens are.
    assert token_passes(*columns(groups), 11) == [[0, 1], [2, 3], [4], [5]]


def test_a_row_that_is_left_out_costs_nothing():
    assert packed_tokens(5, [3, 0, 1]) == 7
    assert packed_tokens(5, [0, 0]) == 0


def test_a_prompt_too_short_to_share_counts_once_a_row():
    assert packed_tokens(5, [3, 0, 4], least_saving=5) == 10
    assert packed_tokens(5, [3, 0, 4], least_saving=6) == 15


GROUPS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 30), st.lists(st.integers(0, 20), min_size=1, max_size=6)),
    min_size=1,
    max_size=8,
)


@given(GROUPS, st.integers(1, 120))
def test_every_row_is_in_one_pass_of_its_stage_within_the_budget(groups, budget):
    groups = sorted(groups, key=lambda group: group[0])
    prompt_ids, prompt_mask, completion_mask, stage = columns(groups)
    passes = token_passes(prompt_ids, prompt_mask, completion_mask, stage, budget)
    assert sorted(row for rows in passes for row in rows) == list(range(len(stage)))
    lengths, owner = completion_mask.sum(1).tolist(), prompt_ids.max(1).values.tolist()
    whole = {name: [row for row in range(len(stage)) if owner[row] == name] for name in owner}
    for rows in passes:
        assert len({stage[row].item() for row in rows}) == 1
        shared = {name: [row for row in rows if owner[row] == name] for name in {owner[row] for row in rows}}
        cost = sum(
            packed_tokens(int(prompt_mask[own[0]].sum()), [lengths[row] for row in own]) for own in shared.values()
        )
        assert cost <= budget or len(rows) == 1
        for name, own in shared.items():
            total = packed_tokens(int(prompt_mask[own[0]].sum()), [lengths[row] for row in whole[name]])
            assert own == whole[name] or total > budget  # only a group over the budget is cut


@pytest.mark.parametrize(("passes", "steps"), [(1, 1), (1, 4), (3, 2), (5, 5), (7, 3)])
def test_passes_keep_their_order_over_steps_and_the_last_step_has_one(passes, steps):
    shares = share_out(list(range(passes)), steps)
    assert len(shares) == steps
    assert [one for share in shares for one in share] == list(range(passes))
    assert shares[-1]
