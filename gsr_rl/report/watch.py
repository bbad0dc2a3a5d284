"""Curves of trainings while they go, in a second terminal: `gsr-watch`, or `python -m gsr_rl.report.watch`.

    gsr-watch runs/tiny/grpo                                   # again every 30 seconds until the run ends
    gsr-watch runs/seed0 runs/seed1 --once --output_dir plots  # several runs overlaid, once

Reads `metrics.jsonl` of each RUN, a training's output_dir, or a RUN that is such a file itself. Writes `curves.png`,
and `curves.html`: the picture and the last values, in one file that a browser loads anew while a run goes on. What a
run does not log is left out. docs/read_a_run.md says what each curve should look like.

Exit codes: 0 the runs have ended, or --once; 2 bad input; 130 interrupted.
"""

import argparse
import html
import json
import math
import sys
import time
from base64 import b64encode
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gsr_rl.report.plots import COLOURS, OTHERS, png_of
from gsr_rl.run_folder import atomic_write, in_use

METRICS, PICTURE, PAGE = "metrics.jsonl", "curves.png", "curves.html"
PALETTE = (COLOURS["maj"], COLOURS["selfref"], *OTHERS)
LINES = ("-", "--", ":", "-.")
COLUMNS = 3
SMOOTHED = 60  # a curve of more steps is drawn as running means, over a thirtieth of it, above a pale line
QUIET_SECONDS = 600.0  # a folder that nobody holds, as a copy of one: it goes on until nothing new came for so long
STAGES = ("candidate", "refinement")


@dataclass(frozen=True)
class Panel:
    """One plot: its title, patterns of the names of the metrics in it, and what their values are multiplied by."""

    title: str
    metrics: tuple[str, ...]
    scale: float = 1.0
    log: bool = False


def _both(name: str) -> tuple[str, ...]:
    return tuple(f"{stage}/{name}" for stage in STAGES)


PANELS = (
    Panel("right, %", ("candidate/accuracy", "gap/maj@*", "gap/selfref@*", "gap/pass@*"), 100),
    Panel("held-out problems right, %", ("eval_pass@*", "eval_maj@*", "eval_selfref@*"), 100),
    Panel(
        "refinement minus vote, points", ("gap/refinement_gap", "chosen/refinement_gap", "eval_refinement_gap"), 100
    ),
    Panel("reward", _both("reward")),
    Panel("groups without signal, %", _both("no_signal"), 100),
    Panel("different answers in a group, %", _both("distinct"), 100),
    Panel("fixed, broken, copied, %", ("gap/fix_rate", "gap/break_rate", "gap/copy_rate", "gap/new_answer_rate"), 100),
    Panel("completion length, tokens", _both("completion_length")),
    Panel("cut off or left out, %", (*_both("unfinished"), *_both("skipped_prompts")), 100),
    Panel("loss", ("loss", "eval_loss")),
    Panel("token accuracy, %", ("mean_token_accuracy", "eval_mean_token_accuracy"), 100),
    Panel("gradient norm", ("grad_norm",), log=True),
    Panel("learning rate", ("learning_rate",)),
    Panel("entropy, nats a token", (*_both("entropy"), "entropy")),
    Panel("KL to the reference, nats a token", _both("kl")),
    Panel("engine from trainer, nats a token", _both("sampling_logp_difference/mean")),
    Panel("clipped tokens, %", (*_both("clip_ratio/region_mean"), *_both("importance_sampling_ratio/clipped")), 100),
    Panel("age of the sampling weights, steps", ("rollout/staleness", "rollout/dropped")),
    Panel("seconds a step", ("step_time", "time/rollout", "time/reward", "time/update", "time/sync", "time/waiting")),
    Panel("trained tokens a second", ("tokens/per_second",)),
)


@dataclass(frozen=True)
class Run:
    """What a `metrics.jsonl` holds.

    Attributes:
        series: Of each metric its (step, value) pairs, steps rising, values finite.
        step: The last one.
        broken: Lines that could not be read, without a last one that is still being written.
    """

    name: str
    series: dict[str, list[tuple[int, float]]]
    step: int
    has_summary: bool
    broken: int


def metrics_file(run: str | Path) -> Path:
    """Where a run's metrics stand: in its folder, or in the file that it is."""
    return Path(run) if Path(run).is_file() else Path(run) / METRICS


def read_run(folder: str | Path) -> Run:
    """The metrics of a run folder, or of a file like its metrics.jsonl; none if a folder in use has none yet.

    A record of an earlier step than the one before it comes from a run that went on from a checkpoint: it takes the
    place of everything from that step on. Records of one step are joined.

    Raises:
        ValueError: The folder is not there, or is no training's.
    """
    path = metrics_file(folder)
    if not path.is_file():
        if in_use(folder):
            return Run(str(folder), {}, 0, False, 0)
        what = "there is no such folder" if not Path(folder).is_dir() else f"it has no {METRICS}"
        raise ValueError(
            f"{folder}: {what}; give the output_dir of sft_gsr.py or grpo_gsr.py, once it has logged a step"
        )
    steps: dict[int, dict] = {}
    broken, last = 0, 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            broken += bool(line.strip()) and number < len(lines)  # the last one is still being written
            continue
        if record["step"] < last:
            steps = {step: values for step, values in steps.items() if step < record["step"]}
        last = record["step"]
        steps[last] = steps.get(last, {}) | record
    if not steps and broken:
        raise ValueError(f"{path}: no line is a record of a training step; give the output_dir of a training")
    series: dict[str, list[tuple[int, float]]] = {}
    for step, values in steps.items():
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((step, float(value)))
    return Run(str(folder), series, last, "train_runtime" in steps.get(last, {}), broken)


def _record(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def goes_on(run: Run) -> bool:
    """Whether more may come: a process holds the folder, or there is no summary yet and the last record is young."""
    path = metrics_file(run.name)
    young = path.is_file() and time.time() - path.stat().st_mtime < QUIET_SECONDS
    return in_use(run.name) or (young and not run.has_summary)


def drawn_panels(runs: list[Run]) -> list[tuple[Panel, dict[str, list[str]]]]:
    """The panels of which a run logs something, with the names that are logged by pattern."""
    logged = dict.fromkeys(name for run in runs for name in run.series)
    panels = [
        (panel, {pattern: [name for name in logged if fnmatchcase(name, pattern)] for pattern in panel.metrics})
        for panel in PANELS
    ]
    return [(panel, names) for panel, names in panels if any(names.values())]


def running_means(values: list[float], span: int) -> list[float]:
    """Of each value the mean of it and up to `span - 1` before it."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - span) : end])]


def draw(runs: list[Run]) -> bytes:
    """All panels as PNG. Of one run a metric has a colour; of several a run has one, and a metric a kind of line.

    Raises:
        ValueError: No run has logged anything that is drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = drawn_panels(runs)
    if not panels:
        raise ValueError(f"{', '.join(run.name for run in runs)}: nothing that is drawn has been logged yet")
    rows = -(-len(panels) // COLUMNS)
    canvas = Figure(figsize=(5 * COLUMNS, 2.8 * rows + 0.4), layout="constrained")
    places = list(canvas.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, (panel, names) in zip(places, panels, strict=False):
        _draw_panel(axes, panel, names, runs)
    for axes in places[len(panels) :]:
        axes.axis("off")
    handles = [Line2D([], [], color=PALETTE[number % len(PALETTE)], label=run.name) for number, run in enumerate(runs)]
    if len(runs) > 1:
        canvas.legend(handles=handles, loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    else:
        canvas.suptitle(f"{runs[0].name}, step {runs[0].step}", parse_math=False)
    return png_of(canvas, dpi=90)


def _draw_panel(axes, panel: Panel, logged: dict[str, list[str]], runs: list[Run]) -> None:
    several, names = len(runs) > 1, [(kind, name) for kind, part in enumerate(logged.values()) for name in part]
    curves = [
        (number if several else place, kind, name, run)
        for number, run in enumerate(runs)
        for place, (kind, name) in enumerate(names)
        if name in run.series
    ]
    labels = {}
    for colour, kind, name, run in curves:
        how = {"color": PALETTE[colour % len(PALETTE)], "linestyle": LINES[kind % len(LINES)] if several else "-"}
        steps, values = zip(*run.series[name], strict=True)
        values = [panel.scale * value for value in values]
        if len(values) > SMOOTHED:
            if not several:
                axes.plot(steps, values, color=how["color"], alpha=0.25, linewidth=0.7)
            values = running_means(values, len(values) // 30)
        axes.plot(steps, values, linewidth=1.4, marker="." if len(values) < 20 else None, **how)
        labels.setdefault(name, axes.plot([], [], **how | ({"color": "#444444"} if several else {}))[0])
    if panel.log and any(value > 0 for _, _, name, run in curves for _, value in run.series[name]):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_title(panel.title, fontsize=10)
    axes.legend(labels.values(), labels, fontsize=7, framealpha=0.7, edgecolor="none")


def page(runs: list[Run], picture: bytes, seconds: float | None) -> str:
    """An HTML file: the picture and a table of the last values. It reloads every `seconds`; None: never."""
    refresh = f'<meta http-equiv="refresh" content="{seconds:g}">' if seconds else ""
    head = "".join(f"<th>{html.escape(run.name)}, step {run.step}</th>" for run in runs)
    rows = ""
    for panel, names in drawn_panels(runs):
        rows += f'<tr><th colspan="{len(runs) + 1}">{html.escape(panel.title)}</th></tr>\n'
        for name in [name for part in names.values() for name in part]:
            last = [run.series[name][-1][1] * panel.scale if name in run.series else None for run in runs]
            cells = "".join(f"<td>{'' if value is None else f'{value:.4g}'}</td>" for value in last)
            rows += f"<tr><td>{html.escape(name)}</td>{cells}</tr>\n"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{refresh}<title>{html.escape(runs[0].name)}</title>
<style>body {{font: 14px sans-serif; margin: 1em}} img {{max-width: 100%}} th {{text-align: left; padding-top: .6em}}
td {{padding: 0 1.5em 0 0}} td + td {{font-variant-numeric: tabular-nums}}</style></head>
<body><img alt="curves" src="data:image/png;base64,{b64encode(picture).decode()}">
<table><tr><td></td>{head}</tr>
{rows}</table></body></html>
"""


def watch(folders: list[str], output_dir: str | Path | None = None, every: float = 30.0, once: bool = False) -> None:
    """Draw the runs, and again every so many seconds where something was logged, until none of them goes on.

    Args:
        output_dir: Where the picture and the page go. Default: the first run's folder.

    Raises:
        ValueError: See `read_run` and `draw`.
    """
    target, seen = Path(output_dir or metrics_file(folders[0]).parent), None
    while True:
        runs = [read_run(folder) for folder in folders]
        on = not once and any(map(goes_on, runs))
        if on and not drawn_panels(runs):
            print("waiting for the first record" if seen is None else "", end="\n" if seen is None else "", flush=True)
        elif (runs, on) != seen:
            picture = draw(runs)
            atomic_write(target / PICTURE, picture)
            atomic_write(target / PAGE, page(runs, picture, every if on else None))
            print(_report(runs, target, every if on else None), flush=True)
        seen = runs, on
        if not on:
            return
        time.sleep(every)


def _report(runs: list[Run], target: Path, every: float | None) -> str:
    """What is on disk now, in a line."""
    steps = ", ".join(f"{run.name} step {run.step}" for run in runs)
    lost = sum(run.broken for run in runs)
    more = f" ({lost} lines could not be read)" if lost else ""
    return f"{steps}{more}: {target / PAGE}" + (f", again every {every:g} s" if every else "")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gsr-watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="output_dir of a training, or a file like its metrics.jsonl"
    )
    parser.add_argument(
        "--output_dir", help="where curves.png and curves.html go (default: beside the first RUN's metrics)"
    )
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="how often (default: 30)")
    parser.add_argument("--once", action="store_true", help="draw what is there, and end")
    args = parser.parse_args(argv)
    if not 1 <= args.every < math.inf:
        parser.error(f"--every {args.every:g}: give at least 1 second")
    try:
        watch(args.runs, args.output_dir, args.every, args.once)
    except ValueError as error:
        print(f"gsr-watch: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gsr-watch: {error}; with --output_dir the curves go elsewhere", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
