"""One forward of a prompt for all its completions.

TRL repeats the prompt for each completion and pads every row to the longest one. Here the rows of a batch become one
packed sequence: each prompt once, each of its completions behind it without padding, positions restarted after the
prompt. Attention knows the structure: a prompt is causal, a completion sees its prompt and itself. No mask over the
packed sequence is ever built.

`share_prefixes(model)` prepares a model once, `pack_rows` makes the packed sequence, and `log_probs_and_entropies`
runs one pass through TRL's fused output head, which sees only the positions that predict a completion's token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "shared_prefix_"  # of the registered attention's name, before the name of the model's own
MODEL_TYPES = ("llama", "qwen2", "qwen3")
SHARING_COST = 100_000_000
LENGTH_SLACK = 16  # tokens by which, or a fourth by which, completions that are attended together may differ in length


@dataclass(frozen=True)
class Bucket:
    """Completions of about one length, one behind the other in the packed sequence, attended as one batch.

    `index` is None where all have `length` tokens; otherwise (rows, length) positions in the packed sequence, a
    row's last one repeated in its padding, and `valid` says which are no padding.
    """

    start: int
    stop: int
    rows: int
    length: int
    index: torch.Tensor | None
    valid: torch.Tensor | None


@dataclass(frozen=True)
class Group:
    """A prompt at [start, stop) of the packed sequence and the buckets of its completions right behind it.

    Without a prompt (start == stop) its buckets hold rows that stand alone, each its prompt and its completion.
    """

    start: int
    stop: int
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class PackedRows:
    """Rows of a batch as one packed sequence of N tokens, S of whose hidden states predict a completion's token.

    A completion's last token predicts nothing and is left out. `rows` and `columns` (S,) say which token of the
    batch's completions, (B, T), each prediction is for.
    """

    input_ids: torch.Tensor  # (1, N)
    position_ids: torch.Tensor  # (1, N)
    scored: torch.Tensor  # (S,) positions in the packed sequence; a prompt's last one comes once for each completion
    labels: torch.Tensor  # (1, S) the tokens predicted there
    rows: torch.Tensor
    columns: torch.Tensor
    shape: tuple[int, int]  # (B, T)
    groups: tuple[Group, ...]


def prompt_groups(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> list[list[int]]:
    """Rows with equal prompts, in order of first appearance.

    Args:
        prompt_ids: (B, P), padded on either side.
        prompt_mask: (B, P).
    """
    ids, mask = prompt_ids.cpu().numpy(), prompt_mask.cpu().numpy().astype(bool)
    groups: dict[bytes, list[int]] = {}
    for row in range(len(ids)):
        groups.setdefault(ids[row][mask[row]].tobytes(), []).append(row)
    return list(groups.values())


def pack_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, num_completion_tokens: int, least_saving: int = 0
) -> PackedRows:
    """Pack a padded batch: each distinct prompt once, its completions behind it, the longest first.

    Rows whose completion is masked out cost nothing. Rows with a prompt of their own stand at the end. A batch without
    any token to predict keeps one position with the label -100, so that a pass over it is a differentiable zero.

    Args:
        input_ids: (B, P + T), prompts and completions, padded on either side of each.
        attention_mask: (B, P + T), 0 on padding. Every row has a token in its prompt.
        num_completion_tokens: T.
        least_saving: Tokens that sharing a prompt must save; otherwise its rows stand alone (`least_saving`).

    Raises:
        ValueError: A row without a prompt.
    """
    device, split = input_ids.device, input_ids.shape[1] - num_completion_tokens
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
    if not mask[:, :split].any(axis=1).all():
        raise ValueError("a row of the batch has no prompt token, so its first token has nothing to be predicted from")
    places = [np.flatnonzero(one) for one in mask[:, split:]]
    tokens, positions, scored, rows, groups, start = [], [], [], [], [], 0
    alone: list[tuple[int, np.ndarray]] = []
    for group in prompt_groups(input_ids[:, :split], attention_mask[:, :split]):
        kept = sorted((row for row in group if len(places[row])), key=lambda row: -len(places[row]))
        prompt = ids[group[0], :split][mask[group[0], :split]]
        if len(kept) < 2 or (len(kept) - 1) * len(prompt) < least_saving:
            alone += [(row, prompt) for row in kept]
            continue
        stop = place = start + len(prompt)
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        for row in kept:
            own = len(places[row]) - 1
            tokens.append(ids[row, split + places[row][:-1]])
            positions.append(np.arange(len(prompt), len(prompt) + own))
            scored += [[stop - 1], np.arange(place, place + own)]
            place += own
        rows += kept
        lengths = [len(places[row]) - 1 for row in kept if len(places[row]) > 1]
        groups.append(Group(start, stop, _buckets(lengths, stop, device)))
        start = place
    if alone:
        alone.sort(key=lambda item: -len(item[1]) - len(places[item[0]]))
        lengths = [len(prompt) + len(places[row]) - 1 for row, prompt in alone]
        groups.append(Group(start, start, _buckets(lengths, start, device)))
        for (row, prompt), length in zip(alone, lengths, strict=True):
            tokens += [prompt, ids[row, split + places[row][:-1]]]
            positions.append(np.arange(length))
            start += length
            scored.append(np.arange(start - len(places[row]), start))
        rows += [row for row, _ in alone]
    columns = np.concatenate([places[row] for row in rows]) if rows else np.zeros(1, dtype=np.int64)
    rows = np.repeat(rows, [len(places[row]) for row in rows]) if rows else np.zeros(1, dtype=np.int64)
    if not groups:
        tokens, positions = [ids[0, :split][mask[0, :split]][:1]], [np.arange(1)]
        scored, groups = [[0]], [Group(0, 1, ())]
    rows, columns = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
    labels = input_ids[rows, split + columns].masked_fill(attention_mask[rows, split + columns] == 0, -100)
    return PackedRows(
        input_ids=torch.from_numpy(np.concatenate(tokens)).to(device)[None],
        position_ids=torch.from_numpy(np.concatenate(positions)).to(device)[None],
        scored=torch.from_numpy(np.concatenate(scored)).to(device),
        labels=labels[None],
        rows=rows,
        columns=columns,
        shape=(len(ids), num_completion_tokens),
        groups=tuple(groups),
    )


def least_saving(model) -> int:
    """Tokens that sharing a prompt must save to pay for the further attention calls of a layer.

    The calls cost about as much time as `SHARING_COST` multiplications and additions on a CPU: 80 tokens of a model
    with 0.2 M parameters a layer, 5 of SmolLM2-135M, none of a 7B model.
    """
    config = model.config.get_text_config()
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    parameters = hidden * (2 * width * (heads + config.num_key_value_heads) + 3 * config.intermediate_size)
    return SHARING_COST // (6 * parameters)


def _buckets(lengths: Sequence[int], start: int, device: torch.device) -> tuple[Bucket, ...]:
    """Completions of falling lengths, the first at `start`, cut where padding to the longest would cost too much."""
    buckets, first = [], 0
    while first < len(lengths):
        longest, last = lengths[first], first + 1
        while last < len(lengths) and lengths[last] >= min(longest - LENGTH_SLACK, longest * 3 // 4):
            last += 1
        own = np.array(lengths[first:last])
        stop, index, valid = start + int(own.sum()), None, None
        if own.min() < longest:
            within = np.arange(longest)
            begin = start + np.cumsum(own) - own
            index = torch.from_numpy(begin[:, None] + np.minimum(within, own[:, None] - 1)).to(device)
            valid = torch.from_numpy(within < own[:, None]).to(device)
        buckets.append(Bucket(start, stop, last - first, longest, index, valid))
        start, first = stop, last
    return tuple(buckets)


def unsupported(model) -> str | None:
    """Why this model cannot share prefixes, or None if it can: its attention must be what we compute."""
    config = model.config.get_text_config()
    if config.model_type not in MODEL_TYPES:
        return f"its type is {config.model_type}, known are {', '.join(MODEL_TYPES)}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return "some of its layers attend through a sliding window"
    if getattr(config, "attention_dropout", 0.0):
        return f"attention_dropout is {config.attention_dropout}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return f"its rotary embedding ({rope}) depends on the length of the batch"
    if config._attn_implementation.removeprefix(PREFIX) not in ("sdpa", "flash_attention_2", "flex_attention"):
        return f"attn_implementation is {config._attn_implementation}"
    return None


def share_prefixes(model) -> None:
    """Teach a causal language model packed rows. Any other call of it does what it did before.

    The registered attention stays in the model's config, because gradient checkpointing runs a layer again in the
    backward pass. Doing it twice changes nothing.

    Raises:
        ValueError: A model that `unsupported` names a reason for.
    """
    reason = unsupported(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot compute a prompt once for all its completions: {reason}")
    config = model.config.get_text_config()
    if config._attn_implementation.startswith(PREFIX):
        return
    own, name = config._attn_implementation, PREFIX + config._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[own]

    def attention(module, query, key, value, attention_mask, packed_rows=None, **kwargs):
        if packed_rows is None:
            return plain(module, query, key, value, attention_mask, **kwargs)
        return packed_attention(query, key, value, packed_rows, kwargs.get("scaling")), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    config._attn_implementation = name
    model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def _keep_scored(module, args, kwargs, output):
    """The backbone's forward hook: only hidden states that predict a completion's token reach the head."""
    packed = kwargs.get("packed_rows")
    if packed is not None:
        output.last_hidden_state = output.last_hidden_state.index_select(1, packed.scored)
    return output


def log_probs_and_entropies(model, packed: PackedRows) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One pass of a prepared model with TRL's fused head (`trl.trainer.utils.add_fused_lm_head`), wrapped or not.

    Returns:
        Log-probabilities and entropies of the completions' tokens, (B, T) each, 0 on padding; the entropies are None
        if the head does not compute them.
    """
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=no_mask(packed),
        shift_labels=packed.labels,
        packed_rows=packed,
        fused_lm_head=True,
    )
    return packed_to_rows(output.log_probs[0], packed), (
        None if output.entropy is None else packed_to_rows(output.entropy[0], packed)
    )


def no_mask(packed: PackedRows) -> torch.Tensor:
    """A mask of one number, which `packed_attention` ignores: transformers would build one of (N, N) for None."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)


def packed_to_rows(values: torch.Tensor, packed: PackedRows) -> torch.Tensor:
    """(S,) values of the packed predictions to (B, T), 0 on padding."""
    return values.new_zeros(packed.shape).index_put((packed.rows, packed.columns), values)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedRows, scaling: float | None = None
) -> torch.Tensor:
    """Attention over packed rows.

    On a CPU a completion's attention to its prompt and to itself are two calls of the flash kernel, merged by their
    log-sum-exp. Elsewhere a bucket's keys are put behind its prompt's, with a mask of (length, prompt + length).

    Args:
        query: (1, H, N, D).
        key, value: (1, H_kv, N, D), H_kv dividing H.
        packed: The packed sequence.
        scaling: Of the scores; default 1 / sqrt(D).

    Returns:
        (1, N, H, D).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.device.type == "cpu" and any(group.stop > group.start for group in packed.groups):
        return _MergedAttention.apply(query, key, value, packed.groups, scaling)
    return _joined_attention(query, key, value, packed.groups, scaling)


def _batched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(1, N, H, D) -> (rows, H, length, D) of a bucket's completions."""
    if bucket.index is not None:
        return states[0, bucket.index].transpose(1, 2)
    return states[0, bucket.start : bucket.stop].unflatten(0, (bucket.rows, bucket.length)).transpose(1, 2)


def _unbatched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(rows, length, ...) -> (stop - start, ...): the tokens of a bucket's completions in their packed order."""
    return states.flatten(0, 1) if bucket.valid is None else states[bucket.valid]


def _joined_attention(query, key, value, groups: Sequence[Group], scaling: float) -> torch.Tensor:
    """Attention by any kernel of PyTorch: a bucket's queries over its prompt's keys and its own, side by side."""
    gqa = query.shape[1] != key.shape[1]
    states = [x.transpose(1, 2) for x in (query, key, value)]
    parts = []
    for group in groups:
        prompt, length = [x[:, :, group.start : group.stop] for x in (query, key, value)], group.stop - group.start
        if length:
            attended = scaled_dot_product_attention(*prompt, is_causal=True, scale=scaling, enable_gqa=gqa)
            parts.append(attended[0].transpose(0, 1))
        for bucket in group.buckets:
            q, k, v = (_batched(x, bucket) for x in states)
            mask = None
            if length:
                k, v = (
                    torch.cat([x.expand(bucket.rows, -1, -1, -1), y], dim=2)
                    for x, y in zip(prompt[1:], (k, v), strict=True)
                )
                mask = torch.ones(bucket.length, k.shape[2], dtype=torch.bool, device=q.device).tril(length)
            attended = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
            )
            parts.append(_unbatched(attended.transpose(1, 2), bucket))
    return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class _MergedAttention(torch.autograd.Function):
    """PyTorch's CPU flash kernel over parts of the keys, merged by log-sum-exp.

    The backward kernel forms the probabilities as exp(score - log-sum-exp), so given the merged output and log-sum-exp
    it returns each part's share of the gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, groups, scaling):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # (1, N, H, D), as buckets need them
        output = query.new_empty(q.shape)
        lse = torch.empty(q.shape[:3], dtype=torch.float32)
        for group in groups:
            prompt, shared = slice(group.start, group.stop), group.stop > group.start
            kp, vp = key[:, :, prompt], value[:, :, prompt]
            if shared:
                attended, sums = _flash(query[:, :, prompt], kp, vp, 0.0, True, scale=scaling)
                output[:, prompt], lse[:, prompt] = attended.transpose(1, 2), sums.transpose(1, 2)
            if shared and group.buckets:
                own = slice(group.stop, group.buckets[-1].stop)
                attended, sums = _flash(query[:, :, own], kp, vp, 0.0, False, scale=scaling)
                output[:, own], lse[:, own] = attended.transpose(1, 2), sums.transpose(1, 2)
            for bucket in group.buckets:
                part = slice(bucket.start, bucket.stop)
                attended, sums = _flash(*(_batched(x, bucket) for x in (q, k, v)), 0.0, True, scale=scaling)
                attended = _unbatched(attended.transpose(1, 2), bucket)
                sums = _unbatched(sums.transpose(1, 2), bucket)
                if not shared:
                    output[0, part], lse[0, part] = attended, sums
                    continue
                weight = torch.sigmoid(sums - lse[0, part])[..., None].to(output.dtype)
                output[0, part].lerp_(attended, weight)
                lse[0, part] = torch.logaddexp(sums, lse[0, part])
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.groups, ctx.scaling = groups, scaling
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, output, lse = ctx.saved_tensors
        batched = [x.transpose(1, 2) for x in (query, key, value)] + [output, grad_output.contiguous(), lse[..., None]]
        whole = [*(query, key, value), *(x.transpose(1, 2) for x in batched[3:])]
        grads = [torch.empty(x.shape, dtype=torch.float32) for x in batched[:3]]  # (1, N, H, D)

        def part_of(queries, keys, causal):
            q, k, v, o, g, s = (
                x[:, :, at] for x, at in zip(whole, (queries, keys, keys, *[queries] * 3), strict=True)
            )
            found = _flash_backward(g, q, k, v, o, s[..., 0], 0.0, causal, scale=ctx.scaling)
            return [x.transpose(1, 2) for x in found]

        for group in ctx.groups:
            prompt = slice(group.start, group.stop)
            shared = group.stop > group.start
            if shared:
                for total, part in zip(grads, part_of(prompt, prompt, True), strict=True):
                    total[:, prompt] = part
            if shared and group.buckets:
                own = slice(group.stop, group.buckets[-1].stop)
                of_query, of_key, of_value = part_of(own, prompt, False)
                grads[0][:, own] = of_query
                grads[1][:, prompt] += of_key
                grads[2][:, prompt] += of_value
            for bucket in group.buckets:
                q, k, v, o, g, s = (_batched(x, bucket) for x in batched)
                if bucket.valid is not None:
                    g = g * bucket.valid[:, None, :, None]
                found = _flash_backward(g, q, k, v, o, s[..., 0], 0.0, True, scale=ctx.scaling)
                of_query, of_key, of_value = (_unbatched(x.transpose(1, 2), bucket) for x in found)
                own = grads[0][0, bucket.start : bucket.stop]
                own.copy_(own + of_query if shared else of_query)
                grads[1][0, bucket.start : bucket.stop] = of_key
                grads[2][0, bucket.start : bucket.stop] = of_value
        return *(x.transpose(1, 2).to(query.dtype) for x in grads), None, None
