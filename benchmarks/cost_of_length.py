"""How a refinement pass grows with what its prompt shows: seconds against the operations that it must at least do.

    python benchmarks/cost_of_length.py [--repeats 5] [--lengths 16 32 64 128 256] [--plot FILE.png]

SmolLM2-135M in float32, 8 refinements of 64 tokens over a problem of 64 tokens and K = 4 candidates, whose length
grows from point to point. The ideal grows with the unique tokens (prompt once, completions) and with attention's
pairs of positions, counted as in a training step's account, from the first point's time. Medians of runs in turn, one
of each length after the other; TRL's padded rows, at one row a micro-batch, stand beside them, run once. Ends with one
line of JSON: the worst ratio of a point's growth to the ideal's.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import torch
from process_memory import keep_freed_memory
from step_time import (
    PROBLEM,
    REFINEMENT,
    G,
    K,
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
from gsr_rl.training.packing.throughput import StepAccount
from gsr_rl.training.trainer import GSRTrainer

LENGTHS = [16, 32, 64, 128, 256]


def operations(model, rows: dict) -> tuple[int, float]:
    """Unique tokens and operations of a pass with its backward."""
    account = StepAccount()
    account.start(model, model.device, model.dtype)
    ids, mask = (torch.cat([rows[f"prompt_{key}"], rows[f"completion_{key}"]], dim=1) for key in ("ids", "mask"))
    account.add_packed(pack_rows(ids, mask, rows["completion_ids"].shape[1]), with_gradient=True)
    return int(account.tokens), account.operations


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
    args = parser.parse_args()
    if args.plot:
        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
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
