"""The attention of packed rows on an NVIDIA GPU: by a stand-in for its kernel on a CPU, and in shapes alone."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.utils import add_fused_lm_head

from gsr_rl.training.packing import shared_prefix
from gsr_rl.training.packing.rows import pack_rows
from gsr_rl.training.packing.shared_prefix import log_probs_and_entropies, packed_attention, share_prefixes
from tests.support import varlen_on_cpu  # noqa: F401 gives the varlen kernel a CPU's

# (prompt, completions' lengths): shared, shared by rows of one token, which are not computed, and on their own
RAGGED = [(9, [5, 1, 12]), (3, [1, 1]), (70, [33]), (17, [2, 2, 40, 39]), (1, [2, 2])]


def batch(groups=RAGGED) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Padded rows of groups, no two of which have the same prompt, and T."""
    stream = torch.Generator().manual_seed(0)
    width, limit = max(prompt for prompt, _ in groups), max(max(lengths) for _, lengths in groups)
    ids = torch.randint(1, 50, (sum(len(lengths) for _, lengths in groups), width + limit), generator=stream)
    mask, row = torch.zeros_like(ids), 0
    for number, (prompt, lengths) in enumerate(groups):
        ids[row : row + len(lengths), :width] = torch.randint(1, 50, (width,), generator=stream)
        ids[row : row + len(lengths), width - prompt] = 50 + number
        for length in lengths:
            mask[row, width - prompt : width + length] = 1
            row += 1
    return ids, mask, limit


def visible(packed) -> torch.Tensor:
    """(N, N) bool: which keys a packed query sees, token by token."""
    length = packed.input_ids.shape[1]
    sees = torch.zeros(length, length, dtype=torch.bool)
    for group in packed.groups:
        sees[group.prompt, group.prompt] = True
        start = group.buckets[0].start if group.buckets else 0
        for size in group.lengths:
            sees[start : start + size, group.prompt] = sees[start : start + size, start : start + size] = True
            start += size
    return sees.tril()


def by_mask(query, key, value, packed) -> torch.Tensor:
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~visible(packed), -torch.inf).softmax(-1) @ value).transpose(1, 2)


def with_gradients(attend, states, weights, packed) -> list[torch.Tensor]:
    states = [x.detach().requires_grad_() for x in states]
    output = attend(*states, packed)
    output.backward(weights.to(output.dtype))
    return [output.detach(), *(x.grad for x in states)]


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 64), (6, 2, 64), (4, 1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("least_saving", [0, 1000], ids=["shared", "alone"])
def test_values_and_gradients_are_those_of_the_full_mask(monkeypatch, heads, key_heads, size, dtype, least_saving):
    monkeypatch.setattr(shared_prefix, "attention_kernel", lambda query: "varlen")
    packed = pack_rows(*batch(), least_saving)
    tokens = packed.input_ids.shape[1]
    states = [torch.randn(1, tokens, n, size).transpose(1, 2) for n in (heads, key_heads, key_heads)]
    weights = torch.randn(1, tokens, heads, size)
    rounded = [x.to(dtype) for x in states]
    exact = with_gradients(by_mask, [x.double() for x in rounded], weights.to(dtype).double(), packed)
    ours = with_gradients(packed_attention, rounded, weights, packed)
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        # Two parts are rounded before they are added and the sum once more: three roundings of 2^-9 in bfloat16.
        assert (mine - true).norm() / true.norm() < (1e-5 if dtype == torch.float32 else 3 * 2**-9)


def test_the_kernel_is_told_sequences_that_stand_in_the_packed_order():
    packed = pack_rows(*batch())
    alone, prompts, completions = packed.varlen
    # Prompts of 17, 9, 1, then 3, whose completions are of one token; completions without their last token.
    assert [group.stop - group.start for group in packed.groups] == [9, 17, 1, 3, 0]
    assert prompts.bounds.tolist() == [0, 9, 26, 27] and prompts.at == slice(0, 27) and prompts.longest == 17
    assert completions.bounds.tolist() == [0, 15, 94, 96] and completions.at == slice(30, 126)
    sizes = [9, 17, 1, 3, 11, 4, 39, 38, 1, 1, 1, 1, 102]
    assert alone.bounds.diff().tolist() == sizes and alone.longest == 102
    assert alone.at == slice(0, packed.input_ids.shape[1])
    single = pack_rows(torch.tensor([[1, 2], [1, 3]]), torch.ones(2, 2), 1).varlen
    assert single.prompts is None and single.alone.longest == 2  # never 1: its log-sum-exp would be in another order


class Calls(TorchDispatchMode):
    """The operators that are called, the shapes of what they are given, and the devices that it is on."""

    def __init__(self):
        super().__init__()
        self.names, self.shapes, self.devices = [], [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        self.names.append(func.name().split("::")[1])
        self.shapes.append([tuple(x.shape) for x in tensors])
        self.devices |= {x.device.type for x in tensors}
        return func(*args, **(kwargs or {}))


def on_meta(packed):
    """The same packed rows on a device without numbers, where asking for one raises, as it would wait on a GPU."""
    meta = torch.device("meta")
    groups = [
        replace(group, buckets=tuple(replace(bucket, device=meta) for bucket in group.buckets))
        for group in packed.groups
    ]
    names = ("input_ids", "position_ids", "scored", "labels", "rows", "columns")
    return replace(packed, groups=tuple(groups), **{name: getattr(packed, name).to(meta) for name in names})


def qwen(layers=3, **keys) -> Qwen2ForCausalLM:
    config = Qwen2Config(vocab_size=61, hidden_size=256, intermediate_size=64, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, **keys)  # fmt: skip
    model = Qwen2ForCausalLM(config)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    share_prefixes(model)
    return model


@pytest.mark.parametrize("kernel", ["varlen", "joined"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpoints"])
def test_a_gpus_branches_ask_the_device_for_nothing_and_go_forward_and_back(monkeypatch, kernel, checkpointing):
    monkeypatch.setattr(shared_prefix, "_has_varlen", lambda device: kernel == "varlen")
    monkeypatch.setattr(shared_prefix, "_autocast", lambda *states: states)  # it knows no meta device
    layers, packed = 3, on_meta(pack_rows(*batch()))
    model = qwen(layers).to("meta", torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    made_once = packed.varlen, [bucket.padding for group in packed.groups for bucket in group.buckets]
    with Calls() as calls:
        hidden = model.model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, packed_rows=packed,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta"),
        ).last_hidden_state  # fmt: skip
        hidden.sum().backward()
    assert hidden.shape == (1, len(packed.scored), 256)
    assert all(weight.grad is not None for weight in model.model.parameters())
    forwards = layers * (2 if checkpointing else 1)
    expected = (2 * forwards, 2 * layers) if kernel == "varlen" else (0, 0)
    assert (calls.names.count("_varlen_attn"), calls.names.count("_varlen_attn_backward")) == expected
    assert made_once and calls.devices == {"meta"}  # no layer brings a number from the host or takes one there
    assert not {"nonzero", "_local_scalar_dense", "masked_select"} & set(calls.names)
    if kernel == "varlen":
        tokens = packed.input_ids.shape[1]
        own, to_prompts = [(tokens, 4, 64)], [(96, 4, 64)]
        told = [shapes for name, shapes in zip(calls.names, calls.shapes, strict=True) if name == "_varlen_attn"]
        assert told[0] == own + [(tokens, 2, 64)] * 2 + [(14,)] * 2  # as many key heads as the model has
        assert told[1] == to_prompts + [(27, 2, 64)] * 2 + [(4,)] * 2


@pytest.mark.parametrize(
    ("kernel", "change"),
    [
        ("varlen", {}),
        ("varlen", {"dtype": torch.float16}),
        ("joined", {"dtype": torch.float32}),
        ("joined", {"size": 256}),
        ("joined", {"size": 60}),
        ("joined", {"capability": (7, 5)}),
        ("joined", {"flash": False}),
        ("joined", {"hip": "6.4"}),
        ("joined", {"device": "xpu"}),
        ("merged", {"device": "cpu"}),
    ],
    ids=str,
)
def test_the_kernel_is_chosen_by_device_type_and_head_size(monkeypatch, kernel, change):
    told = dict(dtype=torch.bfloat16, size=128, capability=(8, 0), flash=True, hip=None, device="cuda") | change
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: told["capability"])
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: told["flash"])
    monkeypatch.setattr(torch.version, "hip", told["hip"])
    shared_prefix._has_varlen.cache_clear()
    query = torch.empty(1, 2, 3, told["size"], device="meta", dtype=told["dtype"])
    stand_in = type("Query", (), {"device": torch.device(told["device"]), "dtype": query.dtype, "shape": query.shape})
    assert shared_prefix.attention_kernel(stand_in) == kernel
    shared_prefix._has_varlen.cache_clear()


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_flash_attention_shares_prompts_and_is_what_it_was_for_other_calls(monkeypatch, name):
    calls = []

    def flash(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.config._attn_implementation, "packed_rows" in kwargs))
        return torch.zeros_like(query).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, flash)
    model = qwen()
    packed = pack_rows(*batch())
    expected = log_probs_and_entropies(model, packed)[0]
    model.config._attn_implementation = name
    share_prefixes(model)
    ALL_ATTENTION_FUNCTIONS.register(name, flash)  # as transformers does when it loads the kernel for another model
    assert torch.equal(log_probs_and_entropies(model, packed)[0], expected) and not calls
    model(input_ids=packed.input_ids)
    assert calls == [(name, False)] * 3
