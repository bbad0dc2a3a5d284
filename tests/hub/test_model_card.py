"""A model's card tells the truth: where the model comes from, what it was trained on, and how it is used."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from gsr_rl.hub.__main__ import merge_adapter, merge_command
from gsr_rl.hub.model_card import card_of, evaluation_of, with_results, write_provenance
from gsr_rl.hub.push import Target, files_of
from tests.support.hub_folders import BASE, model_folder


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "grpo")


def test_the_card_names_the_first_base_and_all_data_of_a_chain(model, tmp_path):
    (model / "README.md").write_text(card_of(model, "me/first"))
    second = tmp_path / "second"
    second.mkdir()
    config = {
        "training": {"dataset_name": "me/rows", "dataset_split": "train"},
        "model": {"model_name_or_path": str(model)},
    }
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    write_provenance(second, str(model), "me/rows")
    card = ModelCard(card_of(second, "me/second"))
    assert card.data.base_model == "someone/base-model" and card.data.datasets == ["openai/gsm8k", "me/rows"]
    assert str(tmp_path) not in str(card) and "a supervised warm start" in card.text


def test_evaluations_of_other_benchmarks_stand_side_by_side():
    values = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    card = "# mine\n"
    for names in (["aime24", "amc23"], ["aime24"], ["aime24"], [f"set-{number}" for number in range(30)]):
        parts = {name: values for name in [*names, f"{names[0]}/easy"]}
        summary = {"names": names, "benchmarks": parts, "k": 4, "num_problems": 70, "num_samples": 8}
        summary |= {"num_candidate_sets": 2, "sampling": {"candidate": {"top_p": 0.9}, "refinement": {"top_p": 1.0}}}
        summary |= {"grouping": "disjoint", "skipped": {"selfref": {"skipped": 3, "samples": 140}}}
        evaluation = evaluation_of(json.dumps(summary))
        card = with_results(card, evaluation, "me/mine")
        assert len(evaluation.name) < 90
    headings = [line for line in card.splitlines() if line.startswith("### ")]
    assert "- runs: 8 candidates a problem; sets of K = 4: 2 a problem, disjoint\n- not asked for" in card
    assert "counted as wrong: selfref 3 of 140\n" in card and "at least Wilson's or Newcombe's" in card
    assert headings[0].startswith("### set-0, set-1, ") and headings[0].endswith(", set-29, K = 4")
    assert headings[1:] == ["### aime24, K = 4", "### aime24, amc23, K = 4"]
    assert "evaluations/aime24-amc23-k4.json" in card and "evaluations/aime24-k4.json" in card


def test_the_card_says_how_the_training_was_launched(model):
    card = card_of(model, "me/first")
    assert "- python 3.11, torch 2.13\n- trained on " in card
    assert "processes: 2, sharding: DeepSpeed ZeRO-2" in card


@pytest.mark.parametrize(
    "max_steps, shown, unused", [(40, "max_steps", "num_train_epochs"), (-1, "num_train_epochs", "max_steps")]
)
def test_the_card_shows_what_decides_the_length_of_the_training(tmp_path, max_steps, shown, unused):
    run = run_of(tmp_path / "run", "someone/base", max_steps=max_steps, num_train_epochs=3.0)
    card = card_of(Path(run), "me/name")
    assert f"| {shown} " in card and f"| {unused} " not in card


def test_the_cards_way_to_use_the_model_runs(model, capsys):
    code = re.search(r"```python\n(.*?)```", card_of(model, str(model)), re.DOTALL).group(1)
    here = code.replace(f'Solver("{model}")', f'Solver("{model}", engine="transformers")')  # it starts sooner
    assert here != code
    scope: dict = {"__name__": "__main__"}
    exec(here, scope)
    assert len(scope["solution"].candidates) == 4 and len(scope["solution"].rounds) == 2
    assert scope["solution"].text in capsys.readouterr().out


def run_of(folder, start: str, **training) -> str:
    """A run's folder as far as a card needs it: its path."""
    folder.mkdir(parents=True)
    config = {"training": training, "model": {"model_name_or_path": start}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_card_is_the_same_when_the_start_is_gone_and_seen_from_elsewhere(absolute, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "README.md").write_text(card_of(model, "me/first"))
    start = str(model) if absolute else model.name
    second = tmp_path / "runs" / "second"
    (tmp_path / "data/rows").mkdir(parents=True)
    run_of(second, start, dataset_name="data/rows")
    write_provenance(second, start, "data/rows")
    before = card_of(second, "me/second")
    model.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert card_of(second, "me/second") == before
    data = ModelCard(before).data
    assert (data.base_model, data.datasets) == ("someone/base-model", ["openai/gsm8k"]) and str(tmp_path) not in before


@pytest.mark.parametrize("start", ["runs/sft", "runs/demo/sft", "/home/somebody/sft", "./sft", "../sft", "~/sft"])
def test_a_start_that_is_not_known_to_be_on_the_hub_is_no_base_model(start, tmp_path):
    run_of(tmp_path / "old", start)
    card = card_of(tmp_path / "old", "me/x")
    assert ModelCard(card).data.base_model is None and start not in card and "| started from | sft |" in card


def test_names_that_the_hub_does_not_have_are_not_inherited(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "README.md").write_text(
        "---\nbase_model: /home/somebody/base\ndatasets:\n- me/rows\n- ../rows\nlicense: mit\n---\n"
    )
    run_of(tmp_path / "run", str(start), dataset_name="../more")
    write_provenance(tmp_path / "run", str(start), "../more")
    data = ModelCard(card_of(tmp_path / "run", "me/x")).data
    assert (data.base_model, data.datasets, data.license) == (None, ["me/rows"], "mit")


@pytest.fixture
def adapter(tmp_path):
    """A run folder of LoRA training from the tiny world's base model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "lora"
    run_of(folder, str(BASE))
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    (folder / "README.md").unlink()
    (folder / "gsr_config.json").write_text('{"prompt_template": "tiny", "num_candidates": 3}')
    return folder


def solved(code: str):
    """The solution that a card's Python makes."""
    scope: dict = {"__name__": "__main__"}
    exec(code, scope)
    return scope["solution"]


def test_the_cards_way_to_use_an_adapter_runs_as_it_stands(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = card_of(adapter, str(adapter))
    assert f"gsr-solve --model {adapter} --engine transformers" in card
    (solve,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(solved(solve).candidates) == 3
    (merge,) = re.findall(r"gsr-merge (.*)\n", card)
    merge_command(merge.split())
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "gsr_config.json"} <= names and "adapter_config.json" not in names
    assert (adapter / "adapter_config.json").is_file()
    card = (tmp_path / "merged/README.md").read_text()
    (solve,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "LoRA adapter" not in card and 'Solver("merged")' in solve
    assert len(solved(solve.replace('"merged"', '"merged", engine="transformers"')).candidates) == 3


def logits(folder, adapter=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    return model(torch.arange(12)[None]).logits


def test_a_merged_run_computes_what_its_adapter_does_and_its_card_is_true(adapter, tmp_path, monkeypatch):
    """In the run's folder, from another working folder than the one that its base model is named from."""
    base = shutil.copytree(BASE, tmp_path / "runs/sft")
    run = shutil.copytree(adapter, tmp_path / "runs/grpo")
    write_provenance(run, "someone/base-model", "openai/gsm8k")
    settings = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": "runs/sft"}
    (run / "adapter_config.json").write_text(json.dumps(settings))
    config = {"problems": {"dataset_name": "openai/gsm8k", "dataset_split": "train"}, "training": {}}
    config["model"] = {"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with torch.no_grad():
        expected, plain = logits(base, run), logits(base)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    merge_command(["../runs/grpo"])
    assert {"adapter_config.json", "adapter_model.safetensors"} == {path.name for path in (run / "adapter").iterdir()}
    with torch.no_grad():
        assert torch.allclose(logits(run), expected, atol=1e-4) and not torch.allclose(plain, expected, atol=1e-2)
    card = ModelCard((run / "README.md").read_text())
    assert (card.data.base_model, card.data.library_name) == ("someone/base-model", "transformers")
    assert "Trained by joint GRPO" in card.text and "LoRA of rank 2 on all-linear" in card.text
    files = files_of(run, Target("me/mine"))
    assert {"model.safetensors", "config.json", "gsr_config.json"} <= files.keys()
    assert not any("adapter" in name for name in files)
    with pytest.raises(ValueError, match=r"holds no LoRA adapter .* merged already"):
        merge_adapter(run)


@pytest.mark.parametrize("moves", [0, 3, 7])
def test_a_merge_that_was_cut_off_is_done_again(adapter, moves, monkeypatch):
    """After any number of files that have been moved into place."""
    with torch.no_grad():
        expected = logits(BASE, adapter)
    left = [True] * moves
    move = os.replace

    def cut_off(*paths):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        move(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", cut_off)
        merge_adapter(adapter)
    merge_adapter(adapter)
    with torch.no_grad():
        assert torch.allclose(logits(adapter), expected, atol=1e-4)
    assert not (adapter / "merging").exists() and not (adapter / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["someone/adapter"], "someone/adapter: there is no such folder; of an adapter on the Hub say where to"),
        ([str(BASE)], f"{BASE} holds no LoRA adapter (adapter_config.json): give the output_dir of such a run"),
    ],
)
def test_what_cannot_be_merged_is_named(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        merge_command(words)
    assert end.value.code == 2 and message in capsys.readouterr().err
