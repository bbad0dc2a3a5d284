"""A model without a chat template is refused before its weights load; `chat_template` sets one, in all programs."""

import json
import runpy
import shutil
import sys

import pytest
from transformers import AutoTokenizer

from gsr_rl import cli
from gsr_rl.engines.open import open_engine
from gsr_rl.refinement.settings import with_chat_template
from gsr_rl.serving.config import ServeConfig, SolveConfig
from tests.support.findings import GRPO, TINY
from tests.support.paths import ROOT

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}="
MODELS = {
    "distill": ("student_model", {"dataset_name": "tiny/mix", "output_dir": "x"}),
    "sft": ("model_name_or_path", {"dataset_name": "Org/rows"}),
    "grpo": ("model_name_or_path", GRPO | {"max_completion_length": 40, "max_refinement_prompt_length": 60}),
    "eval": ("model", {"dataset_name": "tiny/mix", "dataset_split": "test", "output_dir": "x"}),
}
SHORT = {"max_completion_length": 40, "max_refinement_prompt_length": 60}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The tiny model as it is without weights and without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / TINY / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    return str(tmp_path / "own.jinja")


@pytest.mark.parametrize("program", MODELS)
def test_a_recipe_refuses_it_in_a_dry_run_too(plain, file, program):
    key, values = MODELS[program]
    values = values | {key: plain, "prompt_template": "tiny", "dry_run": True} | (SHORT if program != "sft" else {})
    with pytest.raises(ValueError, match=rf"{key}=\S+ has no chat template.*: set chat_template to a file"):
        cli.check_values(program, values)
    cli.check_values(program, values | {"chat_template": file})
    with pytest.raises(ValueError, match="chat_template=nowhere: there is no such file"):
        cli.check_values(program, values | {"chat_template": "nowhere"})


def test_a_teacher_has_its_own(plain, file):
    values = MODELS["distill"][1] | SHORT | {"student_model": str(ROOT / TINY), "teacher_model": plain}
    with pytest.raises(ValueError, match=r"teacher_model=.* no chat template.*: set teacher_chat_template"):
        cli.check_values("distill", values | {"chat_template": file})
    cli.check_values("distill", values | {"teacher_chat_template": file})


@pytest.mark.parametrize("config", [SolveConfig, ServeConfig])
def test_gsr_solve_and_gsr_serve_refuse_it(plain, file, config):
    with pytest.raises(ValueError, match=r"model=.* has no chat template"):
        config(model=plain)
    assert config(model=plain, chat_template=file).chat_template == file


def test_an_engine_is_not_opened_and_no_weights_are_looked_for(plain):
    with pytest.raises(ValueError, match=r"has no chat template.*: set chat_template"):
        open_engine("transformers", plain)


def test_the_file_is_what_prompts_are_made_with(plain, file):
    tokenizer = with_chat_template(AutoTokenizer.from_pretrained(plain), file, plain)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "47+5"}], return_dict=False)
    assert tokenizer.decode(ids) == "47+5="
    with open_engine("transformers", str(ROOT / TINY), chat_template=file) as engine:
        assert engine.tokenizer.chat_template == TEMPLATE


def test_the_warm_start_takes_one_of_trls_key_or_ours(plain, file):
    values = MODELS["sft"][1] | {"model_name_or_path": plain, "chat_template_path": file}
    cli.check_values("sft", values)
    with pytest.raises(ValueError, match="chat_template and chat_template_path are both set"):
        cli.check_values("sft", values | {"chat_template": file})


def test_a_model_of_the_hub_is_refused_before_the_trainer_is_made(monkeypatch, tmp_path, plain, capsys):
    """Its files are not looked at in a dry run, but its tokenizer is loaded before its weights."""
    monkeypatch.setattr("gsr_rl.training.checks.check_chat_template", lambda *_: [])
    words = ["grpo", "--config", str(ROOT / "recipes/tiny/grpo.yaml"), "--model_name_or_path", plain]
    monkeypatch.setattr(sys, "argv", [*words, "--output_dir", str(tmp_path), "--max_problems", "8"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes/grpo_gsr.py"))["main"]()
    assert ended.value.code == 2 and "has no chat template" in capsys.readouterr().err
