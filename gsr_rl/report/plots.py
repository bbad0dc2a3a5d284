"""Plots of an evaluation, from the content of eval.json. Without matplotlib there are none."""

import io
from importlib.util import find_spec

from gsr_rl.report.problem_values import NO_ACCURACY

# told apart by everyone
COLOURS = {"selfref": "#009E73", "maj": "#0072B2", "pass": "#999999"}
OTHERS = ("#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "sD^vP*X"
SCALING = {  # colour, marker and words of each way to use more candidates
    "refine and vote": ("#D55E00", "s", "refine and vote: sets of K, a vote of the refinements"),
    "flat": ("#009E73", "o", "all candidates in one prompt"), "tree": ("#CC79A7", "D", "tree of refinements"),
    "vote": ("#0072B2", "o", "majority vote"), "best of n": ("#E69F00", "^", "best of n by a reward model"),
    "verdict": ("#999999", "v", "vote among candidates whose check passed"),
    "rounds": ("#56B4E9", "P", "rounds"), "rounds, vote": ("#000000", "X", "rounds, vote"),
}  # fmt: skip


def _styles(metrics: list[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each metric."""
    styles = {}
    for metric in metrics:
        place = sum(style["color"] in OTHERS for style in styles.values())
        other = {"color": OTHERS[place % len(OTHERS)], "marker": MARKERS[place % len(MARKERS)]}
        colour = COLOURS.get(metric.partition("@")[0])
        styles[metric] = {"color": colour, "marker": "o"} if colour else other
    return styles


def _interval(estimate: dict) -> list[list[float]]:
    """Lengths of the error bar in points, below and above."""
    low, value, high = (estimate[side] for side in ("low", "value", "high"))
    return [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]


def _accuracies(summary: dict, name: str) -> dict[str, dict]:
    estimates = summary["benchmarks"][name].items()
    return {m: estimate for m, estimate in estimates if m not in NO_ACCURACY and estimate["value"] is not None}


def draw_accuracies(axes, summary: dict, name: str) -> None:
    """All accuracies with their intervals, the best at the top."""
    shown = sorted(_accuracies(summary, name).items(), key=lambda pair: pair[1]["value"])
    styles = _styles(list(_accuracies(summary, name)))
    for place, (metric, estimate) in enumerate(shown):
        how = {"linestyle": "none", "capsize": 2, "markersize": 5} | styles[metric]
        axes.errorbar([100 * estimate["value"]], [place], xerr=_interval(estimate), **how)
    axes.set_yticks(range(len(shown)), [metric for metric, _ in shown])
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="problems right, %", title="all methods, 95 % intervals")


def draw_against_k(axes, summary: dict, name: str) -> None:
    """pass@k and maj@k as curves, refinement and the other methods at K as points."""
    k, curves = summary["k"], summary["by_k"][name]
    for kind, points in curves.items():
        shown = {int(number): estimate for number, estimate in points.items() if estimate["value"] is not None}
        if shown:
            numbers = list(shown)
            low, middle, high = ([100 * e[side] for e in shown.values()] for side in ("low", "value", "high"))
            axes.plot(numbers, middle, marker=".", color=COLOURS[kind], label=f"{kind}@k")
            axes.fill_between(numbers, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
    accuracies = _accuracies(summary, name)
    styles = _styles(list(accuracies))
    at_k = [metric for metric in accuracies if metric.endswith(f"@{k}") and not metric.startswith(("pass@", "maj@"))]
    for place, metric in enumerate(at_k):
        estimate, where = accuracies[metric], k * 1.05 ** (place - (len(at_k) - 1) / 2)  # beside each other
        how = {"linestyle": "none", "capsize": 2, "label": metric} | styles[metric]
        axes.errorbar([where], [100 * estimate["value"]], yerr=_interval(estimate), **how)
    numbers = sorted({int(number) for points in curves.values() for number in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set(xlabel="candidates k", ylabel="problems right, %", title="against the number of candidates")


def draw_against_tokens(axes, summary: dict, name: str) -> None:
    """Every method at the completion tokens that it spends on a problem; the votes as a line."""
    spent, accuracies = summary["tokens"][name], _accuracies(summary, name)
    curve = summary["by_k"][name].get("maj", {})
    line = sorted((spent[f"maj@{n}"], 100 * estimate["value"]) for n, estimate in curve.items()
                  if estimate["value"] is not None and f"maj@{n}" in spent)  # fmt: skip
    if line:
        axes.plot(*zip(*line, strict=True), marker=".", color=COLOURS["maj"], label="maj@k")
    styles = _styles(list(accuracies))
    for metric, estimate in accuracies.items():
        if metric not in spent or metric.startswith(("maj@", "pass@")):
            continue
        how = {"linestyle": "none", "capsize": 2, "label": metric} | styles[metric]
        axes.errorbar([spent[metric]], [100 * estimate["value"]], yerr=_interval(estimate), **how)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set(xlabel="completion tokens per problem", ylabel="problems right, %", title="against the tokens spent")


def draw_by_num_correct(axes, summary: dict, name: str) -> None:
    """Refinement against the vote by the number of right candidates in the set."""
    k, table = summary["k"], summary["by_num_correct"].get(name) or {}
    for key in ("selfref", "maj"):
        points = [(int(number), 100 * row[key]) for number, row in table.items() if row[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[key], label=f"{key}@{k}")
    labels = [f"{number}\nn={table[str(number)]['n']}" if table else str(number) for number in range(k + 1)]
    axes.set_xticks(range(k + 1), labels)
    axes.grid(alpha=0.3)
    axes.set(ylim=(-4, 104), xlabel=f"right candidates of {k}, and sets", ylabel="sets right, %")
    axes.set_title("by the number of right candidates")


def draw_scaling(axes, summary: dict, name: str) -> None:
    """Accuracy against completion tokens, of every way to use more candidates."""
    draw_scaling_rows(axes, summary["scaling"][name])
    axes.set_title("more candidates")


def draw_scaling_rows(axes, rows: list[dict]) -> None:
    """A line for each method, from few candidates to many; tokens on a logarithmic axis.

    That of refine and vote joins the points of all refinements of each pool; thin ones lead there from fewer.
    """
    known = [row for row in rows if row["value"] is not None and row["tokens"]]
    for method, (colour, marker, words) in SCALING.items():
        shown = [row for row in known if row["method"] == method]
        if method == "refine and vote":
            pools: dict[int, list[dict]] = {}
            for row in shown:
                pools.setdefault(row["candidates"], []).append(row)
            for pool in pools.values():
                thin = {"linewidth": 0.7, "marker": ".", "markersize": 3, "alpha": 0.7}
                axes.plot(*_places(pool), color=colour, label="refine and vote, fewer refinements", **thin)
            shown = [pool[-1] for pool in pools.values()]
        if shown:
            ends = [_interval(row) if row["low"] is not None else [[0.0], [0.0]] for row in shown]
            sides = [[end[side][0] for end in ends] for side in (0, 1)]
            how = {"color": colour, "marker": marker, "capsize": 2, "markersize": 5, "label": words}
            axes.errorbar(*_places(shown), yerr=sides, **how)
    tokens = [row["tokens"] for row in known] or [1]
    ticks = [round(min(tokens)) << power for power in range(int(max(tokens) / min(tokens)).bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set(xlabel="completion tokens per problem", ylabel="problems right, %")


def _places(rows: list[dict]) -> tuple[list[float], list[float]]:
    return [row["tokens"] for row in rows], [100 * row["value"] for row in rows]


def scaling_png(scaling: dict[str, list[dict]]) -> bytes | None:
    """The rows of each benchmark and part beside each other; None without matplotlib."""
    if not find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5.2 * len(scaling), 4.4), layout="constrained")
    for axes, (name, rows) in zip(canvas.subplots(1, len(scaling), squeeze=False)[0], scaling.items(), strict=True):
        draw_scaling_rows(axes, rows)
        axes.set_title(name, parse_math=False)
    shown = {}
    for axes in canvas.axes:
        shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    canvas.legend(shown.values(), shown, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return png_of(canvas, dpi=110)


def png_of(canvas, dpi: int) -> bytes:
    """A matplotlib figure as PNG, without the name of the program that made it."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


PLOTS = {
    "all methods with their 95 % intervals": draw_accuracies,
    "accuracy against the number of candidates": draw_against_k,
    "accuracy against the tokens spent": draw_against_tokens,
    "refinement and vote by the number of right candidates": draw_by_num_correct,
    "accuracy against the tokens spent, more candidates": draw_scaling,
}
NEEDS = {draw_by_num_correct: "by_num_correct", draw_scaling: "scaling"}  # tables of the benchmark that are drawn


def svgs(summary: dict, name: str) -> dict[str, str]:
    """The plots of a benchmark as SVG texts, by what they show. {} without matplotlib."""
    if not find_spec("matplotlib"):
        return {}
    import matplotlib
    from matplotlib.figure import Figure

    images = {}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gsr", "font.family": "sans-serif"}):
        for title, draw in PLOTS.items():
            if draw in NEEDS and not summary.get(NEEDS[draw], {}).get(name):
                continue
            canvas = Figure(figsize=(5.6, 4.4), layout="constrained")
            axes = canvas.subplots()
            draw(axes, summary, name)
            if axes.get_legend_handles_labels()[0]:
                canvas.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
            buffer = io.StringIO()
            canvas.savefig(buffer, format="svg", metadata={"Date": None})
            images[title] = buffer.getvalue()
    return images


def png(summary: dict) -> bytes | None:
    """The first benchmark's accuracies and its table by number of right candidates; None without matplotlib."""
    if not find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure

    name = next(iter(summary["benchmarks"]))
    canvas = Figure(figsize=(10, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    draw_accuracies(left, summary, name)
    left.set_title(f"{name}, n = {summary['benchmarks'][name]['pass@1']['n']:g}", parse_math=False)
    draw_by_num_correct(right, summary, name)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8)
    return png_of(canvas, dpi=120)
