"""Run folders: files are whole, secrets stay out, versions are stated."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gsr_rl import run_folder
from gsr_rl.refinement.settings import read_refinement_settings, write_refinement_settings
from tests.support.fixed_engine import run_recipe
from tests.support.sft_run import write_rows


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "figures.json"
    run_folder.atomic_write(path, "old")
    with pytest.raises(RuntimeError), run_folder.atomic_path(path) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    run_folder.atomic_write(path, b"new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [({}, True), ({"RANK": "0", "LOCAL_RANK": "0"}, True), ({"RANK": "1", "LOCAL_RANK": "1"}, False),
     ({"RANK": "8", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, False)],
)  # fmt: skip
def test_a_dry_run_is_printed_by_the_main_process_alone(environment, speaks, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run_folder.print_dry_run({}, {"rows": 1024})
    assert ("rows  1,024" in capsys.readouterr().out) == speaks


def test_secrets_stay_out_at_any_depth():
    values = {"kwargs": {"api_key": "geheim", "num_tokens": 3}, "parts": [{"HF_TOKEN": "geheim", "x": 1}]}
    assert run_folder.plain(values) == {"kwargs": {"num_tokens": 3}, "parts": [{"x": 1}]}


HARMLESS = {"eos_token": "<end>", "max_tokens": 9, "tokenizer": "t", "hub_token": None, "api_key_env": "MY_KEY"}
HF, OPENAI = "hf_" + "GeheimGeheimGeheim0123", "sk-" + "proj-geheim-0123456789"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"api_keys": ["geheim", "geheim"], "token": {"x": "geheim"}}, {}),
        ({"headers": {"Authorization": "Bearer geheim", "accept": "all"}}, {"headers": {"accept": "all"}}),
        (
            {"headers": ["Authorization: Bearer geheim", "Accept: all"]},
            {"headers": ["Authorization: ...", "Accept: all"]},
        ),
        ({"note": f"as {HF} and {OPENAI}"}, {"note": "as ... and ..."}),
        ({"url": "https://me:geheim@host/v1?api_key=geheim&x=1"}, {"url": "https://...@host/v1?api_key=...&x=1"}),
        ({"kwargs": "{token: geheim, dtype: auto}"}, {"kwargs": "{token: ..., dtype: auto}"}),
        (
            {"eos_token": "<end>", "max_tokens": 9, "tokenizer": "t"},
            {"eos_token": "<end>", "max_tokens": 9, "tokenizer": "t"},
        ),
        ({"hub_token": None, "api_key_env": "MY_KEY"}, {"hub_token": None, "api_key_env": "MY_KEY"}),
    ],
)
def test_what_looks_like_a_secret_is_not_written_down(values, shown):
    assert run_folder.plain(values) == shown


def test_the_command_is_written_down_without_secrets(tmp_path, monkeypatch):
    words = [
        "grpo.py",
        "--lr",
        "3e-4",
        "--api_key",
        "geheim",
        "--hub_token=geheim",
        "--password",
        "--eos_token",
        "<end>",
    ]
    words += ["--model_init_kwargs", '{"token": "geheim", "dtype": "auto"}', "--note", HF, "--max_tokens", "9"]
    monkeypatch.setattr("sys.argv", [*words, "--kwargs", "{token: hf_geheim}"])
    run_folder.write_run_info(tmp_path, {"training": {"note": HF}})
    text = (tmp_path / "command.txt").read_text()
    assert text == (
        "grpo.py --lr 3e-4 --api_key ... --hub_token=... --password --eos_token <end> --model_init_kwargs "
        '{"token": ..., "dtype": "auto"} --note ... --max_tokens 9 --kwargs {token: ...}\n'
    )
    assert "eheim" not in text + (tmp_path / "config.yaml").read_text()


def test_refinement_settings_say_which_wording_they_belong_to(tmp_path):
    from gsr_rl.refinement.settings import RefinementConfig

    assert read_refinement_settings(tmp_path) == {}
    write_refinement_settings(tmp_path, RefinementConfig(num_candidates=3, prompt_template="tiny"))
    settings = read_refinement_settings(tmp_path)
    assert settings["num_candidates"] == 3 and settings["prompt_template_version"] == 1
    assert "min_num_candidates" not in settings
    (tmp_path / "gsr_config.json").write_text(json.dumps(settings | {"prompt_template_version": 2}))
    with pytest.raises(ValueError, match="trained on prompt_template tiny, version 2; this gsr-rl has version 1"):
        read_refinement_settings(tmp_path)


def test_refinement_settings_hold_the_lengths_of_training_where_completions_are_sampled(tmp_path):
    from gsr_rl.training.config import GSRConfig

    config = GSRConfig(
        str(tmp_path), max_completion_length=40, bf16=False, num_generations=4, per_device_train_batch_size=8
    )
    write_refinement_settings(tmp_path, config)
    settings = read_refinement_settings(tmp_path)
    assert (settings["max_completion_length"], settings["max_refinement_length"]) == (40, 40)


@pytest.mark.parametrize("program", ["sft", "grpo"])
def test_refinement_settings_hold_the_range_that_the_number_of_candidates_was_drawn_from(tmp_path, program):
    from gsr_rl.training.config import GSRConfig, GSRSFTConfig

    keys = {"num_candidates": 4, "min_num_candidates": 2, "bf16": False}
    if program == "sft":
        config = GSRSFTConfig(str(tmp_path), dataset_name="someone/rows", **keys)
    else:
        config = GSRConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=8, **keys)
    write_refinement_settings(tmp_path, config)
    settings = read_refinement_settings(tmp_path)
    assert (settings["num_candidates"], settings["min_num_candidates"]) == (4, 2)


@dataclass
class Config:
    rate: float = 0.1
    hub_token: str = "geheim"
    stages: tuple = ("a",)


def test_the_resolved_configuration_is_yaml_without_secrets(tmp_path):
    launch = {"processes": 2, "sharding": "FSDP2"}
    run_folder.write_run_info(tmp_path, {"training": Config(), "more": {"x": None}}, launch)
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text) == {"training": {"rate": 0.1, "stages": ["a"]}, "more": {"x": None}}
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["gsr-rl"] and versions["torch"] and versions["hardware"]["cores"] >= 1
    assert versions["launch"] == launch


def test_metrics_are_appended_a_line_a_record(tmp_path):
    for step in range(3):
        run_folder.append_json_line(tmp_path / "run" / "metrics.jsonl", {"step": step})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_gpus_are_named_without_initializing_cuda(monkeypatch):
    """torch would, and vLLM then could not fork and other processes would find less memory."""
    names = {0: "NVIDIA H100", 1: "NVIDIA H200"}
    cuda = SimpleNamespace(is_initialized=lambda: False, device_count=lambda: 2)  # asking for a name fails

    def nvidia_smi(words, **_):
        (wanted,) = [word for word in words if word.startswith("--id=")] or ["--id=0,1"]
        return "".join(f"{names[int(number)]}\n" for number in wanted.removeprefix("--id=").split(","))

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(subprocess, "check_output", nvidia_smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_folder.hardware()["accelerators"] == ["NVIDIA H100", "NVIDIA H200"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert run_folder.hardware()["accelerators"] == ["NVIDIA H200"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_folder.hardware()["accelerators"] == []
    cuda.is_initialized, cuda.get_device_name = lambda: True, names.get
    assert run_folder.hardware()["accelerators"] == ["NVIDIA H100", "NVIDIA H200"]


HOLD = """
import sys, time
from gsr_rl.run_folder import take_folder
take_folder(sys.argv[1])
print(1, flush=True)
time.sleep(99)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_folder_has_an_owner_until_its_process_ends(owner, tmp_path):
    expected = (
        rf"output_dir={tmp_path} is in use by process {owner.pid} on {socket.gethostname()} since .*: wait for it"
    )
    with pytest.raises(ValueError, match=expected):
        run_folder.take_folder(tmp_path)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    run_folder.take_folder(tmp_path)
    assert str(os.getpid()) in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("program", ["sft", "grpo"])
def test_a_second_training_in_a_folder_in_use_is_refused_before_a_model_is_loaded(
    owner, program, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    keys = {"config": f"recipes/tiny/{program}.yaml", "model_name_or_path": "recipes/tiny/models/base"}
    keys |= {"dataset_name": write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")} if program == "sft" else {}
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("it goes on"))
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, program, **keys, output_dir=tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"is in use by process {owner.pid} on {socket.gethostname()}" in said
    assert "wait for it or end it, or give another output_dir" in said


def test_other_ranks_take_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run_folder.take_folder(tmp_path)
    assert not list(tmp_path.iterdir())


LAUNCHER = """
import os, subprocess, sys, time
code = "import time; from gsr_rl.run_folder import end_with_launcher; end_with_launcher(); print(1, flush=True); "
code += "time.sleep(99)"
rank = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"LOCAL_RANK": "0"}, start_new_session=True)
print(rank.pid, flush=True)
time.sleep(99)
"""


def test_a_rank_ends_within_seconds_after_its_launcher_is_killed():
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    rank = int(launcher.stdout.readline())
    launcher.stdout.readline()  # the rank watches
    assert Path(f"/proc/{rank}").exists()
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 15
    while Path(f"/proc/{rank}").exists() and "Z" not in Path(f"/proc/{rank}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_program_without_a_launcher_outlives_its_shell(monkeypatch):
    for name in run_folder.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_folder.threading, "Thread", None)  # a watch that is started would fail
    run_folder.end_with_launcher()
