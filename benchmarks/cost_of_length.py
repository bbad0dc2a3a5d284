"""How a refinement pass grows with what its prompt shows: seconds against the operations that it must at least do.

    python benchmarks/cost_of_length.py [--repeats 5] [--lengths 16 32 64 128 256] [--plot FILE.png]
    python benchmarks/cost_of_length.py --break_even small|qwen2-1.5b|FOLDER

SmolLM2-135M in float32, 8 refinements of 64 tokens over a problem of 64 tokens and K = 4 candidates, whose length
grows from point to point. The ideal grows with the unique tokens (prompt once, completions) and with attention's
pairs of positions, counted as in a training step's account, from the first point's time. Medians of runs in turn, one
of each length after the other; TRL's padded rows, at one row a micro-batch, stand beside them, run once. Ends with one
line of JSON: the worst ratio of a point's growth to the ideal's.

With `--break_even` instead: how many tokens sharing a prompt must save to pay for its further attention calls, for 8
completions of 64 tokens, in bfloat16 on a GPU. Steps that share the prompt are run in turn with steps that do not, at
four lengths of the prompt, and a line is put through the differences. Ends with one line of JSON: those tokens, and as
operations of a layer, which is what SHARING_COST in gsr_rl/training/packing/throughput.py holds.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from process_memory import keep_freed_memory
from step_time import (
    DEVICE,
    PROBLEM,
    REFINEMENT,
    SHORT,
    G,
    K,
    again,
    in_turn,
    load_model,
    make_rows,
    make_trainer,
    one_pass_a_part,
    our_step,
    timed,
    trl_step,
)
from trl import GRPOTrainer

from gsr_rl.training.packing.rows import pack_rows
from gsr_rl.training.packing.throughput import StepAccount, layer_operations, least_saving
from gsr_rl.training.trainer import GSRTrainer

LENGTHS = [16, 32, 64, 128, 256]
ALONE = 10**9  # tokens to save, which no prompt does


def operations(model, rows: dict) -> tuple[int, float]:
    """Unique tokens and operations of a pass with its backward."""
    account = StepAccount()
    account.start(model, model.device, model.dtype)
    ids, mask = (torch.cat([rows[f"prompt_{key}"], rows[f"completion_{key}"]], dim=1) for key in ("ids", "mask"))
    account.add_packed(pack_rows(ids, mask, rows["completion_ids"].shape[1]), with_gradient=True)
    return int(account.tokens), account.operations


def measure_break_even(name: str, repeats: int) -> dict[str, float]:
    """Tokens, and operations of a layer, that sharing a prompt must save."""
    model = load_model(name, torch.float32 if DEVICE == "cpu" else torch.bfloat16)
    trainer = make_trainer(GSRTrainer, model, G, REFINEMENT)
    about = max(8 * (G - 1), least_saving(model, DEVICE))
    prompts = [round(about * share / (G - 1)) for share in (0.5, 1, 2, 4)]
    savings = [prompt * (G - 1) for prompt in prompts]

    def step(batch, least: int) -> None:
        trainer.least_saving = least
        our_step(trainer, batch)

    gains = []
    print(f"{'prompt':>7}{'saved':>7}{'shared s':>10}{'alone s':>10}")
    for prompt, saving in zip(prompts, savings, strict=True):
        rows = make_rows(prompt, REFINEMENT, G, model.config.vocab_size)
        rows["completion_mask"][0, -1] = 0  # rows without padding might be run as they are, unpacked
        sides = [partial(step, one_pass_a_part([rows]), least) for least in (0, ALONE)]
        times = 1 + int(SHORT / min(timed(side) for side in sides * 2))
        shared, alone = (total / times for total in in_turn(repeats, *(again(side, times) for side in sides)))
        gains.append(alone - shared)
        print(f"{prompt:7}{saving:7}{shared:10.5f}{alone:10.5f}", flush=True)
    slope, offset = np.polyfit(savings, gains, 1)
    tokens = max(0.0, -offset / slope)
    print(f"{tokens:.0f} tokens must be saved: a prompt of {tokens / (G - 1):.0f} for {G} completions")
    return {"break_even_saving": tokens, "sharing_cost": tokens * layer_operations(model)}


def draw(path: str, points: list[tuple]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    shown, _, ours, ideal, stock = zip(*points, strict=True)
    axes.loglog(shown, ours, "o-", label="ours")
    axes.loglog(shown, ideal, "k--", label="ideal: unique tokens and attention's pairs")
    axes.loglog(shown, stock, "s-", label="stock TRL, padded rows")
    axes.set_xlabel("tokens of candidates in the prompt, K x L")
    axes.set_ylabel("seconds, forward and backward")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs a point and side")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a candidate at each point")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch")
    parser.add_argument("--plot", help="write the plot to this file")
    parser.add_argument("--break_even", metavar="MODEL", help="measure what sharing a prompt costs, and nothing else")
    args = parser.parse_args()
    if args.plot:
        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.break_even:
        figures = measure_break_even(args.break_even, args.repeats)
        print(json.dumps({key: float(f"{value:.3g}") for key, value in figures.items()}))
        return
    model = load_model("smollm2")
    ours = make_trainer(GSRTrainer, model, G, REFINEMENT)
    stock = make_trainer(GRPOTrainer, load_model("smollm2"), G, REFINEMENT)
    prompts = [PROBLEM + K * length for length in args.lengths]
    batches = [make_rows(prompt, REFINEMENT, G, model.config.vocab_size, 1) for prompt in prompts]
    sizes = [operations(model, rows) for rows in batches]
    times = in_turn(args.repeats, *(partial(our_step, ours, one_pass_a_part([rows])) for rows in batches))
    ideal = [times[0] * work / sizes[0][1] for _, work in sizes]
    points = []
    print(f"{'K x L':>6}{'tokens':>8}{'ours s':>9}{'ideal s':>9}{'over':>7}{'TRL s':>9}")
    for length, rows, (tokens, _), ours_s, ideal_s in zip(args.lengths, batches, sizes, times, ideal, strict=True):
        theirs = timed(partial(trl_step, stock, [rows], 1))
        points.append((K * length, tokens, ours_s, ideal_s, theirs))
        print(
            f"{K * length:6}{tokens:8}{ours_s:9.2f}{ideal_s:9.2f}{ours_s / ideal_s:7.2f}{theirs:9.2f}",
            flush=True,
        )
    if args.plot:
        draw(args.plot, points)
    print(json.dumps({"worst_over_ideal": round(max(point[2] / point[3] for point in points), 3)}))


if __name__ == "__main__":
    main()
