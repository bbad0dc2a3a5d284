"""Pushes from training: a run under ZeRO-3 on two processes, and pushes beside the training that fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fixed_engine import run_recipe
from tests.support.hub_stand_in import HubStandIn, client_of
from tests.support.sft_run import keys, write_rows

TOKEN = "hf_" + "PlantedTokenOfATraining987654321"


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "sft_rows.jsonl")


def words_of(values: dict) -> list[str]:
    return [str(word) for key, value in values.items() for word in (f"--{key}", value)]


def assert_token_nowhere(hub: HubStandIn, folder: Path, output: str) -> None:
    """No file of the run, no line it printed, no pushed file and no body of a request holds the token."""
    secret = TOKEN.encode()
    assert TOKEN not in output
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert not any(secret in body or TOKEN in path for _, path, body in hub.requests)
    assert not any(secret in content for content in hub.blobs.values())


def assert_same_model(hub: HubStandIn, repo_id: str, folder: Path, tmp_path: Path, branch: str = "main") -> None:
    """What is pulled from the Hub loads, with the weights of the run's folder."""
    import torch
    from huggingface_hub import ModelCard, snapshot_download
    from transformers import AutoModelForCausalLM, AutoTokenizer

    got = snapshot_download(
        repo_id, revision=branch, local_dir=tmp_path / "pulled", endpoint=hub.endpoint, token=TOKEN
    )
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, got))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoTokenizer.from_pretrained(got).chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    settings = json.loads((Path(got) / "gsr_config.json").read_text())
    assert settings["prompt_template"] == "tiny" and settings["prompt_template_version"] == 1
    card = ModelCard.load(Path(got) / "README.md")
    assert card.data.pipeline_tag == "text-generation" and str(tmp_path) not in str(card)
    assert not {path.name for path in Path(got).iterdir()} & {"training_args.bin", "metrics.jsonl", "command.txt"}


GRPO = {
    "config": "recipes/tiny/grpo.yaml",
    "model_name_or_path": "recipes/tiny/models/base",
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_problems": 50,
    "max_steps": 2,
    "num_examples": 0,
}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("program", ["sft", pytest.param("grpo", marks=pytest.mark.vllm)])
def test_two_processes_under_zero_3_push_their_model(program, tiny_model, rows_file, tmp_path, launch, monkeypatch):
    folder, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    values = keys(tiny_model, rows_file, folder, max_steps=2) if program == "sft" else GRPO | {"output_dir": folder}
    values |= {"push_to_hub": "true", "hub_model_id": "me/tiny", "hub_private_repo": "true"}
    values |= {"hub_revision": "try-1", "save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    with HubStandIn(TOKEN) as hub:
        client_of(hub, monkeypatch, home)
        environment = hub.environment(home)
        output = launch(f"recipes/{program}_gsr.py", *words_of(values), accelerate="zero3_cpu", env=environment)
        assert_same_model(hub, "me/tiny", folder, tmp_path, "try-1")
        assert hub.repositories["model", "me/tiny"].private
        files = hub.files("me/tiny", revision="try-1")
        assert any(name.startswith("last-checkpoint/") for name in files)
        assert_token_nowhere(hub, folder, output)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_server_that_dies_half_way_costs_no_model_and_the_command_completes_it(
    tiny_model, rows_file, tmp_path, launch, monkeypatch
):
    folder, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    values = keys(tiny_model, rows_file, folder, max_steps=2)
    values |= {"push_to_hub": "true", "hub_model_id": "me/tiny", "hub_strategy": "end"}
    with HubStandIn(TOKEN, dies_at="upload") as hub:
        client_of(hub, monkeypatch, home)
        environment = hub.environment(home)
        words = words_of(values)
        output = launch("recipes/sft_gsr.py", *words, accelerate="zero3_cpu", env=environment, expect=1)
        assert "the push to me/tiny failed" in output and f"python -m gsr_rl.hub push {folder}" in output
        assert hub.files("me/tiny") == {}
        hub.revive()
        output += launch("-m", "gsr_rl.hub", "push", folder, env=environment)
        assert_same_model(hub, "me/tiny", folder, tmp_path)
        assert_token_nowhere(hub, folder, output)


def test_a_push_beside_the_training_that_fails_is_told_and_training_goes_on(
    tiny_model,
    rows_file,
    tmp_path,
    monkeypatch,
    capsys,
):
    folder = tmp_path / "run"
    values = keys(tiny_model, rows_file, folder, max_steps=2, save_strategy="steps", save_steps=1)
    values |= {"push_to_hub": "true", "hub_model_id": "me/tiny", "hub_strategy": "every_save"}
    with HubStandIn(TOKEN, dies_at="commit") as hub:
        client_of(hub, monkeypatch, tmp_path)
        with pytest.raises(SystemExit) as end:
            run_recipe(monkeypatch, "sft", **values)
        assert end.value.code == 3
        said = capsys.readouterr().err
        assert "checkpoint-1 was not pushed, training goes on" in said and "the push to me/tiny failed" in said
        assert (folder / "model.safetensors").is_file() and (folder / "checkpoint-2/model.safetensors").is_file()
        assert not list((folder / "hub-uploading").glob("*"))
        hub.revive()
        from gsr_rl.hub.__main__ import main

        assert main(["push", str(folder)]) == 0
        assert hub.files("me/tiny")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert_token_nowhere(hub, folder, said)


def test_a_repository_that_cannot_be_made_ends_the_run_before_training(
    tiny_model,
    rows_file,
    tmp_path,
    monkeypatch,
    capsys,
):
    values = keys(tiny_model, rows_file, tmp_path / "run") | {"push_to_hub": "true", "hub_model_id": "me/tiny"}
    with HubStandIn(TOKEN, dies_at="create") as hub:
        client_of(hub, monkeypatch, tmp_path)
        with pytest.raises(SystemExit) as end:
            run_recipe(monkeypatch, "sft", **values)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "me/tiny cannot be pushed to" in said and "Nothing was trained" in said


@pytest.mark.slow
def test_a_distilled_set_is_loaded_from_the_hub_by_its_name(tmp_path):
    """datasets reads what was pushed, in a process of its own, as anybody would."""
    from gsr_rl.hub.dataset_card import write_data_set
    from gsr_rl.hub.push import Target

    row = {"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "2"}]}
    row |= {"stage": "candidate", "problem_id": "p", "answer": "2", "candidates": None, "num_correct": None}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"source": "me/teacher"}) + "\n")
    (tmp_path / "home").mkdir()
    with HubStandIn(TOKEN) as hub, pytest.MonkeyPatch.context() as patch:
        client_of(hub, patch, tmp_path / "home")
        from gsr_rl.hub.push import push_folder

        push_folder(write_data_set(tmp_path / "rows.jsonl", tmp_path / "set", "# set\n"), Target("me/set", "dataset"))
        code = "import datasets, json; print(json.dumps(datasets.load_dataset('me/set', split='train').to_list()))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [row | {"source": "me/teacher"}]
