"""Other SFT rows out of distilled ones, to tell skill from circumstance.

    python recipes/tiny/select_rows.py --rows runs/tiny/distill/sft_rows.jsonl --output_dir runs/tiny/rows
    python recipes/tiny/select_rows.py --rows ... --right runs/tiny/right/sft_rows.jsonl --output_dir runs/tiny/rows

`known.jsonl`: refinements that only choose, every step of which stands in one of their candidates. A student that
learns from them to do better than its candidates has learned to pick and to join, not to compute. `any.jsonl`: as many
refinements of each family without a look at their steps. Both have the same direct solutions, as many.

`right.jsonl`, with `--right`, a distillation whose direct solutions are right ones: the refinements of `--rows`, and
as many direct solutions of each family as there, but from those.
"""

import argparse
import json
import random
import re
from collections import Counter
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


def family(row: dict) -> str:
    return row["problem_id"].split("-")[0]


def as_many(rng: random.Random, rows: list[dict], of: list[dict]) -> list[dict]:
    """Rows drawn at random, as many of each family as `of` has."""
    drawn = []
    for name, number in sorted(Counter(map(family, of)).items()):
        its = [row for row in rows if family(row) == name]
        if len(its) < number:
            raise SystemExit(f"{number} rows of {name} are wanted, and there are {len(its)}: distil more problems")
        drawn += rng.sample(its, number)
    return drawn


def stages(path: Path) -> tuple[list[dict], list[dict]]:
    """The direct and the refinement rows of a file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple([row for row in rows if row["stage"] == stage] for stage in ("candidate", "refinement"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="sft_rows.jsonl of a distillation.")
    parser.add_argument("--right", type=Path, help="sft_rows.jsonl of a distillation of right direct solutions.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from gsr_rl.run_folder import atomic_write

    rng = random.Random(args.seed)
    direct, refined = stages(args.rows)
    if args.right:
        parts = {"right": refined + as_many(rng, stages(args.right)[0], direct)}
    else:
        known = [row for row in refined if only_known_steps(row)]
        print(f"{len(known)} of {len(refined)} refinements have known steps only")
        known = rng.sample(known, min(len(known), len(direct)))
        chosen = rng.sample(direct, len(known))
        parts = {"known": chosen + known, "any": chosen + as_many(rng, refined, known)}
    for name, rows in parts.items():
        rng.shuffle(rows)
        atomic_write(args.output_dir / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
