"""Curves of a run from its metrics.jsonl: what is read, what is drawn, when it ends, what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from base64 import b64decode

import pytest

from gsr_rl.report import watch
from gsr_rl.report.watch import PANELS, drawn_panels, main, read_run, running_means
from gsr_rl.run_folder import in_use
from tests.support.paths import ROOT


def folder_of(path, *lines, end="\n"):
    """A run folder whose metrics.jsonl has these records, or lines as they stand."""
    path.mkdir(exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (path / "metrics.jsonl").write_text(text + end)
    return path


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path):
    run = read_run(folder_of(tmp_path / "run", {"step": 1, "loss": 0.5}, '{"step": 2, "lo', end=""))
    assert (run.step, run.series["loss"], run.broken) == (1, [(1, 0.5)], 0)
    run = read_run(folder_of(tmp_path / "run", {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}, end=""))
    assert run.series["loss"] == [(1, 0.5), (2, 0.4)]


def test_a_run_that_went_on_from_a_checkpoint_takes_the_place_of_its_later_steps(tmp_path):
    steps = [{"step": step, "loss": 0.1 * step} for step in (1, 2, 3, 4)] + [{"step": 3, "loss": 9.0}]
    run = read_run(folder_of(tmp_path / "run", *steps))
    assert run.series["loss"] == [(1, 0.1), (2, 0.2), (3, 9.0)] and run.step == 3


def test_records_of_a_step_are_joined_and_what_is_no_number_is_left_out(tmp_path):
    lines = [{"step": 1, "loss": 0.5}, {"step": 1, "eval_pass@1": 0.25}, '{"step": 2, "loss": NaN}', "half a line",
             {"step": 3, "loss": None, "note": "text", "reward": 1}, {"step": 3, "train_runtime": 2.0}]  # fmt: skip
    run = read_run(folder_of(tmp_path / "run", *lines))
    assert run.series["loss"] == [(1, 0.5)] and run.series["eval_pass@1"] == [(1, 0.25)]
    assert run.series["reward"] == [(3, 1.0)] and "note" not in run.series
    assert run.broken == 1 and run.has_summary


def test_running_means():
    assert running_means([4.0, 2.0, 0.0, 1.0], 1) == [4.0, 2.0, 0.0, 1.0]
    assert running_means([4.0, 2.0, 0.0, 1.0], 3) == [4.0, 3.0, 2.0, 1.0]


def test_only_what_is_logged_is_drawn_whatever_k_is(tmp_path):
    run = read_run(folder_of(tmp_path / "run", {"step": 1, "gap/maj@1-8": 0.5, "candidate/accuracy": 0.5, "lr": 1}))
    (panel, names), = drawn_panels([run])  # fmt: skip
    assert panel.title == "right, %"
    assert [name for part in names.values() for name in part] == ["candidate/accuracy", "gap/maj@1-8"]


def test_two_runs_are_overlaid_once_in_a_picture_and_a_page(tmp_path, capsys):
    one, two = (
        folder_of(
            tmp_path / name, *({"step": s, "candidate/accuracy": a + s / 1000, "reward": 0.1} for s in range(90))
        )
        for name, a in (("one", 0.25), ("two", 0.5))
    )
    assert main([str(one), str(two), "--once", "--output_dir", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"curves.png", "curves.html"}
    page = (tmp_path / "out/curves.html").read_text()
    assert "<td>candidate/accuracy</td><td>33.9</td><td>58.9</td>" in page and "refresh" not in page
    picture = b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert picture == (tmp_path / "out/curves.png").read_bytes() and picture.startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert capsys.readouterr().out == f"{one} step 89, {two} step 89: {tmp_path}/out/curves.html\n"


def test_it_draws_again_where_something_was_logged_until_the_run_ends(tmp_path, monkeypatch, capsys):
    run = folder_of(tmp_path / "run", {"step": 1, "loss": 0.5})
    later = [{}, {"step": 2, "loss": 0.4}, {"step": 2, "train_runtime": 9.0}]

    def sleep(seconds):
        assert seconds == 7
        if record := later.pop(0):
            assert 'http-equiv="refresh" content="7"' in (run / "curves.html").read_text()
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert main([str(run), "--every", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{run} step {step}" for step in (1, 2, 2)]
    assert "again every 7 s" in lines[1] and ", again" not in lines[2]
    assert "refresh" not in (run / "curves.html").read_text() and later == []


def test_logs_that_were_kept_are_overlaid_from_their_files(tmp_path):
    logs = [ROOT / f"results/smollm2/{name}_grpo.jsonl" for name in ("chain_sum", "gsm8k")]
    runs = [read_run(log) for log in logs]
    assert [run.step for run in runs] == [20, 10] and not any(run.broken for run in runs)
    not_asked_for = {"held-out problems right, %", "token accuracy, %", "KL to the reference, nats a token",
                     "age of the sampling weights, steps"}  # fmt: skip
    assert {panel.title for panel, _ in drawn_panels(runs)} == {panel.title for panel in PANELS} - not_asked_for
    assert main([*map(str, logs), "--once", "--output_dir", str(tmp_path)]) == 0
    assert "<td>gap/maj@4</td><td>75</td><td>0</td>" in (tmp_path / "curves.html").read_text()


def test_a_run_that_was_killed_long_ago_is_drawn_once(tmp_path):
    run = folder_of(tmp_path / "run", {"step": 1, "loss": 0.5})
    os.utime(run / "metrics.jsonl", (time.time() - 700,) * 2)
    assert main([str(run)]) == 0


def test_a_run_that_has_logged_nothing_yet_is_waited_for_while_a_process_holds_its_folder(tmp_path, monkeypatch):
    code = (
        "import sys; from gsr_rl.run_folder import take_folder; take_folder(sys.argv[1]); print('held', flush=True); "
    )
    run = tmp_path / "run"
    assert not in_use(run)
    words = [sys.executable, "-c", code + "input()", str(run)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        assert in_use(run) and in_use(run)  # looking takes nothing from its owner

        def sleep(seconds):
            folder_of(run, {"step": 1, "loss": 0.5}, {"step": 1, "train_runtime": 1.0})
            holder.communicate("\n")

        monkeypatch.setattr(watch.time, "sleep", sleep)
        assert main([str(run)]) == 0 and (run / "curves.png").is_file()
    assert not in_use(run)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"there is no such folder; give the output_dir of sft_gsr\.py or grpo_gsr\.py"),
        ([], r"nothing that is drawn has been logged"),
        ([{"funnel": {}}], r"no line is a record of a training step"),
        ([{"step": 1, "epoch": 0.5}], r"nothing that is drawn has been logged"),
    ],
)
def test_what_is_no_training_is_named(tmp_path, capsys, lines, message):
    run = tmp_path / "run" if lines is None else folder_of(tmp_path / "run", *lines)
    assert main([str(run), "--once"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert main([str(tmp_path), "--once"]) == 2
    assert f"{tmp_path}: it has no metrics.jsonl" in capsys.readouterr().err


def test_a_time_of_no_second_is_refused(tmp_path, capsys):
    for value in ("0", "nan", "inf"):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--every", value])
    assert "--every inf: give at least 1 second" in capsys.readouterr().err
