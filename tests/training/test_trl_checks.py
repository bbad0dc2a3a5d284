"""What TRL and transformers would stumble over after the model has loaded, or never, is refused before."""

import os
import runpy
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model

from gsr_rl import cli
from gsr_rl.data.config import held_out_keys
from gsr_rl.training.checks import check_reporting
from gsr_rl.training.launch import shard_on_cpu, warn_of_lost_updates
from tests.support.findings import GRPO, TINY, findings
from tests.support.paths import ROOT

EVERY_STEP = {"eval_strategy": "steps", "eval_dataset_name": "tiny/mix"}
BEST = EVERY_STEP | {"load_best_model_at_end": True}
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("metric", ["eval_selfref@4", "pass@1", "eval_refinement_gap"])
def test_a_metric_that_the_evaluation_gives_may_choose_the_checkpoint(metric):
    cli.check_values("grpo", GRPO | BEST | {"metric_for_best_model": metric})


@pytest.mark.parametrize(
    "values, message",
    [
        (
            BEST,
            "load_best_model_at_end=True needs a held-out metric: set metric_for_best_model to one of pass@1,",
        ),
        (BEST | {"metric_for_best_model": "foo"}, "metric_for_best_model=foo is not evaluated: use one of pass@1"),
        (BEST | {"metric_for_best_model": "eval_selfref@8"}, "maj@4, selfref@4, pass@4, refinement_gap"),
        (EVERY_STEP | {"metric_for_best_model": "eval_loss"}, "metric_for_best_model=eval_loss is not evaluated"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "pass@1"}, "needs a held-out metric: set eval_str"),
        ({"save_strategy": "best"}, "save_strategy=best needs a held-out metric: set eval_strategy"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type=reduce_lr_on_plateau needs a held-out"),
    ],
    ids=range(7),
)
def test_what_no_evaluation_gives_cannot_choose_the_checkpoint(values, message):
    assert message in findings(**values)


def test_one_completion_of_a_problem_is_nothing_to_compare():
    message = findings(num_generations=1, num_candidates=1)
    assert "num_generations=1: rewards are compared among the completions of a prompt, set it to at least 2" in message
    assert "at most 0" not in message and "num_candidate_sets" not in message


def test_the_warm_start_evaluates_nothing(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    values = {"dataset_name": str(rows), "model_name_or_path": TINY, "max_length": 256}
    cli.check_values("sft", values)
    for key, value in {"eval_strategy": "steps", "eval_on_start": True, "load_best_model_at_end": True}.items():
        with pytest.raises(ValueError, match=f"{key}={value}.*: the warm start evaluates nothing"):
            cli.check_values("sft", values | {key: value})


@pytest.mark.parametrize(
    "report_to, message",
    [
        ("foo", "report_to=foo: use none, all, or some of azure_ml, "),
        (["trackio", "none"], "report_to=trackio is not there: pip install trackio, or set report_to to none"),
        (["trackio", "none"], "report_to=none: use none, all, or some of"),
        ("comet_ml", "report_to=comet_ml is not there: pip install comet-ml"),
        ("kubeflow", "report_to=kubeflow is not there: start the run by Kubeflow's trainer"),
    ],
)
def test_a_logger_that_is_not_there_is_refused(report_to, message, monkeypatch):
    from transformers.integrations import integration_utils

    for name in ("trackio", "comet", "kubeflow"):
        monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
    from gsr_rl.training.config import GSRConfig, GSRSFTConfig

    for kind, keys in ((GSRConfig, {"per_device_train_batch_size": 16}), (GSRSFTConfig, {"dataset_name": __file__})):
        with pytest.raises(ValueError) as caught:
            kind(output_dir="out", report_to=report_to, use_cpu=True, **keys)
        assert message in str(caught.value)


def test_every_logger_of_transformers_can_be_looked_for(monkeypatch):
    from transformers.integrations import integration_utils

    names = [name for name in integration_utils.INTEGRATION_TO_CALLBACK]
    for name in [name for name in vars(integration_utils) if name.startswith("is_") and name.endswith("_available")]:
        monkeypatch.setattr(integration_utils, name, lambda: False)
    assert len(check_reporting(SimpleNamespace(report_to=names))) == len(names)
    for nothing in ("none", None, [], ["none"], "all"):
        assert check_reporting(SimpleNamespace(report_to=nothing)) == []


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"vllm_importance_sampling_mode": "token_musk"},
            "vllm_importance_sampling_mode='token_musk': use token_",
        ),
        (
            {"loss_type": "vespo", "use_vllm": True},
            "mode=sequence_mask: loss_type=vespo needs token_mask or",
        ),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "loss_type=vespo needs token"),
        ({"eval_problems_per_call": 0}, "eval_problems_per_call=0: at least 1"),
        ({"max_eval_problems": 0}, "max_eval_problems=0: at least 1"),
        ({"num_generations_eval": 0}, "num_generations_eval=0: at least 1"),
        ({"server_request_timeout": 0}, "server_request_timeout=0: a positive number"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization=1.5: a share above 0 and at most 1"),
        ({"generation_kwargs": {"n": 2}}, "generation_kwargs: n=2 would override .*: set num_generations instead"),
        ({"generation_kwargs": {"seed": 2}}, "generation_kwargs: seed=2 would override .*: set seed instead"),
        ({"generation_kwargs": {"logprobs": 5}}, "generation_kwargs: logprobs=5 would override .*: leave it out"),
        ({"candidate_credit": 0.5, "num_candidate_sets": 2, "num_candidates": 8}, "every candidate is in every set"),
        ({"reward_funcs": ["candidate/accuracy"]}, "leaves the refinement stage without a reward, with refinement_w"),
        ({"reward_funcs": "refinement/accuracy"}, "add a reward, such as candidate/accuracy, or set candidate_weight"),
        ({"save_only_model": True, "resume_from_checkpoint": True}, "holds no optimizer to go on with"),
        ({"load_in_4bit": True, "use_peft": True}, "load_in_4bit=true: quantized weights are not supported"),
        ({"eval_on_start": True}, "eval_on_start=true needs held-out problems"),
        ({"load_in_8bit": True}, "load_in_8bit=true: quantized weights are not supported"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_value_that_would_do_nothing_or_harm_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        cli.check_values("grpo", GRPO | values)


@pytest.mark.parametrize(
    "values",
    [
        {"loss_type": "vespo", "use_vllm": True, "vllm_importance_sampling_mode": "token_mask"},
        {"loss_type": "vespo"},
        {"max_eval_problems": None},
        {"generation_kwargs": {"min_tokens": 1}},
        {"candidate_credit": 0.5, "num_candidate_sets": 2, "num_candidates": 8, "min_num_candidates": 4},
        {"reward_funcs": ["candidate/accuracy"], "refinement_weight": 0, "per_device_train_batch_size": 8},
        {"save_only_model": True, "resume_from_checkpoint": "false"},
    ],
    ids=lambda value: "-".join(value),
)
def test_its_sound_neighbour_passes(values):
    cli.check_values("grpo", GRPO | values)


OTHERS = {
    "sft": {"dataset_name": "someone/rows", "model_name_or_path": TINY, "max_length": 256},
    "distill": {"dataset_name": "tiny/mix", "student_model": TINY, "output_dir": "out", "max_completion_length": 40}
    | {"max_refinement_prompt_length": 200},
    "eval": {"benchmarks": ["tiny/mix"], "model": TINY, "output_dir": "out", "max_completion_length": 40}
    | {"max_refinement_prompt_length": 200},
    "grpo": GRPO,
}


@pytest.mark.parametrize(
    "program, name, value",
    [
        *(("grpo", name, value) for name in ("oversample", "temperature") for value in (NAN, INFINITE, "nan")),
        *(("grpo", name, NAN) for name in ("candidate_weight", "learning_rate", "candidate_credit", "weight_decay")),
        ("grpo", "reward_weights", [NAN]),
        ("sft", "learning_rate", NAN),
        ("sft", "num_train_epochs", INFINITE),
        ("distill", "temperature", NAN),
        ("distill", "direct_ratio", INFINITE),
        ("distill", "num_correct_shares", {0: NAN}),
        ("eval", "refinement_temperature", NAN),
        ("eval", "request_timeout", INFINITE),
    ],
)
def test_a_number_is_finite(program, name, value):
    cli.check_values(program, OTHERS[program])
    with pytest.raises(ValueError, match="^" + name + r"=.+: a finite number is expected$"):
        cli.check_values(program, OTHERS[program] | {name: value})


@pytest.mark.parametrize("program", OTHERS)
def test_a_seed_is_not_negative(program):
    with pytest.raises(ValueError, match=r"^seed=-1: at least 0 is needed$"):
        cli.check_values(program, OTHERS[program] | {"seed": -1})


def test_candidate_sets_and_memory_of_an_engine_are_in_their_ranges():
    for key, value in {"num_candidate_sets": 0, "gpu_memory_utilization": 0}.items():
        with pytest.raises(ValueError, match=f"{key}={value}: "):
            cli.check_values("distill", OTHERS["distill"] | {key: value})


def parsed(tmp_path, *words):
    config = ["--config", str(ROOT / "recipes/tiny/grpo.yaml"), "--model_name_or_path", TINY]
    return cli.parse("grpo", [*config, "--output_dir", str(tmp_path), *words])[1]


def test_mappings_of_the_command_line_are_yaml_or_json(tmp_path):
    args = parsed(
        tmp_path, "--reward_options", "{length: {max_length: 1}}", "--generation_kwargs", "{min_tokens: 1}",
        "--dataset_kwargs", "{}", "--model_shape", '{"hidden_size": 8}', "--chat_template_kwargs", "{a: true}",
    )  # fmt: skip
    assert args.reward_options == {"length": {"max_length": 1}} and args.generation_kwargs == {"min_tokens": 1}
    assert args.model_shape == {"hidden_size": 8} and args.chat_template_kwargs == {"a": True}


@pytest.mark.parametrize("text", ["{min_tokens: [", "many"])
@pytest.mark.parametrize("name", ["generation_kwargs", "reward_options", "lr_scheduler_kwargs"])
def test_text_that_is_no_mapping_is_named_with_its_key(name, text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parsed(tmp_path, f"--{name}", text)
    assert f"{name}={text!r}: a mapping is expected" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--num_generations_eval", "3")])
def test_trls_batch_of_evaluation_does_not_stand_in_the_way(tmp_path, more):
    evaluated = ("--eval_strategy", "steps", "--eval_dataset_name", "tiny/mix", "--num_generations", "16", *more)
    parsed(tmp_path, *evaluated)


@pytest.mark.parametrize("same", [{}, {"dataset_split": "train"}])
def test_held_out_problems_are_not_those_of_the_training(same, tmp_path, monkeypatch):
    message = findings(eval_dataset_name="tiny/mix", eval_dataset_split="train")
    assert message.startswith("eval_dataset_name=tiny/mix, eval_dataset_split=train: these problems are trained on")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    message = findings(dataset_name="rows.jsonl", eval_dataset_name=str(tmp_path / "rows.jsonl"), **same)
    assert message.endswith("these problems are trained on, hold out another file")


def test_held_out_problems_are_checked_as_the_others_are():
    assert findings(eval_dataset_name="tiny/mix", eval_dataset_split="none") == (
        "eval_dataset_split=none: the tiny world has " + findings(dataset_split="none").split(" has ")[1]
    )
    message = findings(eval_dataset_name="tiny/mix", eval_dataset_split="test", max_eval_problems=0)
    assert message.startswith("max_eval_problems=0: at least 1 is needed")
    assert "eval_dataset_name=no.jsonl: there is no such file" in findings(eval_dataset_name="no.jsonl")


def load_rows(tmp_path, trained: list[str], **problem_keys):
    from gsr_rl.data.config import ProblemConfig

    for name, texts in {"train": trained, "held": ["1 + 1", "Add  TWO and two"]}.items():
        lines = [f'{{"problem": "{text}", "answer": "2"}}\n' for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    problems = ProblemConfig(dataset_name=str(tmp_path / "train.jsonl"), dataset_split="train", **problem_keys)
    held_out = {"eval_dataset_name": str(tmp_path / "held.jsonl"), "eval_dataset_split": "test"}
    args = SimpleNamespace(**held_out, max_eval_problems=None, prompt_template="tiny")
    return runpy.run_path(str(ROOT / "recipes/grpo_gsr.py"))["load_rows"](problems, args)


def test_a_held_out_problem_is_not_trained_on(tmp_path, capsys):
    train, held = load_rows(tmp_path, ["3 + 3", "add two and two"], dataset_kwargs={"difficulty": 3})
    assert [row["problem"] for row in train] == ["3 + 3"] and len(held) == 2
    assert "left out 1 training problems that eval_dataset_name holds out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="eval_dataset_name holds out every problem of dataset_name"):
        load_rows(tmp_path, ["add two and two"])


@pytest.mark.parametrize("name, kept", [("tiny/chain", False), ("tiny/mix", True)])
def test_what_is_said_of_one_generated_set_does_not_hold_for_another(name, kept):
    problems = SimpleNamespace(dataset_name="tiny/mix", dataset_kwargs={"difficulty": 3})
    held_out = SimpleNamespace(eval_dataset_name=name, eval_dataset_split="test", max_eval_problems=5)
    assert ("dataset_kwargs" not in held_out_keys(problems, held_out)) == kept


@pytest.mark.parametrize(
    "dtype, trained, deepspeed, fsdp, mixed, warned",
    [
        (torch.bfloat16, True, False, False, "bf16", True),  # plain data parallel
        (torch.bfloat16, True, False, True, "no", True),
        (torch.bfloat16, True, False, True, "bf16", False),  # FSDP2 keeps the weights in float32
        (torch.bfloat16, True, True, False, "no", False),
        (torch.bfloat16, False, False, False, "bf16", False),  # LoRA's base
        (torch.float32, True, False, False, "bf16", False),
    ],
)
def test_trained_weights_of_16_bits_that_nothing_keeps_in_float32_are_warned_of(
    caplog, dtype, trained, deepspeed, fsdp, mixed, warned
):
    trainer = SimpleNamespace(
        is_deepspeed_enabled=deepspeed,
        is_fsdp_enabled=fsdp,
        accelerator=SimpleNamespace(mixed_precision=mixed, is_main_process=True),
        model=torch.nn.Linear(2, 2, dtype=dtype).requires_grad_(trained),
        args=SimpleNamespace(learning_rate=1e-6),
    )
    warn_of_lost_updates(trainer)
    message = "the trained weights are bfloat16 and nothing keeps them in float32: updates of learning_rate=1e-06 are"
    assert (message in caplog.text) == warned


@pytest.mark.parametrize("rate, warned", [(1e-6, True), (1e-5, False), (0.0, False)])
def test_a_full_fine_tunes_learning_rate_is_warned_of_with_lora(caplog, rate, warned):
    adapted = get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(r=1, target_modules=["0"]))
    trainer = SimpleNamespace(
        is_deepspeed_enabled=True,  # keeps the adapters in float32, but not what the engine gets
        accelerator=SimpleNamespace(is_main_process=True),
        model=adapted,
        args=SimpleNamespace(learning_rate=rate),
    )
    warn_of_lost_updates(trainer)
    assert (f"learning_rate={rate:g} is a full fine-tune's" in caplog.text) == warned


@pytest.mark.parametrize("use_cpu", [False, True])
def test_sharding_on_a_cpu_is_set_up_where_use_cpu_says_so_and_gpus_are_hidden(monkeypatch, use_cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AcceleratorState, "__init__", AcceleratorState.__init__)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delattr(AcceleratorState.__init__, "__wrapped__", raising=False)
    shard_on_cpu(use_cpu)
    assert hasattr(AcceleratorState.__init__, "__wrapped__") == use_cpu
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if use_cpu else "0,1")


@pytest.mark.parametrize("word, stated", [("true", True), ("1", True), ("false", False)])
def test_the_programs_hand_use_cpu_on_before_anything_asks_for_a_gpu(monkeypatch, word, stated):
    handed: list[bool] = []
    monkeypatch.setattr("gsr_rl.training.launch.shard_on_cpu", handed.append)
    monkeypatch.setattr(cli, "_import_class", lambda _: dict)
    model = ["--model_name_or_path", TINY]
    cli.parse("grpo", ["--config", str(ROOT / "recipes/tiny/grpo.yaml"), "--use_cpu", word, *model])
    assert handed == [stated]
