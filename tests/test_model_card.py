"""A model's card tells the truth: where the model comes from, what it was trained on, and how it is used."""

import re

import pytest
import yaml
from hub_folders import model_folder


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "grpo")


def test_the_card_names_the_first_base_and_all_data_of_a_chain(model, tmp_path):
    from huggingface_hub import ModelCard

    from gsr_rl.model_card import card_of

    (model / "README.md").write_text(card_of(model, "me/first"))
    second = tmp_path / "second"
    second.mkdir()
    config = {
        "training": {"dataset_name": "me/rows", "dataset_split": "train"},
        "model": {"model_name_or_path": str(model)},
    }
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    card = ModelCard(card_of(second, "me/second"))
    assert card.data.base_model == "someone/base-model" and card.data.datasets == ["openai/gsm8k", "me/rows"]
    assert str(tmp_path) not in str(card) and "a supervised warm start" in card.text


def test_the_cards_way_to_use_the_model_runs(model, capsys):
    from gsr_rl.model_card import card_of

    code = re.search(r"```python\n(.*?)```", card_of(model, str(model)), re.DOTALL).group(1)
    here = code.replace(f'Solver("{model}")', f'Solver("{model}", engine="transformers")')  # it starts sooner
    assert here != code
    scope: dict = {}
    exec(here, scope)
    assert len(scope["solution"].candidates) == 4 and len(scope["solution"].rounds) == 2
    assert scope["solution"].text in capsys.readouterr().out
