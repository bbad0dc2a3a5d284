"""benchmarks/gpu_check.py: checks that hang, crash or are wrong end alone, with a table and a line of JSON."""

import importlib
import json
import re
import sys
import time
import zipfile

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    return gpu_check


def outcome_of(gpu_check, monkeypatch, program: str, limit: float = 30.0):
    """What comes of a check whose process is this program."""
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from gpu_check import tell\n{program}"
    monkeypatch.setattr(gpu_check, "command_of", lambda *_: [sys.executable, "-c", program])
    return gpu_check.run_check("a", gpu_check.Check("it", None, 1), True, limit, {})


@pytest.mark.parametrize(
    ("program", "state", "reason"),
    [
        ("tell('speed', 1.5, ('>=', 2.0))", "passed", ""),  # a goal that is not met fails nothing
        ("tell('error', 3.0, ('<=', 2.0), must=True)", "FAILED", "wrong: error"),
        ("tell('error', float('nan'), ('<=', 2.0), must=True)", "FAILED", "wrong: error"),
        ("tell('first', 1)\nraise ValueError('no room')", "FAILED", "exit code 1: ValueError: no room"),
        ("print('needs aiohttp')\nsys.exit(77)", "not run", "needs aiohttp"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "FAILED", "exit code -9: no output"),
    ],
)
def test_what_comes_of_a_check(gpu_check, monkeypatch, program, state, reason):
    outcome = outcome_of(gpu_check, monkeypatch, program)
    assert (outcome.state, outcome.reason) == (state, reason)


def test_a_check_that_hangs_is_ended_with_its_children_and_what_it_measured_is_kept(gpu_check, monkeypatch, tmp_path):
    alive = tmp_path / "alive"
    beat = f"import time\nwhile True: open({str(alive)!r}, 'w').write(str(time.time())); time.sleep(0.05)"
    program = f"import subprocess, time\nsubprocess.Popen([sys.executable, '-c', {beat!r}], start_new_session=True)\n"
    outcome = outcome_of(
        gpu_check, monkeypatch, program + "tell('first', 1)\nprint('now it waits', flush=True)\ntime.sleep(60)", 3.0
    )
    assert outcome.state == "FAILED" and outcome.seconds < 20
    assert outcome.reason == "not done within its 3 s, after `first`: now it waits"
    assert [row["what"] for row in outcome.rows] == ["first"]
    seen = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == seen


def test_what_is_missing_is_named_and_a_gpu_asked_for(gpu_check, monkeypatch):
    check = gpu_check.Check("it", None, 1, ("json", "no_such_module"), gpus=2, on_cpu=False)
    assert gpu_check.missing(check, True) == "needs no_such_module"
    check = gpu_check.Check("it", None, 1, ("json",), gpus=2, on_cpu=False)
    for gpus, reason in ((0, "needs a GPU"), (1, "needs 2 GPUs, 1 found"), (2, "")):
        monkeypatch.setattr(gpu_check, "gpu_count", lambda gpus=gpus: gpus)
        assert gpu_check.missing(check, True) == reason


def test_the_table_and_the_counts_by_hand(gpu_check):
    rows = [
        {"what": "ratio", "value": 2.5, "goal": ">= 2.3", "must": False, "met": True},
        {"what": "share", "value": 0.5, "goal": ">= 0.6", "must": False, "met": False},
        {"what": "peak", "value": 0.7, "goal": "<= 0.6", "must": False, "met": None},
    ]
    outcomes = [
        gpu_check.Outcome("a", "step", "passed", 12.3, rows=rows),
        gpu_check.Outcome("b", "engines", "not run", reason="needs vllm"),
    ]
    table = gpu_check.table(outcomes).splitlines()
    assert table[2:] == [
        "| a | step | passed | 12 s | |  |",
        "| a | step | ratio | 2.5 | >= 2.3 | met |",
        "| a | step | share | 0.5 | >= 0.6 | **not met** |",
        "| a | step | peak | 0.7 | <= 0.6 | not judged here |",
        "| b | engines | not run | 0 s | | needs vllm |",
    ]
    found = gpu_check.summary(outcomes, True)
    assert [found[key] for key in ("passed", "failed", "not_run", "goals_met", "goals_judged")] == [1, 0, 1, 1, 2]


def test_wheels_are_trimmed_and_only_what_is_lacking_is_unpacked(gpu_check, tmp_path):
    names = ["pyarrow/lib.so", "pyarrow/libarrow.so.2600", "pyarrow/include/api.h", "pyarrow/libarrow_flight.so.2600"]
    for wheel, files in {"unheard_of": names, "torch": ["torch/__init__.py"]}.items():
        with zipfile.ZipFile(tmp_path / f"{wheel}-1-py3-none-any.whl", "w") as archive:
            for name in files:
                archive.writestr(name, "text")
        gpu_check.trim(tmp_path / f"{wheel}-1-py3-none-any.whl")
    assert gpu_check.unpack(tmp_path, tmp_path / "site-packages") == ["unheard_of"]
    unpacked = {str(path.relative_to(tmp_path / "site-packages")) for path in (tmp_path / "site-packages").rglob("*")}
    assert unpacked == {"pyarrow", *names[:2]}


def test_a_check_that_lacks_a_package_names_it_and_one_of_our_modules_fails(gpu_check, monkeypatch, capsys):
    for name, error in (("no_such_package", None), ("gsr_rl.no_such_module", ModuleNotFoundError)):
        check = gpu_check.Check("it", lambda small, name=name: importlib.import_module(name), 1)
        monkeypatch.setattr(gpu_check, "checks_of", lambda part, check=check: [check])
        if error is None:
            assert gpu_check.run_here("a", "it", True) == gpu_check.LACKS
            assert capsys.readouterr().out == "needs no_such_package\n"
        else:
            with pytest.raises(error):
                gpu_check.run_here("a", "it", True)


def test_attended_pairs_by_hand(gpu_check):
    from gpu_check_attention import pairs_of

    # A prompt of 2: 1 + 2. Of 3 tokens 2 are computed: they see 3 and 4. Of 1 token none is.
    assert pairs_of(2, [3, 1]) == 3 + 7


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.parametrize("part", ["a", "b"])
def test_a_part_runs_to_its_end_in_small(launch, tmp_path, part):
    words = [part, "--small", "--minutes", "25", "--patience", "6", "--out", tmp_path / "result"]
    printed = launch("benchmarks/gpu_check.py", *words, timeout=1700)
    figures = json.loads(printed.strip().splitlines()[-1])
    assert figures["failed"] == 0 and figures["passed"] >= 7
    whole = json.loads((tmp_path / "result.json").read_text())
    assert {key: whole[key] for key in figures} == figures
    assert re.search(rf"^\| {part} \| .* \| passed \|", (tmp_path / "result.md").read_text(), re.MULTILINE)
