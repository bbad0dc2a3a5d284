"""Evaluate a model: direct solutions, votes, its own refinements over the same candidates, other methods, controls.

    python recipes/eval_gsr.py --config recipes/tiny/eval.yaml --model runs/demo/sft --output_dir runs/demo/eval_sft
    python recipes/eval_gsr.py --model MODEL --output_dir OUT --benchmarks aime24 amc23 --num_generations 32 \
        --grouping disjoint --temperature 0.6 --top_p 0.95
    python recipes/eval_gsr.py --from_samples OUT --compare_with OTHER

1. Candidates are sampled, K of them chosen uniformly for each refinement: the choice never looks at correctness.
2. Units are stored as they finish. The same command goes on after a kill; with a further method (`--methods`) it
   samples that one alone, over the same candidates. `--candidates_from OTHER_RUN/samples.parquet` adds refinement over
   another run's candidate sets, or, with `--own_candidates false`, takes its candidates for all methods.
3. Every sample ends in samples.parquet. All figures are made from that file alone; `--from_samples` makes them again,
   and over several seeds; `--compare_with` sets one run against another model's, paired by problem.
4. Beside the gap stand its controls: the vote with one candidate more and at equal tokens, refinement without
   candidates and with another problem's.
"""

import json
from pathlib import Path

from gsr_rl.cli import clear_errors, parse


def dry_run(configs: dict, problem_args, args) -> None:
    """Print the configuration and how much is sampled; the Hub is asked only for what `dataset_name` names."""
    from gsr_rl.data import benchmarks
    from gsr_rl.evaluation.evaluate import check_loaded, from_other_run, load_benchmark
    from gsr_rl.evaluation.methods import requests_of
    from gsr_rl.run_folder import print_dry_run

    rows, sizes, frozen = [] if args.benchmarks else load_benchmark(problem_args, args), {}, None
    number = len(rows)
    for name in args.benchmarks or []:
        source, known = benchmarks.describe(name, args.benchmark_files, problem_args)
        rows += known if isinstance(known, list) else []
        size = len(known) if isinstance(known, list) else known
        number = None if None in (number, size) else number + size
        sizes[name] = f"{'?' if size is None else size} from {source}"
    if number == len(rows):  # none is the Hub's
        if args.benchmarks:
            check_loaded(rows, args)
        if args.candidates_from:
            frozen = from_other_run(rows, args)[0]
    print_dry_run(configs, sizes | requests_of(number, args, frozen))


def sample(configs: dict, problem_args, args) -> None:
    """Sample what is missing, and write samples.parquet."""
    from gsr_rl.engines.base import EngineError
    from gsr_rl.evaluation.evaluate import evaluate, load_benchmark
    from gsr_rl.report.samples import write_samples
    from gsr_rl.run_folder import write_run_info

    with clear_errors("eval", EngineError):
        rows = load_benchmark(problem_args, args)
        samples, header = evaluate(rows, problem_args, args)
        write_run_info(args.output_dir, configs)
        write_samples(Path(args.output_dir) / "samples.parquet", samples, header)


def report(source: Path, folder: Path, num_examples: int) -> dict:
    """eval.json and the reports in `folder`, from the samples of the run in `source`. Returns the figures."""
    from gsr_rl.report.html import write_report
    from gsr_rl.report.problem_values import metrics_from_samples
    from gsr_rl.report.samples import read_samples, samples_path
    from gsr_rl.report.tables import summarise
    from gsr_rl.run_folder import atomic_write

    path = samples_path(source)
    summary = summarise(metrics_from_samples(path))
    atomic_write(folder / "eval.json", json.dumps(summary, indent=1) + "\n")
    write_report(folder, summary, read_samples(path)[1], num_examples)
    return summary


def remake(args) -> None:
    """Every table of a finished run, without a model; of several runs, seeds.json and seeds.md over them."""
    from gsr_rl.report.markdown import seeds_markdown
    from gsr_rl.report.problem_values import metrics_from_samples
    from gsr_rl.report.samples import samples_path
    from gsr_rl.report.tables import over_seeds
    from gsr_rl.run_folder import atomic_write

    sources = [samples_path(run) for run in args.from_samples]
    if len(sources) == 1:
        folder = Path(args.output_dir or own_folder(sources[0]))
        if args.regrade:
            sources = [regrade(sources[0], folder, args.verdict_pattern)]
        print_report(report(sources[0], folder, args.num_examples))
        return compare(sources[0], folder, args.compare_with)
    runs = [metrics_from_samples(source) for source in sources]
    content = {"runs": [str(source) for source in sources]} | over_seeds(runs)
    text = seeds_markdown(content)
    atomic_write(Path(args.output_dir) / "seeds.json", json.dumps(content, indent=1) + "\n")
    atomic_write(Path(args.output_dir) / "seeds.md", text)
    print(text)


def regrade(source: Path, folder: Path, verdict_pattern: str | None) -> Path:
    """The run's samples, graded anew, as `folder`/samples.parquet."""
    from gsr_rl.evaluation.evaluate import regraded
    from gsr_rl.report.samples import read_samples, write_samples

    header, stored = read_samples(source)
    samples, changed = regraded(stored, verdict_pattern)
    write_samples(folder / "samples.parquet", samples, header)
    print(f"{len(samples):,} samples graded anew, strictly and leniently: {changed:,} grades differ", flush=True)
    return folder / "samples.parquet"


def own_folder(source: Path) -> Path:
    """The folder of a run, where its reports are; other files may share a folder, and each would replace the last."""
    if source.name != "samples.parquet":
        raise ValueError(f"from_samples: {source} is no run's samples.parquet: say where its reports go by output_dir")
    return source.parent


def compare(source: Path, folder: Path, other: str | None) -> None:
    """compare.json and compare.md in `folder`: the run in `source` against the `other`, if one is named."""
    from gsr_rl.report.markdown import comparison_markdown
    from gsr_rl.report.tables import comparison
    from gsr_rl.run_folder import atomic_write

    if not other:
        return
    content = {"runs": [str(source), other]} | comparison(source, other)
    atomic_write(folder / "compare.json", json.dumps(content, indent=1) + "\n")
    atomic_write(folder / "compare.md", comparison_markdown(content))
    print(comparison_markdown(content))


def print_report(summary: dict) -> None:
    from gsr_rl.report.markdown import report_markdown

    print(report_markdown(summary))


def main() -> None:
    problem_args, args = parse("eval")
    configs = {"problems": problem_args, "evaluation": args}
    if args.from_samples:
        with clear_errors("eval"):
            return remake(args)
    if args.dry_run:
        with clear_errors("eval"):
            return dry_run(configs, problem_args, args)
    folder = Path(args.output_dir)
    sample(configs, problem_args, args)
    with clear_errors("eval"):
        print_report(report(folder, folder, args.num_examples))
        compare(folder, folder, args.compare_with)

    # The results in the model's card: in its folder, on the Hub, or both.
    if args.update_model_card or args.push_to_hub:
        from gsr_rl.hub.push import Target, results_or_exit

        target = Target(args.hub_model_id or args.model, "model", args.hub_private_repo, args.hub_revision)
        local = args.model if args.update_model_card else None
        results_or_exit(folder, local, target if args.push_to_hub else None)


if __name__ == "__main__":
    main()
