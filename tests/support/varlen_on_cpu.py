"""PyTorch's varlen attention on a CPU, where it has no kernel: the flash kernel's formulas, sequence by sequence.

Causal sequences end together: a query that stands n before the last sees all keys but the last n. The backward forms
the probabilities from the log-sum-exp that it is given, and takes the output that goes with them, as the kernel does.
"""

import torch
from torch.nn.attention import varlen


def _check(query, key, value, bounds_q, bounds_k, max_q, max_k) -> None:
    """What the CUDA kernel asks for, or takes for granted."""
    for states, bounds, longest in ((query, bounds_q, max_q), (key, bounds_k, max_k)):
        assert bounds.dtype == torch.int32 and bounds.is_contiguous()
        assert bounds[0] == 0 and bounds[-1] == len(states)
        assert (bounds.diff() > 0).all() and bounds.diff().max() <= longest
    assert query.shape[1] % key.shape[1] == 0 and key.shape == value.shape
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert max_q > 1, "with one query a sequence the kernel returns another order of the log-sum-exp"


def _sequences(bounds_q, bounds_k):
    for (start, stop), (first, last) in zip(
        *(zip(bounds.tolist(), bounds.tolist()[1:], strict=False) for bounds in (bounds_q, bounds_k)), strict=True
    ):
        yield slice(start, stop), slice(first, last)


def _scores(query, key, is_causal, scale) -> torch.Tensor:
    """(H, queries, keys), in float32 at least."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if is_causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(key) - len(query))
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores


def _exact(*states: torch.Tensor) -> list[torch.Tensor]:
    return [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in states]


def _forward(
    query, key, value, bounds_q, bounds_k, max_q, max_k, is_causal=False, scale=None, window_size=None,
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    _check(query, key, value, bounds_q, bounds_k, max_q, max_k)
    assert is_causal == (tuple(window_size) == (-1, 0)) and enable_gqa == (query.shape[1] != key.shape[1])
    output, lse = torch.empty_like(query), torch.empty(query.shape[1], len(query))
    q, k, v = _exact(query, *(x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value)))
    for queries, keys in _sequences(bounds_q, bounds_k):
        scores = _scores(q[queries], k[keys], is_causal, scale)
        output[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys]).to(query.dtype)
        lse[:, queries] = scores.logsumexp(-1).float()
    return output, lse, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_output, query, key, value, output, lse, bounds_q, bounds_k, max_q, max_k, is_causal, rng_state, scale=None,
    window_size=None,
):  # fmt: skip
    _check(query, key, value, bounds_q, bounds_k, max_q, max_k)
    assert lse.is_contiguous() and lse.dtype == torch.float32 and lse.shape == (query.shape[1], len(query))
    repeats = query.shape[1] // key.shape[1]
    q, k, v, o, g = _exact(query, *(x.repeat_interleave(repeats, 1) for x in (key, value)), output, grad_output)
    of_query, of_key, of_value = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys in _sequences(bounds_q, bounds_k):
        p = (_scores(q[queries], k[keys], is_causal, scale) - lse[:, queries, None]).exp()
        of_value[keys] = torch.einsum("hqk,qhd->khd", p, g[queries])
        delta = (g[queries] * o[queries]).sum(-1).T[..., None]
        of_score = p * (torch.einsum("qhd,khd->hqk", g[queries], v[keys]) - delta) * scale
        of_query[queries] = torch.einsum("hqk,khd->qhd", of_score, k[keys])
        of_key[keys] = torch.einsum("hqk,qhd->khd", of_score, q[queries])
    summed = [x.unflatten(1, (-1, repeats)).sum(2) for x in (of_key, of_value)]
    return tuple(x.to(query.dtype) for x in (of_query, *summed))


varlen._varlen_attn.register_kernel("cpu")(_forward)
varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
