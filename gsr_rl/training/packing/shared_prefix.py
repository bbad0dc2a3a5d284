"""One forward of a prompt for all its completions.

TRL repeats the prompt for each completion and pads every row to the longest one. Here the rows of a batch become one
packed sequence: each prompt once, each of its completions behind it without padding, positions restarted after the
prompt. Attention knows the structure: a prompt is causal, a completion sees its prompt and itself. No mask over the
packed sequence is ever built.

`share_prefixes(model)` prepares a model once, `gsr_rl.training.packing.rows` makes the packed sequence, and
`log_probs_and_entropies` runs one pass through TRL's fused output head, which sees only the positions that predict a
completion's token. With `attn_implementation: flex_attention` PyTorch's flex attention does it from a mask of blocks.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from gsr_rl.training.packing.rows import Bucket, Group, PackedRows

NAMES = {"sdpa": "shared_prefix_sdpa", "flex_attention": "shared_prefix_flex"}  # registered, by what they stand for
MODEL_TYPES = ("llama", "qwen2", "qwen3")
SHARING_COST = 100_000_000  # floating-point operations of a layer, forward and backward


def least_saving(model) -> int:
    """Tokens that sharing a prompt must save to pay for the further attention calls of a layer.

    On one CPU core the calls take about the time of `SHARING_COST` operations: 78 tokens of a model with 0.2 M
    parameters a layer, 4 of SmolLM2-135M, none of a 7B model. Not measured on a GPU.
    """
    config = model.config.get_text_config()
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    parameters = hidden * (2 * width * (heads + config.num_key_value_heads) + 3 * config.intermediate_size)
    return SHARING_COST // (6 * parameters)


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
    if config._attn_implementation not in (*NAMES, *NAMES.values()):
        return f"attn_implementation is {config._attn_implementation}, and `attn_implementation: sdpa` shares prompts"
    return None


def share_prefixes(model) -> None:
    """Teach a causal language model packed rows. Any other call of it does what it did before.

    The registered attention stays in the model's config, because gradient checkpointing runs a layer again in the
    backward pass. Doing it twice changes nothing, and a model made from a prepared one's config is prepared too.

    Raises:
        ValueError: A model that `unsupported` names a reason for.
    """
    reason = unsupported(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot compute a prompt once for all its completions: {reason}")
    config = model.config.get_text_config()
    config._attn_implementation = NAMES.get(config._attn_implementation, config._attn_implementation)
    if _keep_scored not in model.base_model._forward_hooks.values():
        model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def _attention(module, query, key, value, attention_mask, packed_rows=None, **kwargs):
    """transformers' SDPA attention, but for packed rows."""
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return packed_attention(query, key, value, packed_rows, kwargs.get("scaling")), None


def _flex_attention(module, query, key, value, attention_mask, packed_rows=None, **kwargs):
    """transformers' flex attention, for packed rows with their own mask of blocks."""
    if packed_rows is not None:
        (query, key, value), attention_mask = _autocast(query, key, value), packed_rows.block_mask
    return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)


for _kind, _function in (("sdpa", _attention), ("flex_attention", _flex_attention)):
    AttentionInterface.register(NAMES[_kind], _function)
    AttentionMaskInterface.register(NAMES[_kind], ALL_MASK_ATTENTION_FUNCTIONS[_kind])


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
    query, key, value = _autocast(query, key, value)
    if query.device.type == "cpu" and any(group.stop > group.start for group in packed.groups):
        return _MergedAttention.apply(query, key, value, packed.groups, scaling)
    return _joined_attention(query, key, value, packed.groups, scaling)


def _autocast(*states: torch.Tensor) -> list[torch.Tensor]:
    """In the type of autocast where that is on: rotary embeddings leave queries and keys in float32."""
    device = states[0].device.type
    return [x.to(torch.get_autocast_dtype(device)) for x in states] if torch.is_autocast_enabled(device) else [*states]


def _batched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(stop - start, H, D) of a bucket's completions -> (rows, H, length, D)."""
    if bucket.index is not None:
        return states[bucket.index].transpose(1, 2)
    return states.unflatten(0, (bucket.rows, bucket.length)).transpose(1, 2)


def _unbatched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(rows, length, ...) -> (stop - start, ...): the tokens of a bucket's completions in their packed order."""
    return states.flatten(0, 1) if bucket.valid is None else states[bucket.valid]


def _joined_attention(query, key, value, groups: Sequence[Group], scaling: float) -> torch.Tensor:
    """Attention by any kernel of PyTorch: a bucket's queries over its prompt's keys and its own, side by side.

    The sequence is cut by one `split`, whose backward is one `cat`; a slice's would fill the whole sequence each time,
    and so would that of an index `[0]` where `squeeze` stands.
    """
    sizes = [part.stop - part.start for group in groups for part in (group, *group.buckets) if part.stop > part.start]
    whole = (query, key, value)
    pieces = zip(*(x.split(sizes, dim=2) for x in whole), strict=True) if len(sizes) > 1 else iter([whole])
    parts = []
    for group in groups:
        length = group.stop - group.start
        if length:
            prompt = next(pieces)
            parts.append(_attend(*prompt, scaling).squeeze(0).transpose(0, 1))
        for bucket in group.buckets:
            q, k, v = (_batched(x.squeeze(0).transpose(0, 1), bucket) for x in next(pieces))
            mask = None
            if length:
                k, v = (
                    torch.cat([x.expand(bucket.rows, -1, -1, -1), y], dim=2)
                    for x, y in zip(prompt[1:], (k, v), strict=True)
                )
                mask = torch.ones(bucket.length, k.shape[2], dtype=torch.bool, device=q.device).tril(length)
            parts.append(_unbatched(_attend(q, k, v, scaling, mask).transpose(1, 2), bucket))
    return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]


def _attend(query, key, value, scaling: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Causal without a mask. With one CUDA's fast kernels need as many key heads as query heads: they are repeated."""
    repeats = query.shape[1] // key.shape[1]
    gqa = repeats > 1 and use_gqa_in_sdpa(mask, key, value)
    if not gqa:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )


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
                attended, sums = _flash(*(_batched(x[0, part], bucket) for x in (q, k, v)), 0.0, True, scale=scaling)
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
                part = slice(bucket.start, bucket.stop)
                q, k, v, o, g, s = (_batched(x[0, part], bucket) for x in batched)
                if bucket.valid is not None:
                    g = g * bucket.valid[:, None, :, None]
                found = _flash_backward(g, q, k, v, o, s[..., 0], 0.0, True, scale=ctx.scaling)
                of_query, of_key, of_value = (_unbatched(x.transpose(1, 2), bucket) for x in found)
                own = grads[0][0, part]
                own.copy_(own + of_query if shared else of_query)
                grads[1][0, part], grads[2][0, part] = of_key, of_value
        return *(x.transpose(1, 2).to(query.dtype) for x in grads), None, None
