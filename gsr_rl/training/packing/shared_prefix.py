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
    return SHARING_COST // (6 * parameters)  # operations per weight and token: 2 of the forward, 4 of the backward


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
        # a mask of one number, which `packed_attention` ignores: transformers would build one of (N, N) for None
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device),
        shift_labels=packed.labels,
        packed_rows=packed,
        fused_lm_head=True,
    )
    entropies = None if output.entropy is None else packed_to_rows(output.entropy[0], packed)
    return packed_to_rows(output.log_probs[0], packed), entropies


def packed_to_rows(values: torch.Tensor, packed: PackedRows) -> torch.Tensor:
    """(S,) values of the packed predictions to (B, T), 0 on padding."""
    return values.new_zeros(packed.shape).index_put((packed.rows, packed.columns), values)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedRows, scaling: float | None = None
) -> torch.Tensor:
    """Attention over packed rows.

    On a CPU a completion's attention to its prompt and to itself are two calls of the flash kernel, whose results are
    merged by their log-sum-exp. Elsewhere a bucket's keys are put behind its prompt's ("joined"), with a mask of
    (length, prompt + length).

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

    Takes (1, H, N, D) and returns (1, N, H, D). The sequence is cut by one `split`, whose backward is one `cat`; a
    slice's would fill the whole sequence each time, and so would that of an index `[0]` where `squeeze` stands.
    """
    sizes = [part.stop - part.start for group in groups for part in (group, *group.buckets) if part.stop > part.start]
    states = (query, key, value)
    pieces = zip(*(x.split(sizes, dim=2) for x in states), strict=True) if len(sizes) > 1 else iter([states])
    outputs = []  # (tokens, H, D) each, in packed order
    for group in groups:
        length = group.stop - group.start
        if length:
            prompt = next(pieces)
            outputs.append(_attend(*prompt, scaling).squeeze(0).transpose(0, 1))
        for bucket in group.buckets:
            q, k, v = (_batched(x.squeeze(0).transpose(0, 1), bucket) for x in next(pieces))
            mask = None
            if length:
                k, v = (
                    torch.cat([of_prompt.expand(bucket.rows, -1, -1, -1), of_bucket], dim=2)
                    for of_prompt, of_bucket in zip(prompt[1:], (k, v), strict=True)
                )
                mask = torch.ones(bucket.length, k.shape[2], dtype=torch.bool, device=q.device).tril(length)
            outputs.append(_unbatched(_attend(q, k, v, scaling, mask).transpose(1, 2), bucket))
    return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]


def _attend(query, key, value, scaling: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Causal without a mask. With one CUDA's fast kernels need as many key heads as query heads: they are repeated."""
    repeats = query.shape[1] // key.shape[1]
    gqa = repeats > 1 and use_gqa_in_sdpa(mask, key, value)
    if not gqa:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )


# Private operators of PyTorch (pinned in requirements/): only they return the log-sum-exp and take it in the backward.
# If a new PyTorch lacks them, `_joined_attention` computes the same on a CPU too: docs/extend.md, "A new PyTorch".
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class _MergedAttention(torch.autograd.Function):
    """PyTorch's CPU flash kernel over parts of the keys, merged by log-sum-exp.

    The backward kernel forms the probabilities as exp(score - log-sum-exp), so given the merged output and log-sum-exp
    it returns each part's share of the gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, groups, scaling):
        by_token = [x.transpose(1, 2) for x in (query, key, value)]  # (1, N, H, D), as buckets need them
        output = query.new_empty(by_token[0].shape)  # (1, N, H, D)
        lse = torch.empty(output.shape[:3], dtype=torch.float32)  # (1, N, H)

        def attend_to_prompt(group, queries: slice, causal: bool) -> None:
            keys = _prompt(group)
            states = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            part, part_lse = _flash(*states, 0.0, causal, scale=scaling)
            output[:, queries], lse[:, queries] = part.transpose(1, 2), part_lse.transpose(1, 2)

        for group in groups:
            shared = group.stop > group.start
            if shared:
                attend_to_prompt(group, _prompt(group), True)
            if shared and group.buckets:
                attend_to_prompt(group, _completions(group), False)
            for bucket in group.buckets:
                at = slice(bucket.start, bucket.stop)
                q, k, v = (_batched(x[0, at], bucket) for x in by_token)
                part, part_lse = _flash(q, k, v, 0.0, True, scale=scaling)
                part, part_lse = (_unbatched(x.transpose(1, 2), bucket) for x in (part, part_lse))
                if not shared:
                    output[0, at], lse[0, at] = part, part_lse
                    continue
                weight = torch.sigmoid(part_lse - lse[0, at])[..., None].to(output.dtype)
                output[0, at].lerp_(part, weight)
                lse[0, at] = torch.logaddexp(part_lse, lse[0, at])
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.groups, ctx.scaling = groups, scaling
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, output, lse = ctx.saved_tensors
        states, results = (query, key, value), (output, grad_output.contiguous(), lse[..., None])
        by_token = [*(x.transpose(1, 2) for x in states), *results]  # (1, N, H, D), D = 1 of the log-sum-exp
        by_head = [*states, *(x.transpose(1, 2) for x in results)]  # (1, H, N, D)
        of_query, of_key, of_value = grads = [torch.empty(x.shape, dtype=torch.float32) for x in by_token[:3]]

        def from_prompt(group, queries: slice, causal: bool) -> list[torch.Tensor]:
            """Gradients of these queries and of the prompt's keys and values, (1, tokens, H, D) each."""
            keys = _prompt(group)
            places = (queries, keys, keys, queries, queries, queries)
            return _gradients(*(x[:, :, at] for x, at in zip(by_head, places, strict=True)), causal, ctx.scaling)

        for group in ctx.groups:
            prompt, shared = _prompt(group), group.stop > group.start
            if shared:
                of_query[:, prompt], of_key[:, prompt], of_value[:, prompt] = from_prompt(group, prompt, True)
            if shared and group.buckets:
                completions = _completions(group)
                of_query[:, completions], keys, values = from_prompt(group, completions, False)
                of_key[:, prompt] += keys
                of_value[:, prompt] += values
            for bucket in group.buckets:
                at = slice(bucket.start, bucket.stop)
                q, k, v, o, g, s = (_batched(x[0, at], bucket) for x in by_token)
                if bucket.valid is not None:
                    g = g * bucket.valid[:, None, :, None]
                parts = [_unbatched(x, bucket) for x in _gradients(q, k, v, o, g, s, True, ctx.scaling)]
                queries = of_query[0, at]  # a view
                queries.copy_(queries + parts[0] if shared else parts[0])
                of_key[0, at], of_value[0, at] = parts[1:]
        return *(x.transpose(1, 2).to(query.dtype) for x in grads), None, None


def _prompt(group: Group) -> slice:
    return slice(group.start, group.stop)


def _completions(group: Group) -> slice:
    """All of a group's completions, which stand behind its prompt."""
    return slice(group.stop, group.buckets[-1].stop)


def _gradients(query, key, value, output, grad_output, lse, causal: bool, scaling: float) -> list[torch.Tensor]:
    """Gradients of queries, keys and values.

    Takes (rows, H, tokens, D) each, the log-sum-exp with D = 1, and returns (rows, tokens, H, D) each.
    """
    grads = _flash_backward(grad_output, query, key, value, output, lse[..., 0], 0.0, causal, scale=scaling)
    return [x.transpose(1, 2) for x in grads]
