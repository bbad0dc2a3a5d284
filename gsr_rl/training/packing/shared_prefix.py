"""One forward of a prompt for all its completions.

TRL repeats the prompt for each completion and pads every row to the longest one. Here the rows of a batch become one
packed sequence: each prompt once, its completions without padding, their positions going on from the prompt's.
Attention knows the structure: a prompt is causal, a completion sees its prompt and itself. No mask over the packed
sequence is ever built.

`share_prefixes(model)` prepares a model once, `gsr_rl.training.packing.rows` makes the packed sequence, and
`log_probs_and_entropies` runs one pass through TRL's fused output head, which sees only the positions that predict a
completion's token. `packed_attention` is the attention alone, of queries, keys and values; `attention_kernel` names
the kernel that it takes them to. With `attn_implementation: flex_attention` PyTorch's flex attention does it from a
mask of blocks.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from gsr_rl.training.packing.rows import Bucket, Group, PackedRows, Runs

FLEX = "flex_attention"
MODEL_TYPES = ("llama", "qwen2", "qwen3")
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
LARGEST_HEAD = 192  # numbers; flash attention's backward of larger heads is not on every GPU


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
    name = config._attn_implementation
    flash = is_flash_attention_requested(requested_attention_implementation=name) and "|" not in name
    if name not in ALL_ATTENTION_FUNCTIONS or not (flash or name in ("sdpa", FLEX)):
        return f"attn_implementation is {name}, and `attn_implementation: sdpa` shares prompts"
    return None


def share_prefixes(model) -> None:
    """Teach a causal language model packed rows. Any other call of it does what it did before.

    Doing it twice changes nothing. The attention is taught for every model of that `attn_implementation`, since
    gradient checkpointing runs a layer again in the backward pass.

    Raises:
        ValueError: A model that `unsupported` names a reason for.
    """
    reason = unsupported(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot compute a prompt once for all its completions: {reason}")
    _teach(model.config.get_text_config()._attn_implementation)
    if _keep_scored not in model.base_model._forward_hooks.values():
        model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def _teach(name: str) -> None:
    """Let transformers' attention of this name take packed rows. Without them it is what it was."""
    attend = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(attend, "takes_packed_rows", False):
        return

    def attention(module, query, key, value, attention_mask, packed_rows=None, **kwargs):
        if packed_rows is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        if name == FLEX:
            return attend(module, *_autocast(query, key, value), packed_rows.block_mask, **kwargs)
        return packed_attention(query, key, value, packed_rows, kwargs.get("scaling")), None

    attention.takes_packed_rows = True
    ALL_ATTENTION_FUNCTIONS[name] = attention  # goes before `register`, which loading a kernel calls again


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
    """Attention over packed rows, differentiable, by the kernel that `attention_kernel` names.

    Args:
        query: (1, H, N, D).
        key, value: (1, H_kv, N, D), H_kv dividing H.
        packed: The packed sequence (`gsr_rl.training.packing.rows.pack_rows`).
        scaling: Of the scores; default 1 / sqrt(D).

    Returns:
        (1, N, H, D).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = _autocast(query, key, value)
    kernel = attention_kernel(query)
    if kernel == "varlen":
        return _VarlenAttention.apply(query, key, value, packed.varlen, scaling)
    if kernel == "merged" and any(group.stop > group.start for group in packed.groups):
        return _MergedAttention.apply(query, key, value, packed.groups, scaling)
    return _joined_attention(query, key, value, packed.groups, scaling)


def attention_kernel(query: torch.Tensor) -> str:
    """How `packed_attention` computes queries of this device, type and head size.

    "varlen" (NVIDIA GPUs from Ampere on, bfloat16 or float16): PyTorch's flash kernel for sequences of varying
    lengths, once over every sequence and once from completions to prompts. "merged" (CPU): the CPU's flash kernel,
    bucket by bucket. Both merge the two parts by their log-sum-exp. "joined" (the rest): any kernel of PyTorch, a
    bucket's keys behind its prompt's, with a mask of (length, prompt + length).
    """
    if query.device.type == "cpu":
        return "merged"
    fits = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0
    return "varlen" if fits and query.shape[-1] <= LARGEST_HEAD and _has_varlen(query.device) else "joined"


@lru_cache
def _has_varlen(device: torch.device) -> bool:
    """Whether PyTorch's flash kernel for sequences of varying lengths runs there."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def _autocast(*states: torch.Tensor) -> list[torch.Tensor]:
    """In the type of autocast where that is on: rotary embeddings leave queries and keys in float32."""
    device = states[0].device.type
    return [x.to(torch.get_autocast_dtype(device)) for x in states] if torch.is_autocast_enabled(device) else [*states]


def _batched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(stop - start, H, D) of a bucket's completions -> (rows, H, length, D)."""
    if bucket.padding is not None:
        return states[bucket.padding.index].transpose(1, 2)
    return states.unflatten(0, (bucket.rows, bucket.length)).transpose(1, 2)


def _unbatched(states: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(rows, length, ...) -> (stop - start, ...): the tokens of a bucket's completions in their packed order."""
    states = states.flatten(0, 1)
    return states if bucket.padding is None else states[bucket.padding.places]


def _joined_attention(query, key, value, groups: Sequence[Group], scaling: float) -> torch.Tensor:
    """Attention by any kernel of PyTorch: a bucket's queries over its prompt's keys and its own, side by side.

    Takes (1, H, N, D) and returns (1, N, H, D). The sequence is cut by one `split`, whose backward is one `cat`; a
    slice's would fill the whole sequence each time, and so would that of an index `[0]` where `squeeze` stands.
    """
    shared = [group for group in groups if group.stop > group.start]
    buckets = [bucket for group in groups for bucket in group.buckets]
    sizes = [part.stop - part.start for part in (*shared, *buckets)]
    states = (query, key, value)
    pieces = zip(*(x.split(sizes, dim=2) for x in states), strict=True) if len(sizes) > 1 else iter([states])
    prompts = {group.start: next(pieces) for group in shared}
    # (tokens, H, D) each, in packed order
    outputs = [_attend(*states, scaling).squeeze(0).transpose(0, 1) for states in prompts.values()]
    for group in groups:
        for bucket in group.buckets:
            q, k, v = (_batched(x.squeeze(0).transpose(0, 1), bucket) for x in next(pieces))
            mask = None
            if group.start in prompts:
                k, v = (
                    torch.cat([of_prompt.expand(bucket.rows, -1, -1, -1), of_bucket], dim=2)
                    for of_prompt, of_bucket in zip(prompts[group.start][1:], (k, v), strict=True)
                )
                mask = torch.ones(bucket.length, k.shape[2], dtype=torch.bool, device=q.device)
                mask = mask.tril(group.stop - group.start)
            outputs.append(_unbatched(_attend(q, k, v, scaling, mask).transpose(1, 2), bucket))
    return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]


def _attend(query, key, value, scaling: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Causal without a mask. With one CUDA's fast kernels need as many key heads as query heads: they are repeated.

    cuDNN is left out: on recent GPUs it comes first and makes a plan for each new shape, which costs milliseconds.
    """
    repeats = query.shape[1] // key.shape[1]
    gqa = repeats > 1 and use_gqa_in_sdpa(mask, key, value)
    if not gqa:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    with sdpa_kernel(BACKENDS, set_priority=True):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
        )


# Private operators of PyTorch (pinned in requirements/): only they take a log-sum-exp in the backward, and on a CPU
# return it. If a new PyTorch lacks them, `_joined_attention` computes the same: docs/extend.md, "A new PyTorch".
_varlen_backward = torch.ops.torch_attn._varlen_attn_backward.default
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
CAUSAL, FULL = (-1, 0), (-1, -1)  # windows: keys before and after a query's own


class _VarlenAttention(torch.autograd.Function):
    """Two calls of the varlen kernel a layer, whatever the lengths, merged by log-sum-exp.

    The first is causal, over each prompt and completion by itself; the second goes from all completions of a prompt to
    that prompt's keys. Queries, keys and values are taken where they stand, in their own number of heads, so nothing
    is copied. One call over [prompt, completion] keys per row would copy the prompt's for each row, and the kernel's
    backward makes gradients of keys and values for every query head: at the 7B recipe's limits (8 rows of 8,192 +
    4,096 tokens) 0.2 and 1.4 GB a layer, where these calls take none and 0.6. Nor do they rest on how the kernel lays
    the causal edge where there are more keys than queries: causal calls have as many of both. As to the backward, see
    `_MergedAttention`.
    """

    @staticmethod
    def forward(ctx, query, key, value, varlen, scaling):
        query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (N, H, D)

        def attend(of_queries: Runs, of_keys: Runs, window: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            """(tokens, H, D), and the log-sum-exp, (H, tokens)."""
            return varlen_attn(
                query[of_queries.at], key[of_keys.at], value[of_keys.at], of_queries.bounds, of_keys.bounds,
                of_queries.longest, of_keys.longest, return_aux=AuxRequest(lse=True), scale=scaling,
                window_size=window, enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip

        output, lse = attend(varlen.alone, varlen.alone, CAUSAL)
        if varlen.prompts is not None:
            part, part_lse = attend(varlen.completions, varlen.prompts, FULL)
            at = varlen.completions.at
            weight = torch.sigmoid(part_lse - lse[:, at]).T[..., None].to(output.dtype)
            output[at].lerp_(part, weight)
            lse[:, at] = torch.logaddexp(part_lse, lse[:, at])
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.varlen, ctx.scaling = varlen, scaling
        return output[None]

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, output, lse = ctx.saved_tensors
        grad_output, varlen = grad_output.squeeze(0), ctx.varlen
        without_dropout = torch.empty(2, dtype=torch.uint64, device=query.device)  # a random state that is not read

        def gradients(of_queries: Runs, of_keys: Runs, window: tuple[int, int]) -> tuple[torch.Tensor, ...]:
            at, keys = of_queries.at, of_keys.at
            return _varlen_backward(
                grad_output[at], query[at], key[keys], value[keys], output[at], lse[:, at].contiguous(),
                of_queries.bounds, of_keys.bounds, of_queries.longest, of_keys.longest,
                window == CAUSAL, without_dropout, ctx.scaling, list(window),
            )  # fmt: skip

        grads = gradients(varlen.alone, varlen.alone, CAUSAL)
        if varlen.prompts is not None:
            places = (varlen.completions.at, varlen.prompts.at, varlen.prompts.at)
            parts = gradients(varlen.completions, varlen.prompts, FULL)
            for grad, at, part in zip(grads, places, parts, strict=True):
                grad[at] += part
        return *(grad.transpose(0, 1)[None] for grad in grads), None, None


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
            keys = group.prompt
            states = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            part, part_lse = _flash(*states, 0.0, causal, scale=scaling)
            output[:, queries], lse[:, queries] = part.transpose(1, 2), part_lse.transpose(1, 2)

        for group in groups:
            shared = group.stop > group.start
            if shared:
                attend_to_prompt(group, group.prompt, True)
            if shared and group.buckets:
                attend_to_prompt(group, group.completions, False)
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
            keys = group.prompt
            places = (queries, keys, keys, queries, queries, queries)
            return _gradients(*(x[:, :, at] for x, at in zip(by_head, places, strict=True)), causal, ctx.scaling)

        for group in ctx.groups:
            prompt, shared = group.prompt, group.stop > group.start
            if shared:
                of_query[:, prompt], of_key[:, prompt], of_value[:, prompt] = from_prompt(group, prompt, True)
            if shared and group.buckets:
                completions = group.completions
                of_query[:, completions], keys, values = from_prompt(group, completions, False)
                of_key[:, prompt] += keys
                of_value[:, prompt] += values
            for bucket in group.buckets:
                at = slice(bucket.start, bucket.stop)
                q, k, v, o, g, s = (_batched(x[0, at], bucket) for x in by_token)
                if bucket.padding is not None:
                    g = g * bucket.padding.valid[:, None, :, None]
                parts = [_unbatched(x, bucket) for x in _gradients(q, k, v, o, g, s, True, ctx.scaling)]
                queries = of_query[0, at]  # a view
                queries.copy_(queries + parts[0] if shared else parts[0])
                of_key[0, at], of_value[0, at] = parts[1:]
        return *(x.transpose(1, 2).to(query.dtype) for x in grads), None, None


def _gradients(query, key, value, output, grad_output, lse, causal: bool, scaling: float) -> list[torch.Tensor]:
    """Gradients of queries, keys and values.

    Takes (rows, H, tokens, D) each, the log-sum-exp with D = 1, and returns (rows, tokens, H, D) each.
    """
    grads = _flash_backward(grad_output, query, key, value, output, lse[..., 0], 0.0, causal, scale=scaling)
    return [x.transpose(1, 2) for x in grads]
