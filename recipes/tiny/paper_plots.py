"""Plots of the tiny world's experiments: refinement, vote and gap of a table's arms."""

from pathlib import Path

from paper_arms import Arm


def draw(against: str, arms: dict[str, Arm], path: Path) -> None:
    """A plot of refinement, vote and gap against K (`candidates`), `parameters` or pass@1 (`accuracy`)."""
    import matplotlib

    from gsr_rl.run_folder import atomic_path

    matplotlib.use("Agg")
    from matplotlib import pyplot

    label = {"candidates": "candidates shown (K)", "parameters": "parameters", "accuracy": "pass@1, %"}[against]

    def place(arm: Arm) -> float:
        if against == "accuracy":
            return 100 * arm.estimate("pass@1")["value"]
        return arm.settings[0]["k" if against == "candidates" else against]

    lines: dict[str, list[Arm]] = {}
    for name, arm in arms.items():
        lines.setdefault(name.split("_")[0], []).append(arm)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, metric_name in zip(axes, ("selfref@K", "maj@K", "refinement_gap"), strict=True):
        for name, of_line in lines.items():
            points = [(place(arm), arm.estimate(metric_name)) for arm in sorted(of_line, key=place)]
            x, y = [point[0] for point in points], [100 * point[1]["value"] for point in points]
            low = [100 * (estimate["value"] - estimate["low"]) for _, estimate in points]
            high = [100 * (estimate["high"] - estimate["value"]) for _, estimate in points]
            axis.errorbar(x, y, yerr=[low, high], marker="o", capsize=2, label=name)
        axis.set(title=f"{metric_name}, %", xlabel=label)
        if against != "accuracy":
            axis.set_xscale("log", base=2)
            shown = sorted({place(arm) for of_line in lines.values() for arm in of_line})
            axis.set_xticks(shown, [f"{x:g}" if against == "candidates" else f"{x / 1e6:.2f} M" for x in shown])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    pyplot.close(figure)
