import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.training.packing.batching import loss_scale, stage_counts, stage_parts, take_rows, window_order


def test_order_worked_by_hand():
    # Two problems, blocks of 2 candidates and 2 refinements, one window: all candidates, then all refinements.
    assert window_order(8, 4, 2, 1).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    # Two windows: each problem is whole in its own window.
    assert window_order(8, 4, 2, 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(1, 4))
def test_every_window_holds_whole_blocks_of_both_stages(num_windows, problems, stages, generations):
    block = stages * generations
    rows = num_windows * problems * block
    order = window_order(rows, block, stages, num_windows)
    assert sorted(order.tolist()) == list(range(rows))
    for window in order.view(num_windows, -1):
        assert len(window) == problems * block
        owners = (window // block).unique(return_counts=True)[1]
        assert owners.tolist() == [block] * problems  # all rows of each of its problems
        stage = window % block // generations
        assert stage.tolist() == sorted(stage.tolist())  # a stage's rows stand together


def test_a_batch_that_does_not_hold_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="6 rows do not hold 1 windows of whole blocks of 4 rows"):
        window_order(6, 4, 2, 1)


def batch() -> dict:
    return {
        "stage": torch.tensor([0, 0, 1, 1]),
        "prompt_ids": torch.tensor([[0, 0, 7], [0, 7, 7], [7, 7, 7], [7, 7, 7]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[5, 5, 5, 5], [5, 0, 0, 0], [5, 5, 0, 0], [5, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        "importance_sampling_ratio": torch.ones(4, 1),
        "advantages": torch.arange(4.0),
    }


def test_a_stages_rows_come_without_columns_that_are_padding_in_all_of_them():
    part = stage_parts(batch())[1]
    assert part["completion_ids"].tolist() == [[5, 5], [5, 0]]
    assert part["prompt_ids"].shape == (2, 3)
    assert part["importance_sampling_ratio"].shape == (2, 1)
    assert part["advantages"].tolist() == [2.0, 3.0]
    assert stage_parts(batch())[0]["prompt_mask"].tolist() == [[0, 1], [1, 1]]


def test_a_stage_without_rows_has_no_part():
    assert len(stage_parts(take_rows(batch(), torch.tensor([0, 1])))) == 1


def test_rows_that_are_left_out_are_in_no_count():
    counts = stage_counts(batch()["stage"], batch()["completion_mask"], 1)
    assert counts.tolist() == [[[2.0, 5.0], [1.0, 2.0]]]  # candidates: 2 rows, 5 tokens; refinements: 1 row, 2 tokens


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_scaled_micro_batch_losses_add_up_to_the_loss_over_the_window(loss_type):
    """TRL's per-micro-batch means, scaled and averaged over two ranks, against the formula over all rows at once."""
    generator = torch.Generator().manual_seed(0)
    limit, ranks, accumulation = 6, 2, 2
    masks = [(torch.arange(limit) < n).float() for n in (1, 6, 3, 2, 5, 4, 0, 2)]  # the seventh row is left out
    mask, values = torch.stack(masks), torch.rand(8, limit, generator=generator)
    total = torch.tensor([7.0, mask.sum()])
    by_row = (values * mask).sum(1)
    if loss_type == "grpo":
        expected = (by_row / mask.sum(1).clamp(min=1)).sum() / 7
    elif loss_type == "bnpo":
        expected = by_row.sum() / mask.sum()
    else:
        expected = by_row.sum() / (7 * limit)
    found = 0.0
    for part in torch.arange(8).chunk(ranks * accumulation):
        v, m = values[part], mask[part]
        if loss_type == "grpo":
            trl = ((v * m).sum(1) / m.sum(1).clamp(min=1)).mean()
        elif loss_type == "bnpo":
            trl = (v * m).sum() / m.sum().clamp(min=1)
        else:
            trl = (v * m).sum() / (len(v) * limit)
        found += trl / accumulation * loss_scale(loss_type, m, total, accumulation, ranks) / ranks
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
