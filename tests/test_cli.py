"""Bad input stops before anything heavy is imported, and names the field and the mend."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gsr_rl import cli

ROOT = Path(__file__).resolve().parent.parent
GRPO = {"dataset_name": "tiny/mix", "per_device_train_batch_size": 16, "num_generations": 8}


def findings(program: str = "grpo", **values) -> str:
    with pytest.raises(ValueError) as caught:
        cli.check_values(program, GRPO | values)
    return str(caught.value)


def test_a_sound_configuration_passes():
    cli.check_values("grpo", GRPO)


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ValueError, match="unknown key num_generation: did you mean num_generations"):
        cli.read_values("grpo", ["--num_generation", "8"])


def test_candidate_sets_must_divide_the_generations():
    message = findings(num_candidate_sets=3)
    assert "num_generations=8 is not divisible by num_candidate_sets=3" in message
    assert "set num_candidate_sets to one of [1, 2, 4]" in message


def test_more_candidates_than_generations_are_refused():
    message = findings(num_candidates=9)
    assert "num_candidates=9 is more than num_generations=8" in message and "at least 9" in message


def test_a_window_holds_whole_blocks():
    message = findings(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert "12 rows a rank and optimizer step" in message and "set per_device_train_batch_size to 8" in message


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


def test_the_refinement_budget_fits_the_engines_window():
    message = findings(
        use_vllm=True, vllm_max_model_length=1024, max_refinement_prompt_length=1000, max_completion_length=256
    )
    assert "1256" in message and "set max_refinement_prompt_length to at most 768" in message


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


def test_a_row_without_an_answer_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": ""}\n')
    message = findings(dataset_name=str(path))
    assert "rows.jsonl, line 2: no answer" in message and "--answer_column" in message


def test_a_number_that_is_no_number_is_named():
    assert "num_generations='many': int | None is expected" in findings(num_generations="many")


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


def test_null_on_the_command_line_unsets_what_the_file_sets(tmp_path):
    words = ["--max_tokens_per_micro_batch", "null", "--top_entropy_quantile", "0.5", "--output_dir", str(tmp_path)]
    _, args, _ = cli.parse("grpo", ["--config", str(ROOT / "recipes/tiny/grpo.yaml"), *words])
    assert args.max_tokens_per_micro_batch is None and args.top_entropy_quantile == 0.5


def test_an_unquoted_no_of_yaml_is_no(tmp_path):
    path = tmp_path / "c.yaml"
    strategies = "eval_strategy: no\nsave_strategy: no\nlogging_strategy: no\n"
    path.write_text((ROOT / "recipes/tiny/grpo.yaml").read_text().replace('save_strategy: "no"', strategies))
    _, args, _ = cli.parse("grpo", ["--config", str(path), "--output_dir", str(tmp_path)])
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


def test_a_row_that_only_the_loader_sees_ends_with_one_message_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("problem,answer\n1+1,2\n1+2,\n")
    command = [
        sys.executable,
        "recipes/grpo_gsr.py",
        "--config",
        "recipes/tiny/grpo.yaml",
        "--dataset_name",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "answer" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
