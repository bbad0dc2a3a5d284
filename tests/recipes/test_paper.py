"""The tiny world's experiments: what is run, what is refused, what README shows; compared arms cost the same."""

import dataclasses
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from gsr_rl.report.samples import write_samples
from tests.support.paths import ROOT

TINY = ROOT / "recipes" / "tiny"
CONFIG = yaml.safe_load((TINY / "arms.yaml").read_text())
COMMITTED = ROOT / "results" / "paper"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    return importlib.import_module("paper")


@pytest.fixture
def clone(tmp_path, paper):
    """Seed 0 as in a fresh clone: the figures of three arms are committed, no model and no sample is there."""
    shutil.copytree(COMMITTED / "seed0", tmp_path / "results" / "seed0")
    args = Namespace(state_dir=tmp_path / "state", results_dir=tmp_path / "results", split="test", num_problems=2000)
    return paper.Seed(0, CONFIG, args)


def another(seed, **changes):
    """The same seed with other arguments, or with another arm's keys."""
    arms = CONFIG["arms"] | changes.pop("arms", {})
    return dataclasses.replace(seed, config=CONFIG | {"arms": arms}, args=Namespace(**(vars(seed.args) | changes)))


# What is run --------------------------------------------------------------------------------------------------


def test_a_mark_without_a_command_counts_and_other_arguments_are_refused(paper, tmp_path, monkeypatch):
    chain, ran = paper.chain, []
    fake = lambda command, **_: ran.append(command) or Mock(wait=lambda timeout: 0)  # noqa: E731
    monkeypatch.setattr(chain.live, "start", fake)
    folder = tmp_path / "one"
    command = lambda split: ["python", "x.py", "--output_dir", f"{folder}/eval", "--dataset_split", split]  # noqa: E731
    mark = folder / "done" / "eval.json"
    mark.parent.mkdir(parents=True)
    step = lambda split: chain.Step("eval", "eval", command(split), folder)  # noqa: E731
    for old, seconds in (("", 0.0), ("{}", 0.0), ('{"seconds": 7}', 7)):
        mark.write_text(old)
        assert chain.run(step("test")) == seconds and not ran
    mark.unlink()
    chain.run(step("validation"))
    chain.run(step("validation"))
    assert ran == [command("validation")]
    with pytest.raises(SystemExit, match=r"--dataset_split validation is now --dataset_split test.*delete"):
        chain.run(step("test"))
    folder = folder.rename(tmp_path / "moved")
    assert step("validation").seconds is not None, "a folder may be moved"


def test_a_step_that_is_at_work_is_not_started_again(paper, tmp_path):
    """Nor where the process that started it was killed: the command itself holds the lock."""
    code = "import sys; sys.path.insert(0, 'recipes/tiny'); import chain; from pathlib import Path; "
    code += f"chain.run(chain.Step('slow', 'eval', ['sleep', '60'], Path({str(tmp_path)!r})))"
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    commands = lambda: subprocess.run(["pgrep", "-P", str(starter.pid)], capture_output=True, text=True).stdout  # noqa: E731
    deadline = time.monotonic() + 30
    while not (found := commands()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    again = paper.chain.Step("slow", "eval", ["true"], tmp_path)
    with pytest.raises(SystemExit, match=r"\[slow\] .* is at work in another process: wait for it, or end it"):
        paper.chain.run(again)
    os.kill(int(found), signal.SIGKILL)
    while Path(f"/proc/{int(found)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert paper.chain.run(again) < 30


WAITS = "import time; print('1/2 on', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], WAITS), ([signal.SIGINT], WAITS), ([signal.SIGTERM, signal.SIGINT], DEAF)],
    ids=["SIGTERM", "Ctrl-C", "a second one, and a command that is deaf to the first"],
)
def test_a_chain_that_is_ended_ends_its_commands_and_goes_on_where_it_was(signals, code, paper, tmp_path):
    program = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.path.insert(0, "recipes/tiny")
import chain, live
folder, code = Path(sys.argv[1]), sys.argv[2]
steps = [["true", "--output_dir", f"{folder}/quick"], [sys.executable, "-c", code, f"{folder}/quick"]]
steps[1] += ["--output_dir", f"{folder}/slow"]
with live.stoppable():
    chain.run_all([chain.Step(name, "eval", of, folder) for name, of in zip(("quick", "slow"), steps)])
"""

    def started(code: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", program, tmp_path, code], cwd=ROOT, env=environment, **streams)

    def at_work() -> bool:
        """Whether a process of this folder's chain is alive."""
        return not subprocess.run(["pgrep", "-f", str(tmp_path)], stdout=subprocess.DEVNULL).returncode

    log, chained = tmp_path / "logs" / "slow.log", started(code)
    deadline = time.monotonic() + 60
    for number in signals:
        while not (log.is_file() and "1/2 on" in log.read_text().splitlines()):
            assert time.monotonic() < deadline and chained.poll() is None, chained.communicate()
            time.sleep(0.05)
        chained.send_signal(number)
        time.sleep(0.2)
    out, errors = chained.communicate(timeout=30)
    assert chained.returncode == 128 + signals[-1] and errors.count("interrupted: the same command goes on") == 1
    assert "Traceback" not in errors and not at_work()
    quick = (tmp_path / "logs" / "quick.log").stat().st_mtime_ns
    out, errors = started("").communicate(timeout=60)
    assert out.startswith("slow") and not errors, "the step that had ended is not run again"
    assert (tmp_path / "logs" / "quick.log").stat().st_mtime_ns == quick


def test_how_far_a_log_says_that_a_program_is(paper, tmp_path):
    log = tmp_path / "x.log"
    log.write_text("$ python x.py\nloading: 10\n")
    assert paper.chain.live.progress(log) == "starting"
    log.write_text(log.read_text() + "candidates: 3 %, 1 of 40 problems, 0:10 left\rcandidates: 5 %, 2 of 40 problems")
    assert paper.chain.live.progress(log) == "candidates: 5 %, 2 of 40 problems"
    log.write_text(log.read_text() + "\n  9/110 8:31 left  pass@1 46.1\nstep 9: a warning\n")
    assert paper.chain.live.progress(log) == "9/110 8:31 left  pass@1 46.1"


def test_a_bar_has_the_share_that_the_words_tell(paper):
    live = paper.chain.live
    full = live.bar(1)[0]
    for words, share in (("9/12 0:31 left", 0.75), ("candidates: 25 %, 1 of 4", 0.25), ("starting", 0), ("1/1 ", 1)):
        shown = live.with_bar(words, 7.4)
        assert shown.count(full) == share * live.BAR and shown.endswith(f"    7 s  {words}")
    assert len(live.bar(1.2)) == len(live.bar(0)) == live.BAR


def test_a_step_that_has_ended_shows_its_last_accuracies(paper, tmp_path):
    log = tmp_path / "x.log"
    log.write_text(
        "1/2 pass@1 1.0 maj@4 2.0 selfref@4 3.0 gap +1.0  9 s\n2/2 pass@1 4.0 selfref@4 3.0 gap -1.0  9 s\nend"
    )
    assert paper.chain.live.accuracies(log, tmp_path) == "pass@1 4.0 selfref@4 3.0 gap -1.0"
    log.write_text("5,000 rows\n")
    assert paper.chain.live.accuracies(log, tmp_path) == ""
    figures = {
        name: {"value": value} for name, value in (("pass@1", 0.25), ("selfref@2", 0.5), ("refinement_gap", 0.1))
    }
    (tmp_path / "eval.json").write_text(json.dumps({"k": 2, "benchmarks": {"tiny/mix": figures, "chain": {}}}))
    assert paper.chain.live.accuracies(log, tmp_path) == "pass@1 25.0 selfref@2 50.0 gap +10.0"


def test_steps_that_run_share_the_last_lines_of_a_terminal(paper, monkeypatch):
    live, shown = paper.chain.live, []
    monkeypatch.setattr(live.sys, "stdout", Namespace(isatty=lambda: True, encoding="ascii"))
    monkeypatch.setattr(live, "print", lambda text, **_: shown.append(text), raising=False)
    monkeypatch.setattr(live, "_lines", {})
    for name, text, last in (("a", "1", False), ("b", "2", False), ("a", "3", True), ("b", "4", True)):
        live.show(name, text, last=last)
    a, b = "a".ljust(11), "b".ljust(11)
    assert shown == [
        f"\033[J{a}1\n",
        f"\033[1A\033[J{a}1\n{b}2\n",
        f"\033[2A\033[J{a}3\n{b}2\n",  # what has ended stays above those that run
        f"\033[1A\033[J{b}4\n",
    ]


def test_a_command_is_followed_to_its_end_and_a_failure_is_shown_with_its_log(paper, tmp_path):
    code = "print('  1/2 0:01 left  loss 0.5', flush=True); print('the reason'); raise SystemExit(3)"
    step = paper.chain.Step("sft", "sft", [sys.executable, "-c", code], tmp_path)
    with pytest.raises(SystemExit, match=r"the reason\n+\[sft\] failed with exit code 3"):
        paper.chain.run(step)
    assert (tmp_path / "logs" / "sft.log").read_text().startswith(f"$ {sys.executable} -c")


def test_the_demo_refuses_a_folder_of_another_split_before_it_runs_anything(paper, tmp_path, monkeypatch):
    demo = importlib.import_module("demo")
    monkeypatch.setattr(demo.live, "start", None)  # a step that is run would fail
    validation = Namespace(output_dir=tmp_path, seed=0, split="validation", num_problems=2000)
    step = demo.steps(validation)[-1][-1]
    (tmp_path / "done").mkdir()
    kept = {"seconds": 1, "command": demo.chain._in_folder(step.command, tmp_path)}
    (tmp_path / "done" / f"{step.name}.json").write_text(json.dumps(kept))
    monkeypatch.setattr("sys.argv", ["demo.py", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"eval_grpo.*validation is now --dataset_split test"):
        demo.main()


@pytest.fixture
def played(paper, monkeypatch):
    """Steps take a moment and do nothing. (what happened, step) in order, and the arms whose figures were kept."""
    log, kept = [], []

    def run(step, threads):
        log.append(("start", step))
        time.sleep(0.05)
        log.append(("end", step))
        return 1.0

    monkeypatch.setattr(paper.chain, "run", run)
    monkeypatch.setattr(paper, "keep", lambda seed, name: kept.append((seed.number, name)))
    return log, kept


def check_order(log: list) -> None:
    """No step started twice, before what it reads had ended, or beside too many others."""
    for place, (what, step) in enumerate(log):
        ended = [other.name for kind, other in log[:place] if kind == "end" and other.folder == step.folder]
        started = [other for kind, other in log[:place] if kind == "start"]
        if what == "start":
            assert step not in started
            for word in step.command:
                if word.startswith(f"{step.folder}/") and not f"{word}/".startswith(f"{step.out}/"):
                    assert Path(word).relative_to(step.folder).parts[0] in ended, (step.name, word)
            running = [step, *(other for other in started if ("end", other) not in log[:place])]
            assert sum(2 if other.kind in ("sft", "grpo") else 1 for other in running) <= 2, running


def test_a_new_arm_in_a_fresh_clone_makes_what_it_starts_from_and_leaves_committed_figures(paper, clone, played):
    log, kept = played
    for arm in ("candidate_only", "grpo_cold", "sft_known"):
        clone.target(arm).unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in clone.args.results_dir.rglob("*.*")}
    names = paper.needed(CONFIG["arms"], ["base", "grpo", "candidate_only", "grpo_cold", "sft_known"])
    paper.run_all([(clone, name) for name in names])
    check_order(log)
    ran = [step.name for what, step in log if what == "start"]
    assert {*ran[:2]} == {"distill", "eval_base"} and ran[2:4] == ["sft", "candidate_only"]
    evaluated = {"eval_base", "eval_candidate_only", "eval_grpo_cold", "eval_sft_known"}
    assert {*ran[4:]} == {"grpo", "distill_more", "distill_more_rows", "sft_known"} | evaluated - {"eval_base"}
    assert {*kept} == {(0, "candidate_only"), (0, "grpo_cold"), (0, "sft_known")} and len(kept) == 3
    assert before == {path: path.read_bytes() for path in clone.args.results_dir.rglob("*.*")}


def test_steps_of_one_process_run_side_by_side_and_an_arm_of_all_seeds_before_the_next(paper, clone, played):
    """In an empty state, of two seeds."""
    log, kept = played
    new = another(clone, results_dir=clone.out)
    seeds = [new, dataclasses.replace(new, number=1)]
    paper.run_all([(seed, name) for name in ("base", "base_64", "base_96", "sft", "sft_64") for seed in seeds])
    check_order(log)
    starts = [(step.name, step.folder.name) for what, step in log if what == "start"]
    assert {*starts[:2]} == {("eval_base", "seed0"), ("eval_base", "seed1")}
    assert {name for name, _ in starts[2:4]} == {"base_64", "base_96"}
    assert [name for name, _ in starts].count("base_64") == 1, "one base for all seeds"
    assert any(one[0] == other[0] == "start" for one, other in pairwise(log)), "two at once"
    assert starts.index(("sft", "seed1")) < starts.index(("distill_64", "seed0"))
    assert len(kept) == len({*kept}) == 10


def test_a_step_that_fails_ends_the_run_when_those_beside_it_have_ended(paper, clone, monkeypatch, capsys):
    new = another(clone, results_dir=clone.out)
    ended = []

    def run(step, threads):
        if step.folder.name == "seed1":
            raise SystemExit(f"[{step.name}] failed")
        time.sleep(0.1)
        ended.append(step.name)

    monkeypatch.setattr(paper.chain, "run", run)
    monkeypatch.setattr(paper, "keep", lambda *_: None)
    with pytest.raises(SystemExit, match="eval_base"):
        paper.run_all([(seed, name) for name in ("base", "sft") for seed in (new, dataclasses.replace(new, number=1))])
    assert ended == ["eval_base"]


def test_every_arms_commands_pass_the_checks_of_their_programs(paper, clone):
    """With the base in the place of each model that would be there by then."""
    from gsr_rl import cli

    seed = another(clone, results_dir=clone.out)
    for name in CONFIG["arms"]:
        shared = seed.args.state_dir / name
        for model in (seed.out / name, shared / "base", shared / "teacher"):
            model.parent.mkdir(parents=True, exist_ok=True)
            model.symlink_to(TINY / "models" / "base")
    for name in CONFIG["rows"]:
        Path(seed.rows(name)).parent.mkdir(parents=True, exist_ok=True)
        Path(seed.rows(name)).touch()
    (seed.out / "eval_base").mkdir()
    header = {"k": 4, "methods": ["selfref"], "candidates_from": None}
    write_samples(seed.out / "eval_base" / "samples.parquet", [], header)
    steps = {(step.folder, step.name): step for name in CONFIG["arms"] for step in seed.steps(name)}
    parsed = 0
    for step in steps.values():
        for place, word in enumerate(step.command):
            if word.endswith("_gsr.py"):
                cli.parse(Path(word).stem.removesuffix("_gsr"), step.command[place + 1 :])
                parsed += 1
    assert parsed >= len(CONFIG["arms"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_committed_figures_were_made_by_the_commands_of_the_arms(paper, clone, number):
    seed = dataclasses.replace(another(clone, results_dir=COMMITTED), number=number)
    done = sorted(path.stem for path in (COMMITTED / f"seed{number}").glob("*.json"))
    assert {"base", "sft", "grpo"} <= set(done)
    for name in done:
        assert seed.left(name) == []
        kept = json.loads(seed.target(name).read_text())
        assert kept["split"] == "test" and kept["hardware"]["cores"] > 0


def test_figures_made_with_other_arguments_are_refused(paper, clone):
    with pytest.raises(SystemExit, match=r"base.json.*--dataset_split test is now --dataset_split validation"):
        another(clone, split="validation").left("base")
    with pytest.raises(SystemExit, match="--max_problems 2000 is now --max_problems 500"):
        another(clone, num_problems=500).left("grpo")
    changed = {"sft": CONFIG["arms"]["sft"] | {"keys": {"learning_rate": 0.1}}}
    with pytest.raises(SystemExit, match=r"sft.json.*no --learning_rate is now --learning_rate 0\.1"):
        another(clone, arms=changed).left("sft")
    assert another(clone, state_dir=Path("elsewhere")).left("sft") == [], "where the models are says nothing"


def test_arms_come_before_those_that_start_from_them_and_a_table_is_for_its_own_seeds(paper, clone):
    config = CONFIG | {"tables": {"some": {"arms": ["grpo_more"]}, "a try": {"seeds": [1], "arms": ["credit", "sft"]}}}
    seeds = [clone, dataclasses.replace(clone, number=1)]
    arms = [(seed.number, name) for seed, name in paper.arms_of(config, seeds, ["some", "a try"])]
    of_both = [(number, name) for name in ("base", "sft", "sft_more", "grpo_more") for number in (0, 1)]
    assert arms == [*of_both, (1, "credit")]
    assert paper.arms_of(config, seeds[:1], ["a try"]) == []


def test_seeds_from_another_base_make_that_base_and_its_teacher_once(paper, clone):
    config = CONFIG | {"tables": {"main": {"arms": ["sft"]}, "bases": {"seeds": [100, 101, 200], "arms": ["sft_k"]}}}
    seeds = [dataclasses.replace(clone, number=number) for number in (0, 100, 101, 200)]
    arms = [(seed.number, name) for seed, name in paper.arms_of(config, seeds, ["main", "bases"])]
    of_bases = [(number, name) for name in ("base", "sft_k") for number in (100, 101, 200)]
    assert sorted(arms) == sorted([(0, "base"), (0, "sft"), *of_bases])
    steps = {seed.number: {step.name: step for step in seed.steps("sft_k")} for seed in seeds}
    assert "base" not in steps[0] and "--student_model" not in steps[0]["distill_k"].command
    for number, base in ((100, 1), (101, 1), (200, 2)):
        made, teacher = (shlex.join(steps[number][f"{name}_{base}"].command) for name in ("base", "teacher_k"))
        folder, named = f"{clone.args.state_dir}/base_{base}/base", shlex.join(steps[number]["distill_k"].command)
        assert f"--base_only --seed {base} --output_dir {clone.args.state_dir}/base_{base}" in made
        assert f"--base {folder} --seed {base} --output_dir {clone.args.state_dir}/teacher_k_{base}" in teacher
        assert f"--student_model {folder}" in named and f"teacher_k_{base}/teacher" in named
        assert f"--model_name_or_path {folder}" in shlex.join(steps[number]["sft_k"].command)
        assert f"--model {folder}" in shlex.join(steps[number]["eval_base"].command)
    assert steps[100]["base_1"] == steps[101]["base_1"] != steps[200]["base_2"]


def test_a_table_has_its_own_seeds_and_one_without_those_of_the_shipped_base(paper, tmp_path):
    for seed in (0, 1, 100):
        shutil.copytree(COMMITTED / "seed0", tmp_path / f"seed{seed}")
    load, table = paper.paper_tables.load, CONFIG["tables"]["demo"]
    assert next(iter(load(table, tmp_path).values())).seeds == [0, 1]
    assert next(iter(load(table | {"seeds": [100, 200]}, tmp_path).values())).seeds == [100]
    run = paper.with_seeds(CONFIG)["tables"]
    assert run["demo"]["seeds"] == [0, 1, 2] and run["headline_bases"]["seeds"] == [100, 200]


def test_the_plan_gives_the_hours_of_each_table_and_of_what_is_left(paper, clone):
    new = another(clone, results_dir=clone.out)
    lines = paper.plan(CONFIG, [clone, new], ["demo", "stages"]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    # of a seed: SFT 4, each GRPO arm 8 minutes; distillation half of 2 and each evaluation half of 1.5
    assert cells[0] == ["demo", "3", "0.3", "0.3"] and cells[2][:3] == ["all", "6", "0.6"]
    assert paper.plan(CONFIG, [clone], ["demo"]).splitlines()[2].split("|")[4].strip() == "0.0"
    assert set(CONFIG["minutes"]) >= {s.kind for arm in CONFIG["arms"] for s in clone.steps(arm)}


# What README shows --------------------------------------------------------------------------------------------


def test_readme_shows_test_problems_in_the_default_folder_and_nothing_else(paper, tmp_path, monkeypatch):
    shown, readme, results = paper.paper_tables.paper_readme, tmp_path / "README.md", tmp_path / "results" / "paper"
    shutil.copytree(COMMITTED, results)
    monkeypatch.setattr(shown, "README", readme)

    def write(changes=None):
        for path, content in (changes or {}).items():
            path.write_text(content)
        readme.write_text(f"before\n{shown.BEGIN}\nold\n{shown.END}\nafter\n")
        shown.write(CONFIG["tables"], results)
        return "joint GRPO adds" in readme.read_text()

    assert not write(), "another folder"
    monkeypatch.setattr(shown, "ROOT", tmp_path)
    monkeypatch.setattr(shown, "RESULTS", results)
    assert write() and "One refinement of all candidates" in readme.read_text()
    settings = results / "seed1" / "sft_k_most.json"
    test = settings.read_text()
    assert not write({settings: test.replace('"split": "test"', '"split": "validation"')})
    for folder in results.glob("seed*"):
        (folder / "sft_k_most.json").unlink(missing_ok=True)
    assert not write(), "an arm of the headline is missing"
    assert write({settings: test}), "one seed is enough"


# Compared arms cost the same ------------------------------------------------------------------------------------


def grpo_figures(name: str) -> dict:
    """What an arm of GRPO takes: by the batch arithmetic of two processes."""
    from gsr_rl.training.config import GSRConfig
    from gsr_rl.training.dry_run import batch_arithmetic

    values = yaml.safe_load((TINY / "grpo.yaml").read_text()) | CONFIG["arms"][name].get("keys", {})
    values["launch_config"] = str(ROOT / "accelerate_configs" / "zero2_cpu.yaml")
    known = {field.name for field in dataclasses.fields(GSRConfig)}
    args = GSRConfig(**{key: value for key, value in values.items() if key in known})
    found = batch_arithmetic(args)
    rollouts = found["candidates per generation"] + found["refinements per generation"]
    tokens, updates = found["new tokens per generation, at most"], found["updates on a generation"]
    return {"rollouts": rollouts, "tokens": tokens, "updates": updates, "steps": args.max_steps} | {
        "problems": found["problems per generation"]
    }


def test_arms_of_grpo_have_the_same_steps_problems_rollouts_and_token_limits():
    arms = [name for name, arm in CONFIG["arms"].items() if arm.get("program") == "grpo"]
    figures = {name: grpo_figures(name) for name in arms}
    assert len(arms) >= 8 and figures["grpo"]["rollouts"] == 1024 and figures["grpo"]["steps"] == 110
    tries = {"grpo_few": {"problems": 16}, "grpo_constant": {"steps": 330}}  # what these arms try is another amount
    assert all(one == figures["grpo"] | tries.get(name, {}) for name, one in figures.items()), figures


@pytest.mark.parametrize("number", [0, 1, 2])
def test_arms_of_sft_had_the_same_rows_and_steps_or_the_same_tokens(number):
    """As they were run: one-stage arms for as many steps as `sft`, of as many rows; direct-only ones on its tokens."""
    read = lambda name: json.loads((COMMITTED / f"seed{number}" / f"{name}.json").read_text())  # noqa: E731
    sft = read("sft")
    for name in ("sft_direct", "sft_refine"):
        assert read(name)["optimizer_steps"] == pytest.approx(sft["optimizer_steps"], rel=0.01), name
    for name in ("sft_direct_tokens", "sft_direct_right"):
        assert read(name)["training_tokens"] == pytest.approx(sft["training_tokens"], rel=0.02), name
    known, others = read("sft_known"), read("sft_any")
    assert known["optimizer_steps"] == pytest.approx(others["optimizer_steps"], rel=0.01)
    assert read("sft_right")["optimizer_steps"] == pytest.approx(sft["optimizer_steps"], rel=0.01)


def test_continued_sft_took_the_tokens_of_joint_grpo():
    """On the seeds on which it has been run."""
    files = sorted(COMMITTED.glob("seed*/sft_compute.json"))
    for path in files:
        tokens = [
            json.loads(path.with_name(f"{arm}.json").read_text())["training_tokens"] for arm in ("sft_compute", "grpo")
        ]
        assert tokens[0] == pytest.approx(tokens[1], rel=0.03), path
    assert files


def select_rows(tmp_path, monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["select_rows.py", "--output_dir", str(tmp_path), *words])
    runpy.run_path(str(TINY / "select_rows.py"), run_name="__main__")


def sft_row(stage: str, text: str, family: str = "chain") -> dict:
    completion = [{"content": text}]
    return {"stage": stage, "problem_id": f"{family}-1", "candidates": ["47+5=52"], "completion": completion}


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((row["stage"], row["problem_id"].split("-")[0]) for row in rows)


def test_rows_of_known_steps_and_of_any_are_as_many_of_both_stages_and_of_each_family(tmp_path, monkeypatch):
    rows = [sft_row("candidate", "47+5=52")] * 5 + [sft_row("refinement", "47+5=52")] * 3
    rows += [sft_row("refinement", "47+5=53")] * 4 + [sft_row("refinement", "47+5=53", "guess")] * 9
    select_rows(tmp_path, monkeypatch, "--rows", write_rows(tmp_path / "rows.jsonl", rows))
    for name in ("known", "any"):
        assert read_rows(tmp_path / f"{name}.jsonl") == [("candidate", "chain")] * 3 + [("refinement", "chain")] * 3


def test_right_direct_solutions_replace_as_many_of_each_family(tmp_path, monkeypatch):
    rows = [sft_row("candidate", "wrong")] * 2 + [sft_row("candidate", "wrong", "guess"), sft_row("refinement", "its")]
    right = [sft_row("candidate", "right")] * 5 + [sft_row("candidate", "right", "guess")] * 5
    paths = [write_rows(tmp_path / "rows.jsonl", rows), write_rows(tmp_path / "right_rows.jsonl", right)]
    select_rows(tmp_path, monkeypatch, "--rows", paths[0], "--right", paths[1])
    assert read_rows(tmp_path / "right.jsonl") == read_rows(tmp_path / "rows.jsonl")
    assert "wrong" not in (tmp_path / "right.jsonl").read_text() and "its" in (tmp_path / "right.jsonl").read_text()
    write_rows(tmp_path / "right_rows.jsonl", right[:5])
    with pytest.raises(SystemExit, match="1 rows of guess are wanted, and there are 0: distil more problems"):
        select_rows(tmp_path, monkeypatch, "--rows", paths[0], "--right", paths[1])
