"""The whole chain in the tiny world: distil, warm-start, joint GRPO on two ZeRO processes, evaluation of each model.

    python recipes/tiny/demo.py                    # what `make demo` runs: seed 0, into runs/demo
    python recipes/tiny/demo.py --seed 1 --output_dir runs/demo_seed1

Each step is one of the four programs with its YAML file and the keys below, as one would run it by hand; its command
is the first line of its log. A step that has ended is not run again: the same command resumes where it stopped.
"""

import argparse
import json
import time
from pathlib import Path

import chain
import live
import yaml
from chain import Step
from next_command import show_example
from paper_arms import SHOWN
from paper_steps import words

from gsr_rl.report.problem_values import metric_name

ARMS = Path(__file__).with_name("arms.yaml")
ROWS = {"base": "base", "sft": "after SFT", "grpo": "after GRPO"}
# Over the YAML files: a chain of minutes, shorter than that of `make paper`.
KEYS = {
    "distill": {"max_problems": 1700},
    "sft": {"num_train_epochs": 5},
    "grpo": {"max_steps": 60},
}
HONEST = """\
A control without refinement: the vote among candidates whose own check held (verdict@{k}) is right on {verdict} % of
problems, selfref@{k} on {refined} %: a difference of {gap}. The base has {untrained} % by that vote, untrained.
This chain is shorter than that of `make paper`, and joint GRPO starts here from a short warm start. From there more
SFT on the teacher's refinements refines better than joint GRPO; from a converged one joint GRPO gives better
single answers; that its refined ones are better is not shown.
Much of the gap is one of the two families' (guess). What else speaks against it: results/README.md."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling, of SFT and of GRPO.")
    parser.add_argument("--split", default="test", help="Problems of the evaluation: test, or validation for tuning.")
    parser.add_argument("--num_problems", type=int, default=2000, help="Problems of the evaluation.")
    parser.add_argument("--install_seconds", type=float, default=0.0, help="Put into summary.json by `make demo`.")
    return parser.parse_args()


def steps(args: argparse.Namespace) -> list[list[Step]]:
    """All steps in order. Those of one list run side by side."""
    out, seed = args.output_dir, args.seed
    keys = {program: words(of) for program, of in KEYS.items()}

    def evaluate(name: str, model: str) -> Step:
        folder, frozen = out / f"eval_{name}", out / "eval_base" if name != "base" else None
        command = chain.evaluate(folder, seed, model, args.split, args.num_problems, frozen)
        return Step(folder.name, "eval", command, out)

    sft, grpo = out / "sft", out / "grpo"
    sft_command = chain.sft(sft, seed, chain.BASE, f"{out}/distill/sft_rows.jsonl", *keys["sft"])
    return [
        [
            Step("distill", "distill", chain.distill(out / "distill", seed, *keys["distill"]), out),
            evaluate("base", chain.BASE),
        ],
        [Step("sft", "sft", sft_command, out)],
        [Step("grpo", "grpo", chain.grpo(grpo, seed, str(sft), *keys["grpo"]), out)],
        [evaluate("sft", str(sft)), evaluate("grpo", str(grpo))],
    ]


def summarise(folder: Path, seconds: dict[str, float]) -> dict:
    """summary.json from the three evaluations: figures, and paired differences between the models."""
    from gsr_rl.report.problem_values import metrics_from_samples
    from gsr_rl.report.tables import compare

    runs = {name: json.loads((folder / f"eval_{name}" / "eval.json").read_text()) for name in ROWS}
    benchmark = next(iter(runs["base"]["benchmarks"]))
    results = {name: metrics_from_samples(folder / f"eval_{name}") for name in ROWS}
    pairs = (("sft", "base"), ("grpo", "sft"), ("grpo", "base"))
    differences = {f"{new}-{old}": compare(results[new], results[old])[benchmark] for new, old in pairs}
    return {name: run["benchmarks"][benchmark] for name, run in runs.items()} | {
        "by_family": {
            part: {name: run["benchmarks"][part] for name, run in runs.items()}
            for part in runs["base"]["benchmarks"]
            if part != benchmark
        },
        "within": {name: run["differences"][benchmark] for name, run in runs.items()},
        "differences": differences,
        "claims": claims(results),
        "k": runs["base"]["k"],
        "num_problems": runs["base"]["num_problems"],
        "seed": runs["sft"]["seed"],
        "versions": runs["base"]["versions"],
        "hardware": runs["base"]["hardware"],
        "seconds": seconds,
    }


def claims(results: dict) -> dict[str, dict]:
    """The paired difference behind each claim; it holds where the whole interval is above zero."""
    from gsr_rl.report.tables import compare

    differences_of = {}
    for claim in yaml.safe_load(ARMS.read_text())["tables"]["demo"]["claims"]:
        (new, high), (old, low) = claim["new"], claim["old"]
        pair = tuple(metric_name(column, results[new].header["k"]) for column in (high, low))
        differences = next(iter(compare(results[new], results[old], pairs=[pair]).values()))
        differences_of[claim["text"]] = next(iter(differences.values()))
    return differences_of


def columns(summary: dict) -> list[str]:
    """The table's columns, by the evaluation's names."""
    return [metric_name(column, summary["k"]) for column in SHOWN]


def report(summary: dict) -> str:
    """summary.md: the table of the three models, and the claims."""
    from gsr_rl.report.markdown import figure, markdown_table

    names = columns(summary)
    rows = [[label, *(figure(summary[name].get(column)) for column in names)] for name, label in ROWS.items()]
    claim_rows = [[text, figure(gap), "yes" if gap["low"] > 0 else "no"] for text, gap in summary["claims"].items()]
    header = ["claim", "difference, points", "holds"]
    return f"{markdown_table(['', *names], rows)}\n\n{markdown_table(header, claim_rows)}\n"


def against(summary: dict) -> str:
    """What speaks against the chain, the control that needs no refinement first, from the run's own figures."""
    from gsr_rl.report.markdown import figure, points

    k, (base, grpo) = summary["k"], (summary[name] for name in ("base", "grpo"))
    shares = {"verdict": grpo[f"verdict@{k}"], "untrained": base[f"verdict@{k}"], "refined": grpo[f"selfref@{k}"]}
    gap = figure(summary["within"]["grpo"][f"selfref@{k}-verdict@{k}"])
    return HONEST.format(k=k, gap=gap, **{name: points(share["value"]) for name, share in shares.items()})


def plot(path: Path, summary: dict) -> None:
    """The table's accuracies as bars with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    names = [column for column in columns(summary) if column != "refinement_gap"]
    for place, (name, label) in enumerate(ROWS.items()):
        values = [summary[name].get(column) for column in names]
        shown = [(i, v) for i, v in enumerate(values) if v and v["value"] is not None]
        centres = [100 * v["value"] for _, v in shown]
        errors = [[100 * abs(v["value"] - v[side]) for _, v in shown] for side in ("low", "high")]
        axes.bar([i + 0.27 * (place - 1) for i, _ in shown], centres, 0.25, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"problems right, % (n = {summary['num_problems']})")
    axes.legend()
    figure.savefig(path, dpi=120)


def run(args: argparse.Namespace) -> None:
    begin = time.monotonic()
    seconds = {"install": args.install_seconds, "distill": 0.0, "sft": 0.0, "grpo": 0.0, "eval": 0.0}
    groups = steps(args)
    every = [step for group in groups for step in group]
    print(f"The tiny world, seed {args.seed}. Logs: {args.output_dir}/logs\n", flush=True)
    chain.run_all(every)
    for step in every:
        seconds[step.kind] += step.seconds

    from gsr_rl.run_folder import atomic_write

    seconds["total"] = args.install_seconds + sum(max(step.seconds for step in group) for group in groups)
    summary = summarise(args.output_dir, {name: round(value, 1) for name, value in seconds.items()})
    atomic_write(args.output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    plot(args.output_dir / "plot.png", summary)
    text = report(summary)
    atomic_write(args.output_dir / "summary.md", text)
    print(f"\n{summary['num_problems']} {args.split} problems, percent with 95 % intervals\n\n{text}")
    print(f"{against(summary)}\n")
    show_example(str(args.output_dir / "grpo"))
    print(f"{time.monotonic() - begin:.0f} s; in {args.output_dir}: summary.md, summary.json, plot.png")


def main() -> None:
    args = parse_args()
    with live.stoppable():
        run(args)


if __name__ == "__main__":
    main()
