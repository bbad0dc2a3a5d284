"""Refinements that only choose: those whose every step stands in one of their candidates, and as many of any kind.

    python recipes/tiny/known_steps.py --rows runs/tiny/distill/sft_rows.jsonl --output_dir runs/tiny/known_steps

A student that learns from them to do better than its candidates has learned to pick and to join, not to compute.
`known.jsonl` and `any.jsonl` have the same direct solutions, as many as refinements, and as many refinements.
"""

import argparse
import json
import random
import re
from pathlib import Path


def steps_of(text: str) -> list[str]:
    """The steps that a solution writes: `value step=value` of a chain; of a guess its whole check."""
    head = text.split("\\boxed")[0]
    chain = re.findall(r"(?=(\d\d[+\-*]\d=\d\d))", head)
    return chain or [head]


def only_known_steps(row: dict) -> bool:
    """Whether every step of a refinement row stands in one of its candidates."""
    known = {step for candidate in row["candidates"] for step in steps_of(candidate)}
    return set(steps_of(row["completion"][-1]["content"])) <= known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="sft_rows.jsonl of a distillation.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from gsr_rl.run_folder import atomic_write

    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    direct = [row for row in rows if row["stage"] == "candidate"]
    refined = [row for row in rows if row["stage"] == "refinement"]
    known = [row for row in refined if only_known_steps(row)]
    rng = random.Random(args.seed)
    number = min(len(known), len(direct))
    chosen = rng.sample(direct, number)
    for name, some in {"known": known, "any": refined}.items():
        mixed = chosen + rng.sample(some, number)
        rng.shuffle(mixed)
        atomic_write(args.output_dir / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in mixed))
    print(f"{len(known)} of {len(refined)} refinements have known steps only; {number} are in each file")


if __name__ == "__main__":
    main()
