"""SFT rows made by rule, for the base and the teacher of SmolLM2's chain_sum run.

    python recipes/SmolLM2-135M-Instruct/chain_sum/starter_rows.py --output_dir runs/SmolLM2-chain_sum

SmolLM2-135M-Instruct solves next to none of these sums and never boxes an answer, so there is nothing to refine and
nothing to reward. `base_rows.jsonl` has sums worked step by step, from which it learns the form and part of the skill;
`teacher_rows.jsonl`, from which the teacher learns after that, has refinements: right solutions after candidates of
which some slip in a step. The problems are of the split `base`, which shares no text with those of distillation, GRPO
and evaluation.
"""

import argparse
import json
import random
import re
from pathlib import Path

from gsr_rl.data.config import ProblemConfig
from gsr_rl.data.problems import load_problems
from gsr_rl.refinement.prompts import get_template, refinement_prompt, solve_prompt
from gsr_rl.run_folder import atomic_write

SUMS = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1}


def solution(problem: str, rng: random.Random, slips: float = 0.0) -> str:
    """The sum from left to right, a line a step; with probability `slips` one step is off and the rest follows it."""
    total, *terms = [int(term) for term in re.findall(r"-?\d+", re.sub(r"([+-]) (?=\d)", r"\1", problem))]
    wrong = rng.randrange(len(terms)) if rng.random() < slips else None
    lines = []
    for place, term in enumerate(terms):
        result = total + term + (rng.choice((-10, -2, -1, 1, 2, 10)) if place == wrong else 0)
        lines.append(f"{total} {'+' if term >= 0 else '-'} {abs(term)} = {result}")
        total = result
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def sft_row(row: dict, prompt: list[dict], text: str, candidates: list[str] | None) -> dict:
    right = None if candidates is None else sum(f"boxed{{{row['answer']}}}" in one for one in candidates)
    return {
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": text}],
        "stage": "candidate" if candidates is None else "refinement",
        "problem_id": row["id"],
        "answer": row["answer"],
        "candidates": candidates,
        "num_correct": right,
        "source": "rule",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/SmolLM2-chain_sum"))
    parser.add_argument("--direct", type=int, default=200, help="worked sums, for the base")
    parser.add_argument("--refinements", type=int, default=640, help="refinements, for the teacher")
    parser.add_argument("--num_candidates", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, template = random.Random(args.seed), get_template("gsr")
    wanted = args.direct + args.refinements
    problems = load_problems(
        ProblemConfig("reasoning_gym/chain_sum", dataset_split="base", max_problems=wanted, dataset_kwargs=SUMS)
    )
    direct = []
    for row in problems[: args.direct]:
        direct.append(sft_row(row, solve_prompt(row["problem"], template), solution(row["problem"], rng), None))
    refined = []
    for row in problems[args.direct :]:
        slips = rng.choice((0.2, 0.5, 0.8, 1.0))
        candidates = [solution(row["problem"], rng, slips) for _ in range(args.num_candidates)]
        prompt = refinement_prompt(row["problem"], candidates, template)
        refined.append(sft_row(row, prompt, solution(row["problem"], rng), candidates))
    assert all(f"boxed{{{row['answer']}}}" in row["completion"][0]["content"] for row in direct + refined)
    for name, rows in (("base", direct), ("teacher", refined)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write(args.output_dir / f"{name}_rows.jsonl", text)
        print(f"{args.output_dir}/{name}_rows.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
