"""The reward model of an evaluation: its scores; another kind of model is refused before anything is sampled."""

import shutil

import pytest

from tests.support.fixed_engine import FixedEngine, run_recipe

KEYS = {
    "dataset_name": "tiny/mix",
    "dataset_split": "test",
    "max_problems": 5,
    "prompt_template": "tiny",
    "num_candidates": 3,
    "num_generations": 6,
    "max_completion_length": 40,
    "methods": "best_of_n",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluate with a reward model and the fixed engine."""
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("gsr_rl.engines.open.open_engine", FixedEngine)
    monkeypatch.setattr(FixedEngine, "opened", 0)
    keys = KEYS | {"model": tmp_path / "model", "output_dir": tmp_path / "out"}
    return lambda **more: run_recipe(monkeypatch, "eval", **(keys | more))


def test_a_reward_model_scores_texts_one_by_one_as_in_a_batch(reward_model):
    from gsr_rl.engines.local import RewardModel

    texts = ["12+5=17\\boxed{17}", "17", "", "<think>never ends", "12+5=17*3=51-8=43\\boxed{43}"]
    batched = RewardModel(reward_model, 3).scores("12+5", texts)
    single = [RewardModel(reward_model, 1).scores("12+5", [text])[0] for text in texts]
    assert batched[2] is batched[3] is None
    assert batched == [None if one is None else pytest.approx(one, abs=1e-4) for one in single]
    assert len({round(one, 3) for one in batched if one is not None}) == 3


def test_a_text_is_no_longer_than_the_tokenizer_says(reward_model, tmp_path):
    """RoBERTa has two positions more than its tokenizer may use."""
    from transformers import AutoTokenizer

    from gsr_rl.engines.local import RewardModel

    shutil.copytree(reward_model, tmp_path / "short")
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path / "short")
    long, short = RewardModel(reward_model), RewardModel(str(tmp_path / "short"))
    assert short.max_length == 20 < long.max_length
    assert short.scores("12+5=", ["1+1=2*" * 40]) != long.scores("12+5=", ["1+1=2*" * 40])


def test_scores_are_stored_while_they_are_made(run, reward_model, monkeypatch, tmp_path):
    from gsr_rl.evaluation import evaluate as evaluation

    class Slow(evaluation.RewardModel):
        def scores(self, *texts):
            if (calls := getattr(self, "calls", 0)) == 3:
                raise KeyboardInterrupt
            self.calls = calls + 1
            return super().scores(*texts)

    monkeypatch.setattr(evaluation, "SHARD_SECONDS", -1.0)
    monkeypatch.setattr(evaluation, "RewardModel", Slow)
    with pytest.raises(KeyboardInterrupt):
        run(reward_model=reward_model)
    assert len([*(tmp_path / "out" / "shards" / "scores").glob("*units*")]) == 3
    run(reward_model=reward_model)  # two are left
    assert (tmp_path / "out" / "eval.json").is_file()


def test_a_model_of_another_kind_is_no_reward_model(run, tiny_model, capsys):
    with pytest.raises(SystemExit):
        run(reward_model=tiny_model)
    assert "...ForSequenceClassification head is expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "is a LlamaForCausalLM: a model with a ...ForSequence"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}, "has 3 labels: one (a score) or two"),
        (None, "some/judge cannot be read"),
    ],
)
def test_a_reward_model_of_the_hub_is_looked_at_before_anything_is_sampled(run, monkeypatch, capsys, config, message):
    from transformers import AutoConfig, LlamaConfig

    def read(name):
        if config is None:
            raise OSError("offline")
        return LlamaConfig(**config)

    monkeypatch.setattr(AutoConfig, "from_pretrained", read)
    with pytest.raises(SystemExit) as stopped:
        run(reward_model="some/judge")
    assert stopped.value.code == 2 and FixedEngine.opened == 0
    assert message in capsys.readouterr().err
