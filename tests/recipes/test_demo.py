"""The demo's table, claims and plot, from stored evaluations; and the command that it ends with."""

import importlib
import json
import re
import shlex

import pytest
import yaml

from gsr_rl.data.tiny_world import make_row
from gsr_rl.report.problem_values import metrics_from_samples
from gsr_rl.report.samples import write_samples
from gsr_rl.report.tables import summarise
from gsr_rl.serving.steps import Attempt, counted
from tests.support.made_samples import HEADER, made_samples
from tests.support.paths import ROOT

TINY = ROOT / "recipes" / "tiny"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    return importlib.import_module("demo")


@pytest.fixture
def next_command(demo):
    return importlib.import_module("next_command")


@pytest.fixture
def finished(tmp_path):
    """A folder that holds the three evaluations of a demo, with three candidates instead of four."""
    for seed, name in enumerate(("base", "sft", "grpo")):
        folder = tmp_path / f"eval_{name}"
        samples = made_samples(40, seed)
        for sample in samples:
            sample["verdict"] = sample["tokens"] > 20 if sample["stage"] == "candidate" else None
        write_samples(folder / "samples.parquet", samples, HEADER | {"num_problems": 40, "seed": seed})
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
    assert drawn == [6, 6, 6] and (finished / "plot.png").stat().st_size > 5000


def test_the_control_without_refinement_has_the_runs_own_figures(demo, finished):
    summary = demo.summarise(finished, {})
    points = lambda name, figure: f"{100 * summary[name][figure]['value']:.1f} %"  # noqa: E731
    (line,) = demo.against(summary).split("\nThis chain")[:1]
    shares = [points("grpo", "verdict@3"), points("grpo", "selfref@3"), points("base", "verdict@3")]
    assert re.findall(r"[\d.]+ %", line) == shares and len({*shares}) == 3
    gap = 100 * (summary["grpo"]["selfref@3"]["value"] - summary["grpo"]["verdict@3"]["value"])
    assert f"a difference of {gap:.1f} [" in line


def test_a_finished_demo_makes_its_files_again_without_running_anything(
    demo, next_command, finished, monkeypatch, capsys
):
    for name in ("distill", "sft", "grpo", "eval_base", "eval_sft", "eval_grpo"):
        done = finished / "done" / f"{name}.json"
        done.parent.mkdir(exist_ok=True)
        done.write_text('{"seconds": 60.0}')
    monkeypatch.setattr(demo.live, "start", None)  # a step that is run would fail
    monkeypatch.setattr("sys.argv", ["demo.py", "--output_dir", str(finished)])
    monkeypatch.setattr(next_command, "worked_example", lambda model, *options: None)  # there is no model
    demo.main()
    shown = capsys.readouterr().out
    assert "after GRPO" in shown and "A control without refinement" in shown and "Try it" not in shown
    assert {"summary.md", "summary.json", "plot.png"} <= {path.name for path in finished.iterdir()}
    assert json.loads((finished / "summary.json").read_text())["seconds"]["eval"] == 180


def test_the_command_that_the_demo_ends_with_gives_a_refined_boxed_right_answer(next_command, monkeypatch, capsys):
    """Of the shipped teacher, which refines as well as the demo's model, or better; run again, as a user would."""
    from gsr_rl.serving import solve_cli

    next_command.show_example("recipes/tiny/models/teacher", "--prompt_template", "tiny")
    command = capsys.readouterr().out.split("Try it: .venv/bin/")[1].splitlines()[0]
    assert command.startswith("gsr-solve --model recipes/tiny/models/teacher --seed ")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="0"):
        solve_cli.main([*shlex.split(command)[1:], "--json"])
    solution = json.loads(capsys.readouterr().out)
    gold = make_row(solution["problem"], "validation")["answer"]
    answers = [candidate["answer"] for candidate in solution["candidates"]]
    assert len(set(answers)) > 1 and solution["majority_answer"] != gold and not solution["degraded"]
    assert (
        solution["answer"] == gold
        and f"\\boxed{{{gold}}}" in solution["text"] == solution["refinements"][0][0]["text"]
    )


def test_a_vote_without_a_winner_is_called_a_tie(next_command):
    def words(*groups):
        return next_command.how_they_voted(counted([Attempt("", "", True, 9)] * len(groups), list(groups)))

    assert words(0, 1, 1, 2) == words(1, 1, None, 0) == words(None, 0) == "the vote is wrong"
    assert words(0, 1, 1, 0) == words(0, 1, 2, 3) == words(0, None, 1) == "the vote is a tie"


def test_no_command_is_shown_where_no_refinement_is_right(next_command):
    """The base's are next to never: it has not been trained to refine."""
    assert next_command.worked_example("recipes/tiny/models/base", "--prompt_template", "tiny", limit=3) is None
