"""Bad input stops before anything heavy is imported, and names the field and the fix."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gsr_rl import cli
from gsr_rl.command_line import of_type
from tests.support.findings import GRPO, TINY, findings
from tests.support.fixed_engine import run_recipe
from tests.support.paths import ROOT


def test_a_sound_configuration_passes():
    cli.check_values("grpo", GRPO)


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ValueError) as caught:
        cli.read_values("grpo", ["--num_generation", "8", "--lr", "1", "--K", "4", "--zzz", "1"])
    *unknown, _, last = str(caught.value).splitlines()
    assert unknown == [
        "unknown key num_generation: did you mean num_generations?",
        "unknown key lr: did you mean learning_rate?",
        "unknown key K: did you mean num_candidates?",
    ]
    assert "--help all" in last


@pytest.mark.parametrize(
    "text, message",
    [(b"a: [1", "not a YAML file"), (b"\xff\xfe", "not a YAML file"), (b"- 1", "a YAML mapping")],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"c.yaml: {message}"):
        cli.read_values("grpo", ["--config", str(path)])
    with pytest.raises(ValueError, match="--config: one YAML file is expected"):
        cli.read_values("grpo", ["--config", "--seed", "1"])


def test_candidate_sets_must_divide_the_generations():
    message = findings(num_candidate_sets=3)
    assert "num_generations=8 is not divisible by num_candidate_sets=3" in message
    assert "set num_candidate_sets to one of [1, 2, 4]" in message


def test_more_candidates_than_generations_are_refused():
    message = findings(num_candidates=9)
    assert "num_candidates=9 is more than num_generations=8" in message and "at least 9" in message


def test_a_window_holds_whole_blocks():
    message = findings(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert "12 rows per rank and optimizer step" in message and "set per_device_train_batch_size to 8" in message


def test_a_stage_that_is_off_needs_no_rows():
    cli.check_values("grpo", GRPO | {"per_device_train_batch_size": 8, "candidate_weight": 0})


def test_steps_per_generation_keep_windows_apart():
    message = findings(gradient_accumulation_steps=2, steps_per_generation=3)
    assert "set steps_per_generation to 4" in message


def test_a_servers_deadlines_are_below_that_of_the_waiting_ranks():
    server = {"use_vllm": True, "vllm_mode": "server"}
    cli.check_values("grpo", GRPO | server)
    message = findings(**server, server_request_timeout=1800)
    assert "server_request_timeout=1800 is not below ddp_timeout=1800" in message and "to 900, or raise" in message
    assert "vllm_server_timeout=600 is not below ddp_timeout=600" in findings(
        **server, server_request_timeout=60, vllm_server_timeout=600, ddp_timeout=600
    )


@pytest.mark.parametrize(
    "values, message",
    [
        ({"vllm_mode": "colocate"}, "rollout_ahead=1 with vllm_mode=colocate: set vllm_mode to server, or"),
        ({"use_vllm": False}, "rollout_ahead=1 with use_vllm=False: set use_vllm to true, or rollout_ahead to 0"),
        ({"streamed_rollout": False}, "rollout_ahead=1 with streamed_rollout=False: set streamed_rollout to true"),
        ({"vllm_importance_sampling_correction": False}, "set vllm_importance_sampling_correction to true"),
        ({"rollout_ahead": -1}, "rollout_ahead=-1"),
        ({"vllm_server_base_url": ["a:1"]}, "vllm_server_base_url='a:1' is no address: http://HOST:PORT is expected"),
        ({"vllm_server_base_url": ["http://a:1", "http://a:1"]}, "an address stands there twice"),
    ],
)
def test_sampling_ahead_needs_servers_streams_and_the_importance_ratio(values, message):
    sound = {"use_vllm": True, "vllm_mode": "server", "rollout_ahead": 1, "vllm_server_base_url": ["http://a:1"]}
    cli.check_values("grpo", GRPO | sound)
    assert message in findings(**(sound | values))


def test_the_refinement_budget_fits_the_engines_window():
    message = findings(
        use_vllm=True, vllm_max_model_length=1024, max_refinement_prompt_length=1000, max_completion_length=256
    )
    assert "1256" in message and "set max_refinement_prompt_length to at most 768" in message


@pytest.mark.parametrize(
    "program, name, more",
    [
        ("grpo", "vllm_max_model_length", {"use_vllm": True}),
        ("grpo", "vllm_max_model_length", {}),
        ("eval", "max_model_length", {}),
    ],
    ids=["grpo, vllm", "grpo, transformers", "eval"],
)
def test_lengths_fit_the_models_own_window_too(program, name, more):
    """The tiny base reads 512 tokens."""
    values = GRPO | more if program == "grpo" else {"benchmarks": ["tiny/mix"], "output_dir": "out"}
    values |= {"model_name_or_path" if program == "grpo" else "model": TINY, "max_completion_length": 40}
    values |= {"max_refinement_prompt_length": 200}

    def found(**more) -> str:
        with pytest.raises(ValueError) as caught:
            cli.check_values(program, values | more)
        return str(caught.value)

    cli.check_values(program, values | {name: 512})
    assert f"{name}=5000 is more than the 512 tokens that {TINY} can read" in found(**{name: 5000})
    message = found(max_refinement_prompt_length=3000)
    assert (
        f"more than the context length of {TINY}, 512 tokens: set max_refinement_prompt_length to at most 472"
        in message
    )
    assert "max_completion_length=600 leaves no room for a prompt" in found(max_completion_length=600)
    assert f"{name}=-1: at least 1 is needed" in found(**{name: -1})


def test_statistics_of_the_stages_are_not_mixed():
    assert "scale_rewards=batch" in findings(scale_rewards="batch")


@pytest.mark.parametrize("name", ["max_completion_length", "max_refinement_length", "max_refinement_prompt_length"])
def test_a_limit_of_no_token_is_refused(name):
    assert f"{name}=0: a number of tokens is expected, at least 1" in findings(**{name: 0})


@pytest.mark.parametrize("objective", ["pass@1", "pass@k"])
def test_the_best_of_no_candidate_is_refused(objective):
    message = findings(objective_k=0, candidate_objective=objective)
    assert message == "objective_k=0: at least 1 is needed, or leave it out for num_candidates=4"


def test_a_missing_file_is_named():
    assert "no/such.jsonl: there is no such file" in findings(dataset_name="no/such.jsonl")


def test_a_number_that_is_no_number_is_named():
    assert "num_generations='many': a whole number is expected" in findings(num_generations="many")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_generations": 8.5}, "num_generations=8.5: a whole number is expected"),
        ({"num_candidates": None}, "num_candidates=null: a whole number is expected"),
        ({"num_generations": None}, "num_generations=null: a whole number is expected"),
        ({"max_completion_length": 40.5}, "max_completion_length=40.5: a whole number is expected"),
        ({"temperature": None}, "temperature=null: a number is expected"),
        ({"learning_rate": "fast"}, "learning_rate='fast': a number is expected"),
        ({"dataset_name": 5}, "dataset_name=5: text is expected: put it in quotes"),
        ({"curriculum": "perhaps"}, "curriculum='perhaps': true or false is expected"),
        ({"reward_weights": -1}, "reward_weights=-1: a list of numbers is expected"),
        ({"reward_weights": ["1e-3"]}, "reward_weights=['1e-3']: a list of numbers is expected"),
        ({"reward_funcs": [3]}, "reward_funcs=[3]: a list of texts is expected"),
        ({"dtype": "bfloat17"}, "dtype='bfloat17': use auto, bfloat16, float16 or float32"),
        ({"dataset_kwargs": [1]}, "dataset_kwargs=[1]: a mapping such as {name: value} or text is expected"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_value_of_another_type_is_named_with_what_is_expected(values, message):
    assert findings(**values) == message


@pytest.mark.parametrize(
    "values",
    [{"learning_rate": "1e-6"}, {"save_strategy": False}, {"vllm_max_model_length": None}, {"curriculum": 1}],
    ids=lambda values: "-".join(values),
)
def test_values_that_the_parser_can_read_pass(values):
    cli.check_values("grpo", GRPO | values)


def test_words_of_the_command_line_are_of_the_keys_type():
    values = cli.read_values(
        "grpo", ["--dataset_name", "5", "--reward_weights", "-1", "--reward_funcs", "a", "3", "--seed", "3"]
    )
    assert values == {"dataset_name": "5", "reward_weights": [-1], "reward_funcs": ["a", "3"], "seed": 3}


@pytest.mark.parametrize(
    "name", ["per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations"]
)
@pytest.mark.parametrize("value", [0, -2])
def test_a_batch_of_nothing_is_refused(name, value):
    assert findings(**{name: value}) == f"{name}={value}: at least 1 is needed"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss_type": "nosuch"}, "loss_type='nosuch': use grpo, dr_grpo, dapo"),
        ({"scale_rewards": "nosuch"}, "scale_rewards='nosuch': use group or none"),
        ({"vllm_mode": "sideways"}, "vllm_mode='sideways': use colocate or server"),
        ({"temperature": 0.0}, "temperature=0.0: a policy is trained on samples"),
        ({"top_p": 7.0}, "top_p=7.0: a share above 0 and at most 1"),
        ({"beta": -3.0}, "beta=-3.0: at least 0 is needed"),
        ({"dataset_name": "tiny/nothing"}, "dataset_name=tiny/nothing: use tiny/chain, tiny/guess or tiny/mix"),
        ({"dataset_split": "nosuch"}, "dataset_split=nosuch: the tiny world has base, teacher, sft"),
        ({"dataset_name": "./data/nothere"}, "dataset_name=./data/nothere: there is no such file"),
        ({"model_name_or_path": "runs/nothere"}, "model_name_or_path=runs/nothere: there is no such folder, run the"),
        ({"model_name_or_path": "runs/SmolLM2-135M-Instruct"}, "there is no such folder, run `make smollm2`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_value_out_of_its_range_is_refused_with_the_fix(values, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no model has been made
    assert message in findings(**values)


def test_a_dry_run_may_name_the_model_that_an_earlier_program_will_make(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli.check_values("grpo", GRPO | {"model_name_or_path": "runs/later", "dry_run": True})


def test_every_finding_is_reported_at_once():
    message = findings(num_candidates=9, scale_rewards="batch")
    assert "num_candidates=9" in message and "scale_rewards=batch" in message


@pytest.mark.parametrize("program", ["distill", "sft", "grpo", "eval"])
def test_the_budgets_of_the_7b_recipes_fit_the_models_window(program):
    folder = ROOT / "recipes" / "Qwen2.5-7B-Instruct"
    c = yaml.safe_load((folder / f"{program}.yaml").read_text())
    if program == "sft":  # no row of distill.yaml is cut
        rows = yaml.safe_load((folder / "distill.yaml").read_text())
        assert c["dataset_name"] == f"{rows['output_dir']}/sft_rows.jsonl"
        assert c["max_refinement_prompt_length"] == rows["max_refinement_prompt_length"]
        assert 8 * c["per_device_train_batch_size"] * c["gradient_accumulation_steps"] == 128
        c = rows | {"max_model_length": c["max_length"]}
    window = c.get("max_model_length") or c["vllm_max_model_length"]
    assert c["max_refinement_prompt_length"] + c["max_refinement_length"] <= window <= 32768
    assert c["max_completion_length"] < window


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("num_generations: 4\nlearning_rate: 1.0e-5\n")
    values = cli.read_values("grpo", ["--config", str(path), "--num_generations", "8", "--learning_rate=2e-6"])
    assert values == {"num_generations": 8, "learning_rate": 2e-6}


def test_an_evaluation_reads_the_test_split_where_nothing_is_said_and_other_programs_train():
    splits = {program: cli.keys_of(program)["dataset_split"].default for program in cli.PROGRAMS}
    assert splits == {"distill": "train", "sft": "train", "grpo": "train", "eval": "test"}
    words = "--output_dir out --max_refinement_prompt_length 200 --max_completion_length 40 --dataset_name tiny/mix"
    problems, _ = cli.parse("eval", [*words.split(), "--model", TINY])
    assert problems.dataset_split == "test"
    with pytest.raises(ValueError, match="dataset_split=test: HuggingFaceH4/aime_2024 has its problems in train, set"):
        cli.check_values("eval", {"dataset_name": "HuggingFaceH4/aime_2024", "output_dir": "out", "model": TINY})


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ("tiny/mix", {"dataset_name": "tiny/chain"}, "dataset_name='tiny/chain' is ignored when benchmarks is set"),
        ("tiny/mix", {"dataset_split": "validation"}, "is said with the name, such as tiny/mix@validation"),
        (
            "aime24",
            {"benchmark_name": "mine"},
            "benchmark_name='mine' is ignored when benchmarks is set: each goes by its",
        ),
        ("aime24", {"decontaminate_against": ["aime25"]}, "decontaminate_against=['aime25'] is ignored when"),
        ("aime24 someone/set", {"row_filters": {"level": 5}}, "row_filters={'level': 5} is ignored by aime24: leave"),
        ("aime24 tiny/mix", {"problem_column": "text"}, "problem_column='text' is ignored by aime24, tiny/mix: leave"),
        ("aime24 knights_knaves/4", {"dataset_kwargs": {"a": 1}}, "is ignored by aime24, knights_knaves/4: leave"),
        ("tiny/mix", {"dataset_config": "main"}, "dataset_config='main' is ignored by tiny/mix"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_key_that_has_no_say_in_benchmarks_is_refused(names, values, message):
    sound = {"benchmarks": names.split(), "output_dir": "out", "model": "someone/model", "dataset_split": "test"}
    cli.check_values("eval", sound)
    with pytest.raises(ValueError) as caught:
        cli.check_values("eval", sound | values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"dataset_name": "AMC23.jsonl"},
            "dataset_name=AMC23.jsonl would be reported as AMC23: that is a benchmark's",
        ),
        (
            {"dataset_name": "tiny/mix", "benchmark_name": "aime24"},
            "benchmark_name=aime24: that is a benchmark's name",
        ),
    ],
)
def test_what_nobody_checks_is_not_reported_as_a_benchmark(values, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("AMC23.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    sound = {"output_dir": "out", "model": "someone/model"}
    cli.check_values("eval", sound | values | {"benchmark_name": "mine"})
    with pytest.raises(ValueError) as caught:
        cli.check_values("eval", sound | values)
    assert message in str(caught.value) and "or give another benchmark_name" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ("someone/set", {"row_filters": {"level": 5}, "dataset_config": "main", "answer_column": "gold"}),
        ("aime24 tiny/mix", {"dataset_kwargs": {"steps": 4}, "problem_seed": 3}),
        ("aime24", {"row_filters": {}, "max_problems": 5, "split_by": "level"}),
    ],
)
def test_a_key_that_has_a_say_in_benchmarks_is_taken(names, values):
    cli.check_values("eval", {"benchmarks": names.split(), "output_dir": "out", "model": "someone/model"} | values)


def test_null_on_the_command_line_unsets_what_the_file_sets(tmp_path):
    words = [
        "--model_name_or_path",
        TINY,
        "--max_tokens_per_micro_batch",
        "null",
        "--top_entropy_quantile",
        "0.5",
        "--output_dir",
        str(tmp_path),
        *("--report_to", "null", "--reward_weights", "null", "--lora_target_modules", "null"),
    ]
    _, args, model_args = cli.parse("grpo", ["--config", str(ROOT / "recipes/tiny/grpo.yaml"), *words])
    assert args.reward_weights is model_args.lora_target_modules is None
    assert args.report_to == []
    assert args.max_tokens_per_micro_batch is None and args.top_entropy_quantile == 0.5


def test_environment_variables_of_the_file_are_set(tmp_path, monkeypatch):
    monkeypatch.setenv("GSR_TEST", "before")
    path = tmp_path / "c.yaml"
    path.write_text("env: {GSR_TEST: 5}\nnum_candidates: 4\n")
    assert cli.read_values("grpo", ["--config", str(path)]) == {"num_candidates": 4}
    assert os.environ["GSR_TEST"] == "5"


def test_one_word_for_a_list_is_a_list_of_it():
    values = cli.read_values(
        "sft", ["--stages", "candidate", "--report_to", "none", "--lora_target_modules", "q_proj"]
    )
    assert of_type(values, cli.keys_of("sft")) == {
        "stages": ["candidate"], "report_to": "none", "lora_target_modules": ["q_proj"]
    }  # fmt: skip


def test_an_unquoted_no_of_yaml_is_no(tmp_path):
    path = tmp_path / "c.yaml"
    strategies = "eval_strategy: no\nsave_strategy: no\nlogging_strategy: no\n"
    path.write_text((ROOT / "recipes/tiny/grpo.yaml").read_text().replace('save_strategy: "no"', strategies))
    words = ["--config", str(path), "--output_dir", str(tmp_path), "--model_name_or_path", TINY]
    _, args, _ = cli.parse("grpo", words)
    assert args.eval_strategy == args.save_strategy == args.logging_strategy == "no"
    cli.check_values("grpo", GRPO | cli.read_values("grpo", ["--eval_strategy", "no"]))


@pytest.mark.parametrize("program", sorted(cli.PROGRAMS))
def test_help_imports_nothing_heavy(program):
    code = (
        f"import runpy, sys; sys.argv = ['{program}_gsr.py', '--help']\n"
        "try: runpy.run_path(f'recipes/" + program + "_gsr.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--num_candidates" in done.stdout or program == "sft"


def test_bad_input_exits_with_2_and_one_message():
    command = [sys.executable, "recipes/grpo_gsr.py", "--dataset_name", "tiny/mix", "--num_candidates", "9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "num_candidates=9 is more than num_generations=8" in done.stderr and "Traceback" not in done.stderr


def test_a_row_that_only_the_loader_sees_ends_with_one_message_too(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    path.write_text('[{"problem": "1+1", "answer": "2"}, {"problem": "1+2", "answer": ""}]')
    keys = {"config": "recipes/tiny/grpo.yaml", "model_name_or_path": TINY, "dataset_name": path}
    with pytest.raises(SystemExit) as end:
        run_recipe(monkeypatch, "grpo", **keys)
    errors = capsys.readouterr().err
    assert end.value.code == 2, errors[-2000:]
    assert "answer" in errors.splitlines()[-1] and "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "left", "said"),
    [
        ([], {"row_filters", "expected", "dataset_split"}, ""),
        (["--dataset_name", "nvidia/OpenMathReasoning"], {"row_filters", "expected", "dataset_split"}, ""),
        (["--dataset_name", "openai/gsm8k"], set(), "dataset_split, row_filters, expected"),
        (["--dataset_name", "mine.jsonl", "--row_filters", "{}"], {"row_filters"}, "dataset_split, expected"),
    ],
)
def test_what_a_file_says_of_its_data_set_does_not_hold_for_another(words, left, said, capsys):
    path = "recipes/Qwen2.5-7B-Instruct/distill.yaml"
    values = cli.read_values("distill", [*words, "--config", path])
    assert values.keys() & {"row_filters", "expected", "dataset_split"} == left
    stderr = capsys.readouterr().err
    assert stderr == (
        f"dataset_name={words[1]}: what {path} sets for nvidia/OpenMathReasoning is left out: {said}\n" if said else ""
    )


def test_a_limit_that_a_file_sets_for_its_data_set_does_not_cut_another_short(capsys):
    words = ["--config", "recipes/Qwen2.5-1.5B-Instruct/distill.yaml", "--dataset_name", "mine.jsonl"]
    assert "max_problems" not in cli.read_values("distill", words)
    assert "max_problems" in capsys.readouterr().err
    assert cli.read_values("distill", [*words, "--max_problems", "7"])["max_problems"] == 7


def test_keys_beside_a_set_that_is_not_the_hubs_hold_for_another_too(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset_name: a.jsonl\nanswer_column: final\n")
    values = cli.read_values("grpo", ["--config", str(path), "--dataset_name", "b.jsonl"])
    assert values == {"dataset_name": "b.jsonl", "answer_column": "final"}


def test_a_merged_adapter_needs_one():
    assert "merge_adapter=true needs an adapter: set use_peft to true" in findings(merge_adapter=True)
    assert "merge_adapter" not in findings(merge_adapter=True, use_peft=True, num_candidate_sets=3)
