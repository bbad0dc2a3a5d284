"""The reward functions, by name and with TRL's signature."""

import inspect
import json
import re
import runpy
import subprocess
import sys

import pytest

from rewards import load_reward_funcs

SHOUT = f"{__name__}:shout"


def shout(prompts, completions, **columns):
    return [1.0 if completion.isupper() else 0.0 for completion in completions]


def test_accuracy_grades_the_answer_column_and_logs_shares():
    (accuracy,) = load_reward_funcs(["accuracy"])
    logged = {}
    completions = [r"\boxed{4}", "The answer is 4.", r"\boxed{5}", r"\boxed{4}", r"<think>\boxed{4}"]
    scores = accuracy(
        prompts=["p"] * 5,
        completions=completions,
        completion_ids=[[1]] * 5,
        answer=["4", "4", "4", "", "4"],
        log_metric=logged.__setitem__,
    )
    assert scores == [1.0, 0.0, 0.0, None, 0.0]
    assert logged["verifier/missing_answers"] == pytest.approx(0.4)
    assert logged["verifier/unreadable_golds"] == pytest.approx(0.2)
    assert logged["verifier/timeouts"] == 0.0
    assert logged["verifier/seconds"] >= 0.0


def test_a_timeout_is_wrong_and_logged():
    (accuracy,) = load_reward_funcs(["accuracy"], {"accuracy": {"timeout": 1.0}})
    logged = {}
    assert accuracy(
        prompts=None, completions=[r"\boxed{\prod_{k=1}^{10^9} (k+y)}"], answer=["1+y"], log_metric=logged.__setitem__
    ) == [0.0]
    assert logged["verifier/timeouts"] == 1.0


def test_conversations_are_read_from_their_last_message():
    (accuracy,) = load_reward_funcs(["accuracy"])
    chat = [{"role": "assistant", "content": r"\boxed{4}"}]
    assert accuracy(
        prompts=None, completions=[chat, [], [{"role": "assistant", "content": None}]], answer=["4"] * 3
    ) == [1.0, 0.0, 0.0]
    (lenient,) = load_reward_funcs(["accuracy"], {"accuracy": {"require_box": False}})
    assert lenient(prompts=None, completions=["The answer is 4."], answer=["4"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"Thus $\boxed{4}$.", 1.0),
        (r"<think>\boxed{3}</think> \[\boxed{4}\]", 1.0),
        (r"\boxed{4} because of this", 0.0),
        (r"\boxed{3} \boxed{4}", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{4", 0.0),
        ("4", 0.0),
        (r"<think>\boxed{4}", 0.0),
    ],
)
def test_format_wants_one_box_at_the_end(text, score):
    (form,) = load_reward_funcs(["format"])
    assert form(prompts=None, completions=[text]) == [score]


def test_length_falls_linearly_to_minus_one():
    (length,) = load_reward_funcs(["length"], {"length": {"max_length": 100, "buffer": 20}})
    ids = [[0] * n for n in (1, 80, 90, 100, 150)]
    assert length(prompts=None, completions=[""] * 5, completion_ids=ids) == [0.0, 0.0, -0.5, -1.0, -1.0]
    with pytest.raises(ValueError, match="buffer=200"):
        load_reward_funcs(["length"], {"length": {"max_length": 100, "buffer": 200}})
    with pytest.raises(ValueError, match="max_length"):
        load_reward_funcs(["length"])


def test_own_functions_load_by_module_and_name():
    own, accuracy = load_reward_funcs([SHOUT, "accuracy"])
    assert own(prompts=None, completions=["A", "b"], completion_ids=None, answer=["A", "b"]) == [1.0, 0.0]
    assert [own.__name__, accuracy.__name__] == ["shout", "accuracy"]
    for name, message in (
        ("nothing", "not known"),
        ("no_such_module:f", "cannot be loaded"),
        ("math:no_such", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=message):
            load_reward_funcs([name])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["accuracy"], {"accuracy": {"colour": "red"}}, "takes no option 'colour': use one of require_box, timeout"),
        (["accuracy"], {"format": {}}, "'format', which is not in reward_funcs"),
        (["accuracy"], {"accuracy": 3}, "a mapping of arguments is expected"),
        (["accuracy", "accuracy"], None, "'accuracy' twice"),
        (["accuracy"], {"accuracy": {"timeout": "3"}}, "timeout='3': a positive number"),
        (["accuracy"], {"accuracy": {"require_box": "no"}}, "require_box='no': true or false"),
        (["length"], {"length": {"max_length": "40", "buffer": 5}}, "max_length='40': a whole number"),
        (["length"], {"length": {"max_length": 40, "buffer": float("nan")}}, "buffer=nan: a whole number"),
        (["accuracy"], "{accuracy", "reward_options='{accuracy' is not JSON"),
        (["accuracy"], [1], "reward_options=[1]: a mapping"),
        ([3], None, "reward_funcs has 3: a name is expected"),
        ([], None, "reward_funcs is empty"),
        (["refinement/length"], None, "reward_options: {refinement/length: {max_length: ..., buffer: ...}}"),
        ([SHOUT], {SHOUT: {"a": 1}}, "takes no options"),
    ],
)
def test_wrong_options_say_what_to_write(names, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_reward_funcs(names, options)


def test_a_reward_of_one_stage_has_no_say_in_the_other():
    names = ["accuracy", "candidate/format", "refinement/length"]
    functions = load_reward_funcs(names, json.dumps({"refinement/length": {"max_length": 4, "buffer": 2}}))
    assert [function.__name__ for function in functions] == names
    columns = {
        "prompts": ["p"] * 4,
        "completions": [r"\boxed{1}", "1", r"\boxed{1}", r"\boxed{2}"],
        "completion_ids": [[0] * 4, [0], [0] * 3, [0] * 9],
        "answer": ["1"] * 4,
        "stage": ["candidate", "candidate", "refinement", "refinement"],
        "trainer_state": object(),
    }
    assert [function(**columns) for function in functions] == [
        [1.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, None, None],
        [None, None, -0.5, -1.0],
    ]
    with pytest.raises(ValueError, match="candidate/format needs a column `stage`"):
        functions[1](prompts=["p"], completions=["1"])


def test_each_reward_takes_what_trl_passes():
    for function in load_reward_funcs(["accuracy", "format", "length"], {"length": {"max_length": 10, "buffer": 5}}):
        parameters = inspect.signature(function).parameters
        assert {"prompts", "completions", "completion_ids"} <= set(parameters)
        assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_the_command_says_why(monkeypatch, capsys):
    def output(gold: str, completion: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rewards", "--gold", gold, "--completion", completion])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("rewards", run_name="__main__")
        assert end.value.code == 0
        return capsys.readouterr().out

    right = output(r"\frac12", r"so \boxed{0.5}")
    assert "right (1.0)" in right and "extracted: 0.5" in right
    wrong = output("x+1", r"so \boxed{x+2}")
    assert "wrong (0.0)" in wrong and "the formula x+2" in wrong


def test_importing_loads_neither_sympy_nor_torch():
    code = (
        "import sys, rewards; print(sorted({'sympy', 'torch', 'math_verify', 'numpy', 'mpmath'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_each_reward_works_in_a_stock_grpo_trainer(tiny_model, tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [
        {"prompt": [{"role": "user", "content": text}], "answer": answer}
        for text, answer in (("2+3", "5"), ("4+4", r"\frac{1}{"))
    ]
    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        tiny_model,
        reward_funcs=load_reward_funcs(
            ["accuracy", "format", "length"], {"length": {"max_length": 8, "buffer": 8}, "accuracy": {"timeout": 2.0}}
        ),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
    )
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    assert log["rewards/accuracy/mean"] == 0.0  # a random model; the unreadable gold's rows are left out
    assert -1.0 <= log["rewards/length/mean"] < 0.0
    assert log["rewards/format/mean"] == 0.0
    assert log["verifier/unreadable_golds"] == 0.5
    assert log["verifier/missing_answers"] == 1.0
