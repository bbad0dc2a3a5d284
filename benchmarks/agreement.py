"""What more candidates and `--stop_when_agreed` give and cost in use: problems solved by `Solver`, in one engine.

    python benchmarks/agreement.py --model runs/demo/grpo [--problems 200] [--num_candidates 16]

Validation problems of the tiny world, sampled as `gsr-solve` does by default. A row is a setting: right answers in
percent, tokens of completions and of prompts a problem, candidates and refinements a problem. Differences from the row
`N, all votes` are paired by problem, with an interval from a bootstrap. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ALL_VOTES = "N, all votes"


def settings(n: int, k: int) -> dict[str, dict]:
    """The rows: name and keys of `Solver`."""
    return {
        f"K = {k}": {"num_candidates": k},
        "vote of N": {"num_candidates": n, "mode": "vote"},
        "N in one prompt": {"num_candidates": n, "candidates_per_set": n, "max_refinement_prompt_length": 2**20},
        ALL_VOTES: {"num_candidates": n},
        "N, until the vote cannot change": {"num_candidates": n, "stop_when_agreed": 1},
        "N, until 0.8 agree": {"num_candidates": n, "stop_when_agreed": 0.8},
        "N, until 0.6 agree": {"num_candidates": n, "stop_when_agreed": 0.6},
    }


def difference(new: list[float], old: list[float]) -> list[float]:
    """The mean paired difference in points, with the ends of its 95 % interval."""
    rng, gaps = random.Random(0), [100 * (one - other) for one, other in zip(new, old, strict=True)]
    draws = sorted(sum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(2000))
    return [round(value, 1) for value in (sum(gaps) / len(gaps), draws[50], draws[-51])]


def measure(model: str, engine, keys: dict, rows: list[dict]) -> dict:
    """Solve all problems with these keys: what is right, and means by problem."""
    import rewards
    from gsr_rl import Solver

    solutions = list(Solver(model, engine, **keys).solve_many(row["problem"] for row in rows))
    right = rewards.grade([one.text for one in solutions], [row["answer"] for row in rows])

    def mean(values) -> float:
        return round(sum(values) / len(rows), 1)

    return {
        "right": right,
        "accuracy": mean(100 * value for value in right),
        "completion_tokens": mean(one.usage.completion_tokens for one in solutions),
        "prompt_tokens": mean(one.usage.prompt_tokens for one in solutions),
        "candidates": mean(len(one.candidates) for one in solutions),
        "refinements": mean(sum(map(len, one.rounds[1:])) for one in solutions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/demo/grpo", help="A model of the tiny world that was trained.")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--num_candidates", type=int, default=16)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    from gsr_rl.data.tiny_world import generate
    from gsr_rl.engines.open import open_engine
    from gsr_rl.refinement.settings import refinement_settings

    rows = generate("mix", "validation", args.problems, 0)
    k = refinement_settings(args.model).get("num_candidates", 4)
    found = {}
    with open_engine(args.engine, args.model, dtype="float32") as engine:
        for name, keys in settings(args.num_candidates, k).items():
            found[name] = measure(
                args.model, engine, {"prompt_template": "tiny", "candidates_per_set": k} | keys, rows
            )
    print(f"N = {args.num_candidates}, K = {k}, {args.problems} validation problems, {args.model}\n")
    print("| | right, % | against all votes | completion tokens | prompt tokens | candidates | refinements |")
    print("|---|---|---|---|---|---|---|")
    every = found[ALL_VOTES]["right"]
    for name, one in found.items():
        gap, low, high = difference(one.pop("right"), every)
        cells = [name, one["accuracy"], f"{gap:+.1f} [{low}, {high}]", *list(one.values())[1:]]
        print(f"| {' | '.join(map(str, cells))} |")
    whole, early = found[ALL_VOTES], found["N, until 0.8 agree"]
    figures = {"accuracy": whole["accuracy"], "accuracy_until_0.8": early["accuracy"]}
    print(json.dumps(figures | {"tokens_until_0.8": early["completion_tokens"] / whole["completion_tokens"]}))


if __name__ == "__main__":
    main()
