"""The demo's table, claims and plot, from stored evaluations."""

import importlib
import json

import pytest
import yaml

from gsr_rl.report.problem_values import metrics_from_samples
from gsr_rl.report.tables import summarise
from tests.support.made_samples import write_run
from tests.support.paths import ROOT

TINY = ROOT / "recipes" / "tiny"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    return importlib.import_module("demo")


@pytest.fixture
def finished(tmp_path):
    """A folder that holds the three evaluations of a demo, with three candidates instead of four."""
    for seed, name in enumerate(("base", "sft", "grpo")):
        folder = tmp_path / f"eval_{name}"
        write_run(folder, number=40, seed=seed)
        (folder / "eval.json").write_text(json.dumps(summarise(metrics_from_samples(folder))))
    return tmp_path


def test_the_table_has_every_model_and_every_claim_by_the_names_of_the_evaluation(demo, finished):
    summary = demo.summarise(finished, {"total": 1.0})
    text = demo.report(json.loads(json.dumps(summary)))
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n\n")[0].splitlines()]
    assert head[1:6] == ["pass@1", "maj@3", "selfref@3", "pass@3", "refinement_gap"] and "selfref_none" in head
    assert [row[0] for row in rows] == ["base", "after SFT", "after GRPO"]
    assert all("[" in cell for row in rows for cell in row[1:6])
    wanted = yaml.safe_load((TINY / "arms.yaml").read_text())["tables"]["demo"]["claims"]
    assert list(summary["claims"]) == [claim["text"] for claim in wanted]
    gap = summary["claims"]["GRPO: refinement gap above zero"]["value"]
    assert gap == pytest.approx(summary["grpo"]["refinement_gap"]["value"]) and text.count("| yes") < len(wanted)


def test_the_plot_has_a_bar_of_every_accuracy_of_every_model(demo, finished, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "bar", lambda self, places, *_, **__: drawn.append(len(places)))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    demo.plot(finished / "plot.png", demo.summarise(finished, {}))
    assert drawn == [5, 5, 5] and (finished / "plot.png").stat().st_size > 5000


def test_a_finished_demo_makes_its_files_again_without_running_anything(demo, finished, monkeypatch, capsys):
    for name in ("distill", "sft", "grpo", "eval_base", "eval_sft", "eval_grpo"):
        done = finished / "done" / f"{name}.json"
        done.parent.mkdir(exist_ok=True)
        done.write_text('{"seconds": 60.0}')
    monkeypatch.setattr(demo.chain, "subprocess", None)  # a step that is run would fail
    monkeypatch.setattr("sys.argv", ["demo.py", "--output_dir", str(finished)])
    demo.main()
    assert "after GRPO" in capsys.readouterr().out
    assert {"summary.md", "summary.json", "plot.png"} <= {path.name for path in finished.iterdir()}
    assert json.loads((finished / "summary.json").read_text())["seconds"]["eval"] == 180
