"""Distil: the student samples candidates, the teacher refines them, right refinements become rows for SFT.

    python recipes/distill_gsr.py --config recipes/tiny/distill.yaml --output_dir runs/demo/distill

1. A student can be its own teacher (leave teacher_model out): rejection sampling. Each of the two is vLLM in this
   process, a copy on every GPU, or served by OpenAI-compatible endpoints.
2. The paper's balance: of a problem all right refinements are kept, of one that is always right a few.
3. Direct solutions are mixed in, by default as many as refinements, so that solving is not unlearned.
4. The same command after an interruption goes on where it was; another configuration in the same folder is refused.
5. `--shard 1/4` does a quarter of the work; the same command without it puts the parts together.
"""

import json
import sys
import time
from pathlib import Path

from gsr_rl.cli import clear_errors, parse


def main() -> None:
    problem_args, args = parse("distill")
    configs = {"problems": problem_args, "distillation": args}

    from gsr_rl.data.problems import check_file, read_problems
    from gsr_rl.distillation.report import plan, stated_problems
    from gsr_rl.run_folder import append_json_line, atomic_path, atomic_write, print_dry_run, write_run_info

    # Problems, decontaminated. A dry run takes their number from the configuration if it stands there.
    if args.dry_run and (stated := stated_problems(problem_args, args)):
        with clear_errors("distill"):
            check_file(problem_args)
        return print_dry_run(configs, plan(stated, args))
    with clear_errors("distill"):
        problems = read_problems(problem_args)
    for reason, count in problems.counts.items():
        print(f"{problem_args.dataset_name}: {count:,} {reason}")
    if args.dry_run:
        return print_dry_run(configs, plan(len(problems.rows), args))

    # Candidates, refinements and their verification, in units that survive an interruption.
    from gsr_rl.distillation.distill import distill
    from gsr_rl.engines.base import EngineError

    started = time.time()
    folder = Path(args.output_dir)
    with clear_errors("distill", EngineError):
        result = distill(problems.rows, problem_args, args)
    if result is None:
        print(f"part {args.shard} is done. When all are: the same command without --shard writes the rows")
        return
    sft_rows, counts = result

    # The rows, what became of everything that was sampled, and how it was made.
    from gsr_rl.distillation.report import write_report

    write_run_info(folder, configs)
    with atomic_path(folder / "sft_rows.jsonl") as path, open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in sft_rows)
    removed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in problems.removed)
    if problem_args.decontaminate_against:
        atomic_write(folder / "decontamination.jsonl", removed)
    counts |= {"problems": problems.counts, "removed": problems.removed_by_set()}
    append_json_line(folder / "metrics.jsonl", counts | {"seconds": round(time.time() - started, 1)})
    report = write_report(folder, counts, sft_rows, args)
    print(report.split("\n## Rows to read")[0])
    print(f"{len(sft_rows):,} rows: {folder / 'sft_rows.jsonl'}")
    if not len(sft_rows):
        print(
            "distill_gsr.py: warning: no refinement was kept, see the report for where they were lost: a student "
            "or teacher that boxes no answer, limits that cut completions off, or problems that are too hard",
            file=sys.stderr,
        )

    # The same rows as a data set of the Hub, with their card.
    if args.push_to_hub:
        from gsr_rl.hub.dataset_card import card_text, write_data_set
        from gsr_rl.hub.push import Target, push_or_exit

        card = card_text(args.hub_dataset_id, counts, report, args, problem_args)
        data_set = write_data_set(folder / "sft_rows.jsonl", folder / "data_set", card)
        push_or_exit(data_set, Target(args.hub_dataset_id, "dataset", args.hub_private_repo, args.hub_revision))


if __name__ == "__main__":
    main()
