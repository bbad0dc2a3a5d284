"""The warm start: loss on completions alone, steps that hold both stages, and a model folder that can be used."""

import json

import pytest

from gsr_rl.refinement.prompts import prompt_token_ids
from tests.support.fixed_engine import run_recipe
from tests.support.sft_run import keys, write_rows


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "sft_rows.jsonl")


@pytest.fixture(scope="module")
def trained(tiny_model, rows_file, tmp_path_factory):
    """A run of six steps: its folder, and the batches that the loss saw."""
    from gsr_rl.training.sft_trainer import GSRSFTTrainer

    folder, batches = tmp_path_factory.mktemp("sft"), []
    compute_loss = GSRSFTTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        batches.append({key: inputs[key].tolist() for key in ("input_ids", "labels", "attention_mask")})
        return compute_loss(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GSRSFTTrainer, "compute_loss", watched)
        run_recipe(patch, "sft", **keys(tiny_model, rows_file, folder))
    return folder, batches


def test_the_loss_sees_completions_and_their_end_only(trained, rows_file):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    known = set()
    for row in map(json.loads, rows_file.read_text().splitlines()):
        prompt = prompt_token_ids(tokenizer, row["prompt"])  # exactly what an engine is sent
        text = tokenizer(row["completion"][0]["content"], add_special_tokens=False)["input_ids"]
        known.add((tuple(prompt), (*text, tokenizer.eos_token_id)))
    seen = 0
    for batch in trained[1]:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            ids = [i for i, m in zip(ids, mask, strict=True) if m]
            target = tuple(label for label in labels if label != -100)
            assert tuple(ids[-len(target) :]) == target
            assert (tuple(ids[: -len(target)]), target) in known
            seen += 1
    assert seen == 6 * 2 * 8


def test_every_optimizer_step_holds_both_stages_in_batches_of_one_length(trained):
    from gsr_rl.training.sft_trainer import JITTER

    for first, second in zip(trained[1][::2], trained[1][1::2], strict=True):
        widths = sorted([len(first["input_ids"][0]), len(second["input_ids"][0])])
        assert widths[1] > 1.4 * widths[0], "a batch of direct solutions and one of refinements"
    assert JITTER < 0.5


def test_the_model_folder_is_complete_and_learned_something(trained):
    folder = trained[0]
    settings = json.loads((folder / "gsr_config.json").read_text())
    assert settings["prompt_template"] == "tiny" and settings["max_refinement_prompt_length"] == 200
    assert set(settings) == {
        "num_candidates",
        "prompt_template",
        "max_refinement_prompt_length",
        "unfinished_candidates",
        "prompt_template_version",
    }
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    assert "<assistant>" in tokenizer.chat_template
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for line in lines if "loss" in (one := json.loads(line))]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.3
    assert (folder / "config.yaml").exists() and (folder / "versions.json").exists()


def test_the_order_is_a_permutation_with_short_and_long_in_each_step():
    from gsr_rl.training.sft_trainer import LengthGroupedSampler, length_grouped_order

    lengths = [10 + i % 3 for i in range(53)] + [100 + i % 7 for i in range(50)]
    order = length_grouped_order(lengths, 8, 2, seed=0)
    assert sorted(order) == list(range(103))
    batches = [order[i : i + 8] for i in range(0, 96, 8)]
    short = [max(lengths[i] for i in batch) < 50 for batch in batches]
    mixed = sum(len({lengths[i] < 50 for i in batch}) == 2 for batch in batches)
    assert mixed <= 1, "at most the batch on the border mixes"
    assert sum(one != two for one, two in zip(short[::2], short[1::2], strict=True)) >= 5
    assert order != length_grouped_order(lengths, 8, 2, seed=1)
    assert sorted(length_grouped_order([5] * 3, 8, 2, seed=0)) == [0, 1, 2]
    sampler = LengthGroupedSampler(lengths, 8, 2, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first and len(sampler) == 103


def test_a_dry_run_counts_steps_and_loads_nothing(tiny_model, rows_file, tmp_path, monkeypatch, capsys):
    more = {"max_steps": -1, "num_train_epochs": 2, "stages": ["refinement"], "dry_run": "true"}
    run_recipe(monkeypatch, "sft", **keys(tiny_model, rows_file, tmp_path / "dry", **more))
    text = capsys.readouterr().out
    for line in ("refine rows                40", "solve rows                 0", "optimizer steps            6"):
        assert line in text
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dataset_name": "nowhere.jsonl"}, "dataset_name=nowhere.jsonl: there is no such file"),
        ({"stages": "refinements"}, "stages=['refinements']: use candidate or refinement, or both"),
        ({"prompt_template": "plain"}, "prompt_template='plain' is not known"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"num_train_epoch": 3}, "unknown key num_train_epoch: did you mean num_train_epochs?"),
    ],
)
def test_a_bad_value_is_named_with_its_fix(tiny_model, rows_file, tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit) as end:
        run_recipe(monkeypatch, "sft", **keys(tiny_model, rows_file, tmp_path, **more))
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_under_zero_train_and_save(tiny_model, rows_file, tmp_path, launch):
    words = [word for key, value in keys(tiny_model, rows_file, tmp_path).items() for word in (f"--{key}", value)]
    launch("recipes/sft_gsr.py", *words, "--max_steps", "2", accelerate="zero3_cpu")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    change = (model.lm_head.weight - before.lm_head.weight).abs().max().item()
    assert 0 < change < 0.1
