"""Evaluate a model: direct solutions, votes, and its own refinements over the same candidates, with controls.

    python recipes/eval_gsr.py --config recipes/tiny/eval.yaml --model runs/demo/sft --output_dir runs/demo/eval_sft

1. Candidates are sampled, K of them chosen uniformly for each refinement: the choice never looks at correctness.
2. Every sample is stored in samples.parquet. All figures are made from that file alone, so they can be remade.
3. Beside the gap stand its controls: the vote with one candidate more, refinement without candidates, and with
   another problem's; `--candidates_from OTHER_RUN/samples.parquet` adds refinement over that run's candidate sets.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gsr_rl.cli import clear_errors, parse


def arithmetic(rows: list[dict], args) -> dict[str, object]:
    """How much is sampled."""
    sets = len(rows) * args.num_candidate_sets
    kinds = 1 + len(args.controls) + (args.candidates_from is not None)
    candidates = len(rows) * args.num_generations
    longest = candidates * args.max_completion_length + sets * kinds * args.max_refinement_length
    return {
        "problems": len(rows),
        "candidates": candidates,
        "candidate sets": sets,
        "refinements, controls included": sets * kinds,
        "completion tokens at most": longest,
    }


def main() -> None:
    problem_args, args = parse("eval")
    configs = {"problems": problem_args, "evaluation": args}

    from gsr_rl.evaluation import load_benchmark

    with clear_errors("eval"):
        rows = load_benchmark(problem_args, args)
    if args.dry_run:
        from gsr_rl.run_folder import print_dry_run

        return print_dry_run(configs, arithmetic(rows, args))

    # Sample: all candidates in one engine call, then all refinements and controls in another.
    from gsr_rl.evaluation import plan_refinements, sample_candidates, sample_refinements
    from gsr_rl.generation import EngineError, open_configured

    with clear_errors("eval", EngineError):
        engine = open_configured(args, args.model, args.seed)
    with engine:
        candidates = sample_candidates(engine, rows, args)
        tasks = plan_refinements(rows, candidates, args)
        refinements = sample_refinements(engine, rows, tasks, args)

    # Grade and store.
    from gsr_rl.evaluation import graded_samples, header_of, write_samples
    from gsr_rl.run_folder import atomic_write, write_run_info

    folder = Path(args.output_dir)
    write_run_info(folder, configs)
    samples = graded_samples(rows, candidates, tasks, refinements, args)
    write_samples(folder / "samples.parquet", samples, header_of(args, rows))

    # Every figure comes from the stored samples.
    from gsr_rl.report import report_markdown, write_report
    from gsr_rl.tables import metrics_from_samples, summarise

    summary = summarise(metrics_from_samples(folder))
    atomic_write(folder / "eval.json", json.dumps(summary, indent=1) + "\n")
    write_report(folder, summary)
    print(report_markdown(summary))

    # The results in the model's card: in its folder, on the Hub, or both.
    if args.update_model_card or args.push_to_hub:
        from gsr_rl.hub import Target, results_or_exit

        target = Target(args.hub_model_id or args.model, "model", args.hub_private_repo, args.hub_revision)
        local = args.model if args.update_model_card else None
        results_or_exit(folder, local, target if args.push_to_hub else None)


if __name__ == "__main__":
    main()
