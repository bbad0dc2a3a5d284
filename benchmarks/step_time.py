"""Forward, loss and backward of one joint step: stock TRL's GRPOTrainer against GSRTrainer on the same rollouts.

    python benchmarks/step_time.py [--repeats 5] [--threads N] [--only step|memory|grid] [--model M] [--dtype D]

The step: SmolLM2-135M (from `make smollm2`, else random weights of its shape) in float32, one problem of 64 tokens,
8 candidates of 64, 8 refinements of 64 whose prompt holds the problem and 4 candidates (320 tokens). Stock TRL runs
at its fastest micro-batch size, with both stages padded together as its trainer does it (`mixed`) and with one batch a
stage (`by stage`); GSRTrainer makes one pass a stage. `loss_type` is dr_grpo, whose loss is the same for pooled rows.
Then peak memory beyond the loaded model, each side in its own process, and a grid of prompt and completion lengths.
On a CPU both sides keep the memory that they free: mapping it anew costs a time that varies from machine to machine.
Both sides, and a plain packed SFT step on as many tokens, are warmed up and run in turn; times are medians. `--model`
takes a model's folder, or `qwen2-1.5b` for random weights of that shape. Ends with one line of JSON.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from process_memory import give_freed_memory_back, keep_freed_memory, resident
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from gsr_rl.data.tiny_world import build_tokenizer
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.packing import batching
from gsr_rl.training.trainer import GSRTrainer

SMOLLM2 = Path(__file__).resolve().parent.parent / "runs" / "SmolLM2-135M-Instruct"
PROBLEM, CANDIDATE, REFINEMENT, K, G = 64, 64, 64, 4, 8
SMALL_GRID = [(p, t, g) for p in (16, 256, 2048) for t in (16, 128, 1024) for g in (2, 16)]
SMALL_GRID.remove((2048, 1024, 16))  # longest by far, and not where the ratio is small
NAMED_GRID = {  # name: prompt tokens, completion tokens, G
    "shortest": (16, 16, 2),
    "short problem": (64, 64, 2),
    "long completions": (16, 128, 2),
    "few refinements": (256, 32, 2),
    "many candidates": (64, 16, 8),
    "long prompt": (512, 16, 2),
}
SHORT = 0.1  # seconds: steps of the grid that are shorter run so long in a row, as in training, before the other side
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


SHAPES = {
    "smollm2": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3),
    "qwen2-0.5b": dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                       num_attention_heads=14, num_key_value_heads=2),
    "qwen2-1.5b": dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                       num_attention_heads=12, num_key_value_heads=2),
    "small": dict(vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4),
}  # fmt: skip


def load_model(name: str = "smollm2", dtype: torch.dtype = torch.float32):
    """A model by its folder or by a name of `SHAPES`, which is one of random weights but for SmolLM2's."""
    torch.manual_seed(0)
    path = str(SMOLLM2) if name == "smollm2" and SMOLLM2.exists() else name
    if path not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    kind = (Qwen2Config, Qwen2ForCausalLM) if name.startswith("qwen2") else (LlamaConfig, LlamaForCausalLM)
    config = kind[0](**SHAPES[name], max_position_embeddings=32768, tie_word_embeddings=True)
    with torch.device(DEVICE):
        return kind[1](config).to(dtype)


def make_trainer(trainer_class, model, generations: int, limit: int):
    row = {"prompt": [{"role": "user", "content": "1"}], "problem": "1", "problem_id": "1", "answer": "1"}
    config_class = GSRConfig if trainer_class is GSRTrainer else GRPOConfig
    args = config_class(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=2 * generations,
        num_generations=generations,
        max_completion_length=limit,
        loss_type="dr_grpo",
        beta=0.0,
        bf16=False,
        use_cpu=DEVICE == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        **({"num_candidates": 1} if trainer_class is GSRTrainer else {}),
    )
    trainer = trainer_class(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=build_tokenizer(),
    )
    trainer.model.train()
    return trainer


def make_rows(prompt: int, completion: int, rows: int, vocabulary: int, stage: int = 0) -> batching.Batch:
    """Rows of one prompt, as TRL's generation batch has them."""
    stream = torch.Generator().manual_seed(prompt + stage)
    shape = (rows, completion)
    batch = {
        "prompt_ids": torch.randint(3, vocabulary, (1, prompt), generator=stream).repeat(rows, 1),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.randint(3, vocabulary, shape, generator=stream),
        "completion_mask": torch.ones(shape, dtype=torch.long),
        "advantages": torch.randn(rows, generator=stream),
        "stage": torch.full((rows,), stage),
    }
    return {key: value.to(DEVICE) for key, value in batch.items()}


def ragged_rows(prompt: int, longest: int, rows: int, vocabulary: int, stage: int, seed: int) -> batching.Batch:
    """Rows of one prompt whose completions have lengths drawn from a quarter of the longest upwards, padded."""
    lengths = torch.randint(max(1, longest // 4), longest + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    batch = make_rows(prompt, int(lengths.max()), rows, vocabulary, stage)
    places = torch.arange(batch["completion_ids"].shape[1], device=DEVICE)
    return batch | {"completion_mask": (places < lengths.to(DEVICE)[:, None]).long()}


def padded_together(parts: list[batching.Batch]) -> batching.Batch:
    """All rows in one batch of the longest prompt's width, shuffled, as TRL's trainer makes it."""
    width = max(part["prompt_ids"].shape[1] for part in parts)
    padded = [
        {
            key: torch.nn.functional.pad(value, (width - value.shape[1], 0)) if key.startswith("prompt") else value
            for key, value in part.items()
        }
        for part in parts
    ]
    whole = {key: torch.cat([part[key] for part in padded]) for key in padded[0]}
    order = torch.randperm(len(whole["stage"]), generator=torch.Generator().manual_seed(0))
    return batching.take_rows(whole, order.to(DEVICE))


def trl_step(trainer: GRPOTrainer, batches: list[batching.Batch], size: int) -> None:
    """Stock TRL: one forward, loss and backward a micro-batch of `size` rows."""
    total = sum(len(batch["stage"]) for batch in batches)
    for batch in batches:
        for rows in torch.arange(len(batch["stage"])).split(size):
            trainer.current_gradient_accumulation_steps = total / len(rows)
            trainer._compute_loss(trainer.model, batching.take_rows(batch, rows)).backward()


def one_pass_a_part(parts: list[batching.Batch]) -> batching.MicroBatch:
    """GSRTrainer's training batch."""
    counts = torch.zeros(len(batching.STAGES), 2, device=DEVICE)
    for part in parts:
        numbers = [float(len(part["stage"])), float(part["completion_mask"].sum())]
        counts[part["stage"][0]] += torch.tensor(numbers, device=DEVICE)
    return batching.MicroBatch(parts, counts)


def our_step(trainer: GSRTrainer, batch: batching.MicroBatch) -> None:
    """GSRTrainer: forward, loss and backward of its passes."""
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch).backward()


def timed(step) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fastest_size(trainer, batches, sizes, runs: int) -> tuple[int, dict[int, float]]:
    """Stock TRL's fastest micro-batch size: seconds a row, the best of some runs of one micro-batch."""
    seconds = {}
    for size in sizes:
        part = [batching.take_rows(batch, torch.arange(min(size, len(batch["stage"])))) for batch in batches]
        rows = sum(len(one["stage"]) for one in part)
        seconds[size] = min(timed(partial(trl_step, trainer, part, size)) for _ in range(runs)) / rows
    return min(seconds, key=seconds.get), seconds


def our_fastest(trainer: GSRTrainer, rows: batching.Batch, sizes: set[int]) -> tuple[int, partial]:
    """GSRTrainer's fastest number of rows a pass, and its step; the prompt is computed once in each pass."""
    steps = {}
    for size in sizes:
        parts = [batching.take_rows(rows, part) for part in torch.arange(len(rows["stage"])).split(size)]
        steps[len(parts[0]["stage"])] = partial(our_step, trainer, one_pass_a_part(parts))
    for step in steps.values():  # warms up
        step()
    best = min(steps, key=lambda size: timed(steps[size])) if len(steps) > 1 else next(iter(steps))
    return best, steps[best]


def again(step, times: int):
    """A step, so many times in a row."""

    def steps():
        for _ in range(times):
            step()

    return steps


def in_turn(repeats: int, *steps, warm: bool = False) -> list[float]:
    """Median seconds of each step, run one after the other `repeats` times, after one warm-up unless they are warm."""
    times = [[timed(step) for step in steps] for _ in range(repeats + (not warm))][-repeats:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def gradient_of(trainer, step) -> torch.Tensor:
    trainer.model.zero_grad()
    step()
    return torch.cat([p.grad.flatten().float() for p in trainer.model.parameters()])


def joint_rows(vocabulary: int) -> list[batching.Batch]:
    return [
        make_rows(PROBLEM, CANDIDATE, G, vocabulary, 0),
        make_rows(PROBLEM + K * CANDIDATE, REFINEMENT, G, vocabulary, 1),
    ]


def head_seconds_a_position(model, positions: int = 512) -> float:
    """Forward and backward of TRL's fused head alone, measured on so many positions."""
    weight = model.get_output_embeddings().weight
    hidden = torch.randn(positions, weight.shape[1], device=DEVICE, dtype=weight.dtype, requires_grad=True)
    labels = torch.zeros(positions, dtype=torch.long, device=DEVICE)

    def step():
        found = ChunkedLogProbFunction.apply(
            hidden, weight, None, labels, 1.0, 32768, None, 1.0, ("log_probs", "entropy")
        )
        found[0].sum().backward()

    return in_turn(3, step)[0] / positions


def sft_step(model, ids: torch.Tensor) -> None:
    """A plain packed SFT step: one row, causal attention, cross entropy of every token."""
    model(input_ids=ids, labels=ids).loss.backward()


def measure_step(load, repeats: int) -> dict:
    model = load()
    ours = make_trainer(GSRTrainer, model, G, REFINEMENT)
    stock = make_trainer(GRPOTrainer, load(), G, REFINEMENT)
    parts = joint_rows(model.config.vocab_size)
    mixed = padded_together(parts)
    first = gradient_of(stock, lambda: trl_step(stock, [mixed], 1))
    second = gradient_of(ours, lambda: our_step(ours, one_pass_a_part(parts)))
    difference = ((first - second).norm() / first.norm()).item()
    mixed_size, mixed_seconds = fastest_size(stock, [mixed], (1, 4, 8), 2)  # a size's first run warms up
    stage_size, stage_seconds = fastest_size(stock, parts, (1, 4, 8), 2)
    print("stock TRL, seconds a row by micro-batch size, mixed:", _rounded(mixed_seconds), flush=True)
    print("                                          by stage:", _rounded(stage_seconds), flush=True)
    unique = PROBLEM * 2 + K * CANDIDATE + G * (CANDIDATE + REFINEMENT - 2)
    sft = partial(sft_step, stock.model, torch.randint(3, model.config.vocab_size, (1, unique), device=DEVICE))
    sft()
    *times, sft_seconds = in_turn(
        repeats,
        lambda: trl_step(stock, [mixed], mixed_size),
        lambda: trl_step(stock, parts, stage_size),
        lambda: our_step(ours, one_pass_a_part(parts)),
        sft,
        warm=True,
    )
    computed = [mixed["stage"].numel() * (PROBLEM + K * CANDIDATE + REFINEMENT)]
    computed += [sum(part["stage"].numel() * (part["prompt_ids"].shape[1] + CANDIDATE) for part in parts), unique]
    # Off CUDA TRL's head scores every position but each row's last; ours the predicting ones.
    positions = [tokens - 2 * G for tokens in computed[:2]] + [G * (CANDIDATE + REFINEMENT)]
    scored = positions if DEVICE == "cpu" else [positions[2]] * 3
    print(f"{'':24}{'micro-batch':>12}{'tokens':>8}{'seconds':>9}{'tokens/s':>9}{'head':>7}{'ratio':>7}")
    sizes = (f"{mixed_size} rows", f"{stage_size} rows", "a stage")
    names = ("stock TRL, mixed", "stock TRL, by stage", "GSRTrainer")
    head = head_seconds_a_position(model)
    for name, size, tokens, seconds, places in zip(names, sizes, computed, times, scored, strict=True):
        share = head * places / seconds
        print(
            f"{name:24}{size:>12}{tokens:8}{seconds:9.2f}{tokens / seconds:9.0f}{share:7.0%}{seconds / times[2]:7.2f}"
        )
    print(f"gradients differ by {difference:.1e} of their norm", flush=True)
    share = sft_seconds / times[2]
    print(f"tokens/s over those of a plain SFT step on one packed row of as many tokens: {share:.2f}", flush=True)
    return {
        "ratio_mixed": times[0] / times[2],
        "ratio_by_stage": times[1] / times[2],
        "grad_rel_diff": difference,
        "sft_share": share,
        "micro_batch_mixed": mixed_size,
    }


def measure_memory(size: int, options: list[str]) -> float:
    """Peaks of both sides, each in a process of its own that is told the model by these options."""
    peaks = []
    give_freed_memory_back()
    for side in ("trl", "ours"):
        command = [sys.executable, __file__, "--side", side, "--micro_batch", str(size), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        peaks.append(float(done.stdout.splitlines()[-1]))
    print(
        f"peak memory beyond the loaded model, GiB: stock TRL ({size} rows, mixed) {peaks[0]:.2f}, ours {peaks[1]:.2f}"
    )
    return peaks[1] / peaks[0]


def print_peak(load, side: str, size: int) -> None:
    """The child of `measure_memory`: our step or two micro-batches of TRL's, then GiB of peak beyond the model."""
    model = load()
    parts = joint_rows(model.config.vocab_size)
    trainer = make_trainer(GSRTrainer if side == "ours" else GRPOTrainer, model, G, REFINEMENT)
    gc.collect()
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
        before = resident("VmRSS")
    if side == "ours":
        our_step(trainer, one_pass_a_part(parts))
    else:  # the second micro-batch has gradients beside it, as all further ones have
        mixed = padded_together(parts)
        trl_step(trainer, [batching.take_rows(mixed, torch.arange(min(2 * size, 2 * G)))], size)
    after = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident("VmHWM")
    print((after - before) / 2**30)


def measure_grid(load, dtype: torch.dtype, repeats: int) -> float:
    """Stock TRL's seconds over ours for one prompt and G completions, over lengths; returns the worst."""
    worst = float("inf")
    print(
        f"{'model':10}{'point':18}{'prompt':>7}{'completion':>11}{'G':>4}"
        f"{'rows':>5}{'our rows':>9}{'TRL s':>9}{'ours s':>9}{'ratio':>7}"
    )
    grids = {"small": [("", point) for point in SMALL_GRID], "model": list(NAMED_GRID.items())}
    for which, points in grids.items():
        of = partial(load_model, "small", dtype) if which == "small" else load
        stock, ours = make_trainer(GRPOTrainer, of(), 2, 16), make_trainer(GSRTrainer, of(), 2, 16)
        for name, (prompt, completion, generations) in points:
            rows = [make_rows(prompt, completion, generations, ours.model.config.vocab_size)]
            our_size, our_side = our_fastest(ours, rows[0], {generations} if which == "model" else {4, generations})
            tries = {1, generations} if which == "model" else {1, min(4, generations), generations}
            size, _ = fastest_size(stock, rows, sorted(tries), 1 if which == "model" else 2)  # warm by now
            sides = (partial(trl_step, stock, rows, size), our_side)
            times = 1 + int(SHORT / timed(our_side))
            theirs, mine = (
                total / times for total in in_turn(repeats, *(again(side, times) for side in sides), warm=True)
            )
            worst = min(worst, theirs / mine)
            point = f"{which:10}{name:18}{prompt:7}{completion:11}{generations:4}{size:5}{our_size:9}"
            print(f"{point}{theirs:9.3f}{mine:9.3f}{theirs / mine:7.2f}", flush=True)
        del stock, ours
    return worst


def _rounded(seconds: dict[int, float]) -> dict[int, float]:
    return {size: round(value, 3) for size, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch")
    parser.add_argument("--only", choices=("step", "memory", "grid"), help="one part alone")
    parser.add_argument("--micro_batch", type=int, default=4, help="rows of stock TRL with --only memory")
    parser.add_argument("--model", default="smollm2", help="a folder, or one of " + ", ".join(SHAPES))
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32" if DEVICE == "cpu" else "bfloat16",
        help="of the weights; the default is %(default)s on this machine",
    )  # fmt: skip
    parser.add_argument("--side", choices=("trl", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model not in SHAPES and not Path(options.model).is_dir():
        parser.error(f"--model {options.model} is no folder: give one, or one of {', '.join(SHAPES)}")
    torch.set_num_threads(options.threads)
    if DEVICE == "cpu":
        keep_freed_memory()
    dtype = getattr(torch, options.dtype)
    load = partial(load_model, options.model, dtype)
    if options.side:
        print_peak(load, options.side, options.micro_batch)
        return
    made = options.model in SHAPES and not (options.model == "smollm2" and SMOLLM2.exists())
    print(f"{options.model}{' (random weights)' if made else ''} in {options.dtype}")
    print(f"torch {torch.__version__} on {DEVICE}, {torch.get_num_threads()} threads of {os.cpu_count()}")
    start, found = time.perf_counter(), {}
    if options.only in (None, "step"):
        found |= measure_step(load, options.repeats)
    if options.only in (None, "memory"):
        told = ["--model", options.model, "--dtype", options.dtype, "--threads", str(options.threads)]
        found["memory_ratio"] = measure_memory(found.pop("micro_batch_mixed", options.micro_batch), told)
    if options.only in (None, "grid"):
        found["worst_grid_ratio"] = measure_grid(load, dtype, options.repeats)
    print(f"{time.perf_counter() - start:.0f} s in all, load of the machine {os.getloadavg()[0]:.1f}")
    print(json.dumps({key: float(f"{value:.4g}") for key, value in found.items()}))


if __name__ == "__main__":
    main()
