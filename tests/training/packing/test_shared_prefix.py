"""The packed forward against the plain one: padded rows through the same model, and a float64 reference."""

import copy
import re
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations import flex_attention as integration
from trl.trainer.utils import add_fused_lm_head

from gsr_rl.training.packing import rows as packed_rows
from gsr_rl.training.packing import shared_prefix
from gsr_rl.training.packing.rows import pack_rows
from gsr_rl.training.packing.shared_prefix import log_probs_and_entropies, share_prefixes, unsupported
from tests.support import varlen_on_cpu  # noqa: F401 gives the varlen kernel a CPU's

VOCABULARY, TEMPERATURE, PAD = 61, 0.7, 0
BLOCK_MASK = partial(flex_attention.create_block_mask, _compile=False)
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}


def make_model(family: str, **keys):
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=4096,
        **(own | keys),
    )
    model = model_class(config)
    for name, parameter in model.named_parameters():  # norms and biases start at 1 and 0: tell them apart
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    share_prefixes(model)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return make_model(request.param)


@pytest.fixture(params=["merged", "joined", "varlen", "flex"])
def kernel(request, monkeypatch, model):
    """The ways of attending: the CPU's kernel, that of NVIDIA GPUs, the one for all other devices, flex attention.

    Flex attention is not compiled here, and made to give gradients on a CPU, which it has but refuses.
    """
    if request.param == "flex":
        not_compiled = lambda *states, training, **keys: flex_attention.flex_attention(*states, **keys)  # noqa: E731
        monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
        monkeypatch.setattr(integration, "compile_friendly_flex_attention", not_compiled)
        monkeypatch.setattr(packed_rows, "create_block_mask", BLOCK_MASK)
        monkeypatch.setattr(model.config, "_attn_implementation", shared_prefix.FLEX)
        share_prefixes(model)
    else:
        monkeypatch.setattr(shared_prefix, "attention_kernel", lambda query: request.param)
    with torch._dynamo.config.patch(disable=False):  # an engine on a CPU sets it
        yield


def make_batch(groups, sides=("left", "right"), seed=0) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Padded rows of groups (prompt length, completion lengths), and T; each part padded on its side."""
    stream = torch.Generator().manual_seed(seed)
    width = max(prompt for prompt, _ in groups)
    limit = max([1, *(length for _, lengths in groups for length in lengths)]) + 1
    rows, masks = [], []
    for number, (prompt, lengths) in enumerate(groups):
        ids = torch.randint(1, VOCABULARY, (prompt,), generator=stream)
        ids[0] = number + 1  # no two groups have the same prompt
        for length in lengths:
            completion = torch.randint(1, VOCABULARY, (length,), generator=stream)
            row, mask = [], []
            for part, size, side in ((ids, width, sides[0]), (completion, limit, sides[1])):
                gap = [PAD] * (size - len(part))
                row += [*gap, *part.tolist()] if side == "left" else [*part.tolist(), *gap]
                ones, zeros = [1] * len(part), [0] * len(gap)
                mask += zeros + ones if side == "left" else ones + zeros
            rows.append(row)
            masks.append(mask)
    return torch.tensor(rows), torch.tensor(masks), limit


def plain(model, ids, mask, limit) -> tuple[torch.Tensor, torch.Tensor]:
    """TRL's way: padded rows, labels on the completion."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-limit] = -100
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, fused_lm_head=True)
    return output.log_probs[:, -limit:], output.entropy[:, -limit:]


def reference(model, ids, mask, limit) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row in float64, without padding and without any of our code or TRL's."""
    exact = copy.deepcopy(model).double()
    found = torch.zeros(2, len(ids), limit, dtype=torch.float64)
    with torch.no_grad():
        for row, (one, kept) in enumerate(zip(ids, mask.bool(), strict=True)):
            places = kept[-limit:].nonzero()[:, 0]
            hidden = exact.model(input_ids=one[kept][None]).last_hidden_state[0]
            log_p = (exact.lm_head(hidden) / TEMPERATURE).log_softmax(-1)[-len(places) - 1 : -1]
            if len(places):
                found[0, row, places] = log_p.gather(1, one[-limit:][places][:, None])[:, 0]
                found[1, row, places] = -(log_p.exp() * log_p).sum(-1)
    return found[0], found[1]


def gradient(model, forward, weights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model.zero_grad()
    log_probs, entropies = forward()
    ((log_probs + 0.3 * entropies) * weights).sum().backward()
    parts = [p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return log_probs.detach(), entropies.detach(), torch.cat(parts)


def packed(model, ids, mask, limit):
    return log_probs_and_entropies(model, pack_rows(ids, mask, limit))


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first - second).norm() / second.norm()).item()


GROUPS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(0, 45), min_size=1, max_size=6)), min_size=1, max_size=4
)
RAGGED = [(9, [5, 1, 12, 0]), (1, [3, 3]), (30, [44]), (17, [2, 2, 2, 40, 39])]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    GROUPS,
    st.sampled_from(["left", "right"]),
    st.sampled_from(["left", "right"]),
    st.integers(0, 9),
    st.integers(0, 90),
)
def test_packed_rows_are_as_near_to_float64_as_padded_rows_with_the_same_gradients(
    model, kernel, groups, prompt_side, completion_side, seed, least_saving
):
    ids, mask, limit = make_batch(groups, seed=seed)  # padded as TRL must have it
    other_ids, other_mask, _ = make_batch(groups, (prompt_side, completion_side), seed)
    kept, other_kept = mask[:, -limit:].bool(), other_mask[:, -limit:].bool()
    weights = torch.randn(int(kept.sum()), generator=torch.Generator().manual_seed(seed))

    def packed(model, *batch):
        return log_probs_and_entropies(model, pack_rows(*batch, least_saving))

    def of_tokens(forward, *batch):
        return [values[batch[1][:, -limit:].bool()] for values in forward(model, *batch)]

    padded = gradient(model, lambda: of_tokens(plain, ids, mask, limit), weights)
    ours = gradient(model, lambda: of_tokens(packed, other_ids, other_mask, limit), weights)
    floor = 2e-6 * max(1, len(weights)) ** 0.5  # a rounding of numbers of this size
    for mine, theirs, exact in zip(ours[:2], padded[:2], reference(model, ids, mask, limit), strict=True):
        assert (mine - exact[kept]).norm() <= 3 * (theirs - exact[kept]).norm() + floor
    assert (packed(model, other_ids, other_mask, limit)[0][~other_kept] == 0).all()
    if len(weights):
        assert relative(ours[2], padded[2]) < 1e-4
    else:
        assert ours[2].abs().max() == 0  # a differentiable zero


def test_a_prompt_and_two_completions_packed_by_hand(monkeypatch):
    ids = torch.tensor([[0, 7, 8, 5, 6, 0, 0], [0, 7, 8, 1, 2, 3, 4], [0, 0, 9, 3, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]])
    found = pack_rows(ids, mask, 4)
    assert found.input_ids.tolist() == [[7, 8, 1, 2, 3, 5, 9]]  # the longest first, without last tokens
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0]]
    assert found.labels.tolist() == [[1, 2, 3, 4, 5, 6, 3]]
    assert found.scored.tolist() == [1, 2, 3, 4, 1, 5, 6]
    assert found.rows.tolist() == [1, 1, 1, 1, 0, 0, 2]
    assert found.columns.tolist() == [0, 1, 2, 3, 0, 1, 0]
    monkeypatch.setattr(packed_rows, "create_block_mask", BLOCK_MASK)
    assert flex_attention.create_mask(found.block_mask.mask_mod, None, None, 7, 7, "cpu")[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],  # the second completion: its prompt and itself
        [0, 0, 0, 0, 0, 0, 1],  # another problem
    ]


def test_a_prompt_too_short_to_share_is_packed_with_each_of_its_completions():
    ids = torch.tensor([[7, 8, 5, 6, 0], [7, 8, 1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert pack_rows(ids, mask, 3, least_saving=2).input_ids.tolist() == [[7, 8, 1, 2, 5]]
    found = pack_rows(ids, mask, 3, least_saving=3)
    assert found.input_ids.tolist() == [[7, 8, 1, 2, 7, 8, 5]]
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert found.labels.tolist() == [[1, 2, 3, 5, 6]]
    assert found.scored.tolist() == [1, 2, 3, 5, 6]


def test_a_row_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="no prompt token"):
        pack_rows(torch.ones(1, 4, dtype=torch.long), torch.tensor([[0, 0, 1, 1]]), 2)


def test_gradient_checkpointing_makes_the_same_gradients(model, kernel):
    ids, mask, limit = make_batch(RAGGED)
    weights = torch.randn(len(ids), limit)
    expected = gradient(model, lambda: packed(model, ids, mask, limit), weights)
    for reentrant in (False, True):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        found = gradient(model, lambda: packed(model, ids, mask, limit), weights)
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        assert relative(found[2], expected[2]) < 1e-6


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["kept", "checkpoints", "reentrant checkpoints"])
def test_lora_adapters_get_the_same_gradients(reentrant):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        make_model("qwen2"), LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    )
    ids, mask, limit = make_batch(RAGGED)
    weights = torch.randn(len(ids), limit) * mask[:, -limit:]
    padded = gradient(adapted, lambda: plain(adapted, ids, mask, limit), weights)
    if reentrant is not None:
        adapted.train()
        adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
        adapted.enable_input_require_grads()
    passes = []
    adapted.base_model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    ours = gradient(adapted, lambda: packed(adapted, ids, mask, limit), weights)
    assert len(passes) == (1 if reentrant is None else 2)
    assert torch.allclose(ours[0], padded[0], atol=1e-4)
    assert relative(ours[2], padded[2]) < 1e-4


@pytest.mark.parametrize("mode", ["weights", "autocast"])
def test_bfloat16_is_as_near_to_float64_as_padded_rows_in_bfloat16(kernel, mode):
    model = make_model("qwen3")
    ids, mask, limit = make_batch(RAGGED)
    exact = reference(model, ids, mask, limit)[0]
    if mode == "weights":
        model = model.to(torch.bfloat16)
    weights = torch.randn(len(ids), limit) * mask[:, -limit:]
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        padded = gradient(model, lambda: plain(model, ids, mask, limit), weights)
        ours = gradient(model, lambda: packed(model, ids, mask, limit), weights)
    assert (ours[0] - exact).norm() <= 1.5 * (padded[0] - exact).norm()
    assert relative(ours[2].float(), padded[2].float()) < 0.1


def test_without_gradients_the_same_log_probabilities_come_out(model):
    ids, mask, limit = make_batch(RAGGED)
    with torch.no_grad():
        found = packed(model, ids, mask, limit)[0]
    assert not found.requires_grad
    assert torch.equal(found, packed(model, ids, mask, limit)[0].detach())


class Written(TorchDispatchMode):
    """The largest tensor that operations return, and the elements of all that are no views."""

    def __init__(self):
        super().__init__()
        self.numel = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
                self.total += 0 if func.is_view else one.numel()
        return out


def test_what_attention_writes_for_a_token_does_not_grow_with_the_number_of_prompts():
    written = []
    for groups in (2, 8, 32):
        ids, mask, limit = make_batch([(20, [9, 6, 6])] * groups)
        rows = pack_rows(ids, mask, limit)
        tokens = rows.input_ids.numel()
        states = [torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
        with Written() as seen:
            shared_prefix._joined_attention(*states, rows.groups, 1.0).sum().backward()
        written.append(seen.total / tokens)
    assert max(written) <= 1.05 * min(written)


def test_no_tensor_grows_with_the_square_of_the_packed_sequence(monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 64)  # the width of the head's tile
    model = make_model("llama")
    ids, mask, limit = make_batch([(1000, [63, 64, 64, 50, 40, 30, 20, 10] * 4)])
    rows = pack_rows(ids, mask, limit)
    tokens = rows.input_ids.numel()
    with Written() as seen:
        log_probs_and_entropies(model, rows)[0].sum().backward()
    assert tokens > 2000
    assert 0 < seen.numel <= 2 * tokens * model.config.intermediate_size


def test_other_calls_of_a_prepared_model_are_what_they_were():
    config_class, model_class, _ = FAMILIES["llama"]
    torch.manual_seed(0)
    fresh = model_class(config_class(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2))
    ids, mask, _ = make_batch(RAGGED)
    before = fresh(input_ids=ids, attention_mask=mask).logits
    generated = fresh.generate(ids[:2, :9], attention_mask=mask[:2, :9], max_new_tokens=5, do_sample=False)
    share_prefixes(fresh)
    share_prefixes(fresh)
    assert torch.equal(fresh(input_ids=ids, attention_mask=mask).logits, before)
    again = fresh.generate(ids[:2, :9], attention_mask=mask[:2, :9], max_new_tokens=5, do_sample=False)
    assert torch.equal(again, generated)


def test_a_model_made_with_a_prepared_ones_attention_is_prepared_too():
    """As TRL builds the reference model: with the attention that the policy's config names."""
    policy = make_model("llama")
    config = copy.deepcopy(policy.config)
    other = FAMILIES["llama"][1](config)
    assert other.config._attn_implementation == "sdpa"
    other.load_state_dict(policy.state_dict())
    add_fused_lm_head(other, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    share_prefixes(other)
    share_prefixes(other)
    assert len(other.base_model._forward_hooks) == 1
    batch = make_batch(RAGGED)
    assert torch.equal(packed(other, *batch)[0], packed(policy, *batch)[0])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"attn_implementation": "eager"}, "attn_implementation is eager"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "depends on the length of the batch",
        ),
    ],
    ids=["window", "dropout", "eager", "rope"],
)
def test_a_model_that_attends_otherwise_is_told_apart(keys, reason):
    config = Qwen2Config(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **keys)
    assert reason in unsupported(Qwen2ForCausalLM(config))


@pytest.mark.parametrize("name", ["paged|sdpa", "paged|flash_attention_2", "someone/flash-kernel-not-loaded"])
def test_another_attention_is_refused_with_the_one_that_shares_prompts(name):
    model = make_model("llama")
    model.config._attn_implementation = name
    with pytest.raises(ValueError, match=re.escape(f"attn_implementation is {name}, and `attn_implementation: sdpa`")):
        share_prefixes(model)
    assert model.config._attn_implementation == name


def test_a_mask_goes_with_as_many_key_heads_as_query_heads(monkeypatch):
    """CUDA's attention with a mask and `enable_gqa` is the slow one that builds every score."""
    calls, attention = [], shared_prefix.scaled_dot_product_attention

    def seen(query, key, value, attn_mask=None, enable_gqa=False, **keys):
        calls.append((attn_mask is not None, enable_gqa, query.shape[1] == key.shape[1] == value.shape[1]))
        return attention(query, key, value, attn_mask=attn_mask, enable_gqa=enable_gqa, **keys)

    monkeypatch.setattr(shared_prefix, "scaled_dot_product_attention", seen)
    rows = pack_rows(*make_batch(RAGGED))
    states = [torch.randn(1, heads, rows.input_ids.numel(), 8) for heads in (4, 2, 2)]
    shared_prefix._joined_attention(*states, rows.groups, 1.0)
    assert set(calls) == {(True, False, True), (False, True, False)}


def test_an_unknown_family_is_refused_by_name():
    model = MistralForCausalLM(MistralConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="its type is mistral, known are llama, qwen2, qwen3"):
        share_prefixes(model)
