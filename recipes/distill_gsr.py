"""Distil: the student samples candidates, the teacher refines them, right refinements become rows for SFT.

    python recipes/distill_gsr.py --config recipes/tiny/distill.yaml --output_dir runs/demo/distill

1. A student can be its own teacher (leave teacher_model out): rejection sampling.
2. The paper's balance: of a problem all right refinements are kept, of one that is always right a few.
3. Direct solutions are mixed in, by default as many as refinements, so that solving is not unlearned.
4. The same command after an interruption goes on where it was; another configuration in the same folder is refused.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gsr_rl.cli import clear_errors, parse


def arithmetic(rows: list[dict], args) -> dict[str, object]:
    """How much is sampled at most."""
    candidates = len(rows) * args.num_generations
    refinements = len(rows) * args.num_candidate_sets * args.refinements_per_set
    direct = len(rows) * args.direct_generations if args.direct_source == "teacher" else 0
    return {
        "problems": len(rows),
        "candidates": candidates,
        "candidate sets": len(rows) * args.num_candidate_sets,
        "refinements": refinements,
        "direct solutions of the teacher": direct,
        "student tokens at most": candidates * args.max_completion_length,
        "teacher tokens at most": (refinements + direct) * args.max_refinement_length,
        "refinement prompt tokens at most": len(rows) * args.num_candidate_sets * args.max_refinement_prompt_length,
        "rows at most": round(refinements * (1 + args.direct_ratio * (args.direct_source != "none"))),
    }


def main() -> None:
    problem_args, args = parse("distill")
    configs = {"problems": problem_args, "distillation": args}

    from gsr_rl.problems import load_problems
    from gsr_rl.run_folder import append_json_line, atomic_write, print_dry_run, write_run_info

    with clear_errors("distill"):
        rows = load_problems(problem_args)
    if args.dry_run:
        return print_dry_run(configs, arithmetic(rows, args))

    # Candidates, refinements and their verification, in units that survive an interruption.
    from gsr_rl.distill import distill, open_store
    from gsr_rl.sft_rows import report_markdown

    started = time.time()
    folder = Path(args.output_dir)
    with clear_errors("distill"):
        open_store(rows, problem_args, args)
    sft_rows, counts = distill(rows, problem_args, args)

    # The rows, what became of everything that was sampled, and how it was made.
    write_run_info(folder, configs)
    atomic_write(folder / "sft_rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sft_rows))
    append_json_line(folder / "metrics.jsonl", counts | {"seconds": round(time.time() - started, 1)})
    report = report_markdown(counts, sft_rows, args)
    atomic_write(folder / "distill_report.md", report)
    print(report.split("\n## ")[0])
    print(f"{len(sft_rows):,} rows: {folder / 'sft_rows.jsonl'}")


if __name__ == "__main__":
    main()
