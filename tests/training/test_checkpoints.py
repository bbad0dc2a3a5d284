"""A run that is killed at any moment goes on from a whole checkpoint and ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from gsr_rl.training.checkpoints import STOPPED, WholeCheckpoints, expected_size, resume_point
from tests.support.paths import ROOT
from tests.support.programs import Program, environment

PROGRAM = ROOT / "tests" / "programs" / "killable_run.py"


def start(out, model, expect, kill="", overrides=None, **environment) -> tuple[int, str]:
    """The exit code, which is one of those expected, and the output."""
    program = Program(PROGRAM, out, model, json.dumps(overrides or {}), KILL=kill, **environment)
    code = program.wait(timeout=300)
    assert code in expect, program.output()[-3000:]
    return code, program.output()


def whole(folder: Path) -> list[str]:
    """The checkpoints of a run, each of which must be loadable."""
    names = sorted(path.name for path in folder.glob("checkpoint-[0-9]*"))
    for name in names:
        assert json.loads((folder / name / "trainer_state.json").read_text())["global_step"] == int(name[11:])
        assert torch.load(folder / name / "optimizer.pt")["state"]
        assert (folder / name / "problem_stream.json").is_file() and (folder / name / "rng_state.pth").is_file()
    return names


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run.pt"
    start(out, tiny_model, {0})
    return torch.load(out)


def assert_same_end(found, expected):
    assert found["step"] == expected["step"] == 8
    assert found["order"] == expected["order"] and len(found["order"]) == 8
    assert found["tokens"] == expected["tokens"]
    # All weights as one vector: the gradient of a key's bias is rounding alone, and Adam makes steps of it.
    names = sorted(expected["weights"])
    whole_run, resumed = (torch.cat([run["weights"][name].flatten() for name in names]) for run in (expected, found))
    assert (resumed - whole_run).norm() <= 1e-5 * whole_run.norm()


def run_through(out, model, kills):
    """Start the same command again and again, killed as told; returns the folder's checkpoints after each kill."""
    seen = []
    for kill in kills:
        code, _ = start(out, model, {0, -signal.SIGKILL}, kill)
        seen.append(whole(Path(f"{out}_run")))
        if code == 0:
            return seen
    start(out, model, {0})
    return seen


def test_killed_while_saving_and_while_training_a_run_ends_as_if_uninterrupted(uninterrupted, tiny_model, tmp_path):
    out = tmp_path / "run.pt"
    seen = run_through(out, tiny_model, ["saving", "1.0", "moving"])
    assert seen[0] == []  # the first checkpoint was cut off: it is not there
    assert_same_end(torch.load(out), uninterrupted)
    assert whole(Path(f"{out}_run")) == ["checkpoint-6", "checkpoint-8"]  # save_total_limit 2
    steps = [json.loads(line)["step"] for line in Path(f"{out}_run/metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 9), 8]  # each step once, then the summary


@pytest.mark.slow
def test_ten_kills_at_random_moments(uninterrupted, tiny_model, tmp_path):
    rng = random.Random(0)
    kills = [rng.choice(["saving", "moving", *[f"{rng.uniform(0.2, 2.5):.2f}"] * 3]) for _ in range(10)]
    assert "saving" in kills
    run_through(tmp_path / "run.pt", tiny_model, kills)
    assert_same_end(torch.load(tmp_path / "run.pt"), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"curriculum": True}, {"oversample": 3}], ids=["curriculum", "oversample"])
def test_what_the_order_of_problems_depends_on_is_resumed(tiny_model, tmp_path, overrides):
    start(tmp_path / "one.pt", tiny_model, {0}, overrides=overrides)
    start(tmp_path / "two.pt", tiny_model, {-signal.SIGKILL}, "moving", overrides=overrides | {"save_steps": 3})
    start(tmp_path / "two.pt", tiny_model, {-signal.SIGKILL}, "step 5", overrides=overrides)
    start(tmp_path / "two.pt", tiny_model, {0}, overrides=overrides)
    assert_same_end(torch.load(tmp_path / "two.pt"), torch.load(tmp_path / "one.pt"))


def test_sigterm_saves_and_exits_with_the_stated_code(uninterrupted, tiny_model, tmp_path):
    out = tmp_path / "run.pt"
    process = Program(PROGRAM, out, tiny_model, json.dumps({"save_steps": 100}))
    metrics = Path(f"{out}_run/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == STOPPED == 143
    (name,) = whole(Path(f"{out}_run"))
    assert 1 <= int(name[11:]) < 8
    start(out, tiny_model, {0})
    assert_same_end(torch.load(out), uninterrupted)


def test_a_full_disk_is_a_clear_error_and_leaves_the_checkpoints_before(tiny_model, tmp_path):
    out = tmp_path / "run.pt"
    start(out, tiny_model, {0}, overrides={"max_steps": 4})
    _, output = start(out, tiny_model, {1}, DISK_FULL="1")
    assert "checkpoint checkpoint-6 could not be written" in output and "make room" in output
    assert whole(Path(f"{out}_run")) == ["checkpoint-2", "checkpoint-4"]
    assert not Path(f"{out}_run/checkpoint-saving").exists()


def test_a_checkpoint_takes_weights_and_two_moments():
    model = torch.nn.Linear(10, 10)
    assert expected_size(model, weights_only=True) == 4 * 110
    assert expected_size(model, weights_only=False) == 12 * 110
    model.bias.requires_grad = False
    assert expected_size(model, weights_only=False) == 4 * 110 + 8 * 100
    assert expected_size(model.bfloat16(), weights_only=False) == 2 * 110 + 4 * 100


def test_deepspeed_writes_a_master_copy_and_below_stage_3_the_weights_twice():
    model = torch.nn.Linear(10, 10).bfloat16()
    assert expected_size(model, weights_only=True, zero_stage=2) == 2 * 110
    assert expected_size(model, weights_only=False, zero_stage=2) == 2 * 2 * 110 + 12 * 110
    assert expected_size(model, weights_only=False, zero_stage=3) == 2 * 110 + 12 * 110
    model.bias.requires_grad = False
    assert expected_size(model, weights_only=False, zero_stage=1) == 2 * 2 * 110 + 12 * 100
    assert expected_size(model, weights_only=False, zero_stage=2) == 2 * 2 * 110 + 12 * 100 + 2 * 10


def test_of_a_peft_model_the_adapters_are_written_alone():
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(100, 100)), LoraConfig(r=2, target_modules=["0"]))
    assert expected_size(model, weights_only=False) == 12 * 400
    assert expected_size(model, weights_only=False, zero_stage=2) == 2 * 4 * 400 + 12 * 400


def test_resume_true_means_the_newest_or_a_first_start(tmp_path):
    def point(wanted):
        return resume_point(SimpleNamespace(resume_from_checkpoint=wanted, output_dir=str(tmp_path / "run")))

    assert point("true") is None and point(None) is None and point("false") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-saving"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert point("true").endswith("checkpoint-10")
    with pytest.raises(ValueError, match=r"resume_from_checkpoint=.*nowhere"):
        point(str(tmp_path / "nowhere"))


def small_run(out: Path) -> list[str]:
    """Keys of joint GRPO in the tiny world, on two processes a second a step."""
    keys = ["--config", "recipes/tiny/grpo.yaml", "--model_name_or_path", "recipes/tiny/models/base"]
    keys += ["--output_dir", str(out), "--per_device_train_batch_size", "32", "--max_problems", "100"]
    return [*keys, "--resume_from_checkpoint", "true"]


def launched(keys: list[str], **more) -> subprocess.Popen:
    """`accelerate launch` of two ZeRO-2 processes, at work."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command = [*launcher, "--config_file", "accelerate_configs/zero2_cpu.yaml", "recipes/grpo_gsr.py", *keys]
    return subprocess.Popen(command, env=environment(), cwd=ROOT, **more)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_sigterm_to_the_launcher_of_two_zero_processes_leaves_a_checkpoint_to_go_on_from(launch, tmp_path):
    """Slurm and torchrun tell the launcher, which tells its processes and waits for them."""
    out = tmp_path / "run"
    keys = [*small_run(out), "--max_steps", "40", "--save_strategy", "steps", "--save_steps", "1000"]
    keys += ["--num_examples", "0"]
    process = launched(keys)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 300
    while not metrics.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    (checkpoint,) = out.glob("checkpoint-[0-9]*")
    assert 1 <= int(checkpoint.name[11:]) < 40
    assert sorted(checkpoint.glob("global_step*/*optim_states.pt")), "each rank's part of the optimizer"
    launch("recipes/grpo_gsr.py", *keys, accelerate="zero2_cpu")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 41))  # none lost, none doubled


def test_rates_at_the_end_are_those_of_the_steps_that_this_run_has_made():
    class Logs:
        def log(self, logs):
            self.logs = logs

    class Trainer(WholeCheckpoints, Logs):
        state, first_step = SimpleNamespace(global_step=10, max_steps=10), 8

    trainer = Trainer()
    trainer.log({"train_runtime": 4.0, "train_samples_per_second": 100.0, "train_steps_per_second": 2.5})
    assert trainer.logs == {"train_runtime": 4.0, "train_samples_per_second": 20.0, "train_steps_per_second": 0.5}


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_end_when_their_launcher_is_killed_and_the_folder_is_free_for_the_same_command(launch, tmp_path):
    """Meanwhile a second run in the same folder is refused and names the owner."""
    out = tmp_path / "run"
    keys = [*small_run(out), "--max_steps", "100", "--save_strategy", "steps", "--save_steps", "5"]
    keys += ["--use_vllm", "false"]
    process = launched(keys, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoint-[0-9]*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    refused = launch("recipes/grpo_gsr.py", *keys, accelerate="zero2_cpu", expect=1)
    assert re.search(rf"output_dir={out} is in use by process \d+ on .* since .*: wait for it or end it", refused)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ranks = lambda: subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True).stdout  # noqa: E731
    deadline = time.monotonic() + 15
    while ranks() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks(), "orphaned ranks train on"
    resumed = launch("recipes/grpo_gsr.py", *keys, accelerate="zero2_cpu", timeout=1500)
    assert re.search(rf"Resuming from {out}/checkpoint-\d+", resumed)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 101))
