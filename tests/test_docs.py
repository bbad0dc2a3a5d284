"""README and docs tell the truth: their commands exist and are run by a test, their pages build, their keys are known.

Of each command RUN_BY says which test runs it. What needs GPUs, sets something up or is itself the tests stands apart.
"""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from docs.hooks import keys
from gsr_rl import cli, command_line
from gsr_rl.report import watch
from tests.support.doc_commands import blocks, commands, pages
from tests.support.hub_stand_in import HubStandIn
from tests.support.paths import ROOT

COMMANDS = commands()
CHAIN = "tests/test_docs.py::test_the_commands_of_the_tiny_world_run"
DRY = "tests/test_docs.py::test_the_dry_runs_run"
SFT = (
    "accelerate launch --config_file accelerate_configs/ddp_cpu.yaml recipes/sft_gsr.py --config recipes/tiny/sft.yaml"
)
GRPO = (
    "accelerate launch --config_file accelerate_configs/zero2_cpu.yaml recipes/grpo_gsr.py --config "
    "recipes/tiny/grpo.yaml"
)
DISTILL = "python recipes/distill_gsr.py --config recipes/tiny/distill.yaml"
EVAL = "python recipes/eval_gsr.py --config recipes/tiny/eval.yaml --model runs/tiny/grpo"
FEW_STEPS = "--max_steps 1 --max_problems 40 --num_generations 4 --per_device_train_batch_size 16"
RECIPES = {  # command: what makes it small
    DISTILL: "--max_problems 60 --refinements_per_set 2",
    SFT: "--max_steps 2 --per_device_train_batch_size 4",
    GRPO: FEW_STEPS,
    EVAL: "--max_problems 20",
    f"{EVAL} --update_model_card true": "--max_problems 20",
    "gsr-watch runs/tiny/grpo": "--once",
    "python -m gsr_rl.hub results runs/tiny/eval --model runs/tiny/grpo": "",
}
TO_THE_HUB = {
    f"{GRPO} --push_to_hub true --hub_model_id USER/NAME --hub_private_repo true": f"{FEW_STEPS} --log_console all",
    f"{DISTILL} --push_to_hub true --hub_dataset_id USER/NAME": "--max_problems 60 --refinements_per_set 2",
    "python -m gsr_rl.hub results runs/tiny/eval --repo_id USER/NAME": "",
    "python -m gsr_rl.hub push runs/tiny/grpo": "",
}
DRY_RUNS = (
    "python recipes/grpo_gsr.py --config recipes/tiny/grpo.yaml --model_name_or_path recipes/tiny/models/base "
    "--dry_run true",
    "python recipes/grpo_gsr.py --config recipes/Qwen2.5-7B-Instruct/grpo.yaml --model_name_or_path "
    "Qwen/Qwen2.5-7B-Instruct --dry_run true",
    "python recipes/distill_gsr.py --config recipes/Qwen2.5-7B-Instruct/distill.yaml --dry_run true",
)
SMOLLM2 = (
    "accelerate launch --config_file accelerate_configs/zero3_cpu.yaml recipes/grpo_gsr.py --config "
    "recipes/SmolLM2-135M-Instruct/grpo.yaml --dataset_name gsm8k_train.jsonl --max_steps 3"
)
SOLVE, SERVE = (
    "tests/serving/test_solve.py",
    "tests/serving/test_serve_vllm.py::test_plain_answers_streams_and_errors_by_the_official_client",
)
PACKAGED = (
    "accelerate launch --config_file '$(gsr-config zero2_cpu.yaml)' -m gsr_rl.recipes.grpo_gsr --config tiny/grpo.yaml"
)
WHEEL = "tests/test_requirements.py::test_the_four_programs_of_a_wheel_run_from_any_folder"
BENCHMARK = "tests/test_benchmark_scripts.py::test_a_benchmark_ends_with_positive_figures"
GPU_CHECK = "tests/test_gpu_check.py::test_a_part_runs_to_its_end_in_small"
PARTS = "tests/distillation/test_distill.py::test_parts_may_share_a_folder_and_the_last_command_does_what_is_left"
RUN_BY = {
    **dict.fromkeys([*RECIPES, *TO_THE_HUB], CHAIN),
    **dict.fromkeys(DRY_RUNS, DRY),
    **dict.fromkeys(["python benchmarks/distill.py", "python benchmarks/cluster_plan.py"], BENCHMARK),
    **{f"python benchmarks/gpu_check.py {part} --small": GPU_CHECK for part in "ab"},
    "gsr-distill --config tiny/distill.yaml": WHEEL,
    "gsr-sft --config tiny/sft.yaml": WHEEL,
    PACKAGED: WHEEL,
    "gsr-eval --config tiny/eval.yaml --model runs/tiny/grpo": WHEEL,
    SMOLLM2: "tests/test_docs.py::test_smollm2_trains_under_zero_3",
    "gsr-solve --model runs/tiny/grpo kkia=J": f"{SOLVE}::test_a_pipe_gets_plain_text",
    "gsr-solve --model recipes/tiny/models/teacher --prompt_template tiny kkia=J":
        "tests/recipes/test_demo.py::test_the_command_that_the_demo_ends_with_gives_a_refined_boxed_right_answer",
    "gsr-solve --model runs/tiny/grpo --file problems.jsonl --json '>' solutions.jsonl":
        f"{SOLVE}::test_json_is_one_object_a_problem_and_nothing_else",
    "gsr-solve --model runs/tiny/grpo --num_candidates 16 --stop_when_agreed 0.8 --file problems.jsonl --json":
        f"{SOLVE}::test_sixteen_candidates_are_right_more_often_than_four",
    "python -m vllm.entrypoints.openai.api_server --model runs/tiny/grpo --port 8000": SERVE,
    "VLLM_CPU_KVCACHE_SPACE=2 python -m vllm.entrypoints.openai.api_server --model runs/tiny/grpo --port 8000 "
    "--enforce-eager": SERVE,
    "gsr-serve --model runs/tiny/grpo --backend http://127.0.0.1:8000/v1 --port 8080": SERVE,
    "python recipes/eval_gsr.py --model MODEL --output_dir OUT --benchmarks aime24 amc23 --dry_run true":
        "tests/evaluation/test_config.py::test_a_dry_run_counts_and_opens_no_engine",
    "python recipes/eval_gsr.py --config recipes/tiny/eval.yaml --model MODEL --output_dir OUT --num_generations 64 "
    "--methods selfref refine_and_vote tree --pool_sizes 8 16 64":
        "tests/evaluation/test_real_model.py::test_every_method_through_vllm_in_the_tiny_world",
    "gsr-watch results/smollm2/chain_sum_grpo.jsonl results/smollm2/gsm8k_grpo.jsonl --once --output_dir runs/curves":
        "tests/report/test_watch.py::test_logs_that_were_kept_are_overlaid_from_their_files",
    "make smollm2": "tests/engines/test_vllm_serve.py::test_distillation_of_gsm8k_rows_over_a_vllm_server",
    "make docs": "tests/test_docs.py::test_the_pages_build_without_a_warning_and_ask_nobody",
    "python recipes/distill_gsr.py --config C.yaml": PARTS,
    "python recipes/distill_gsr.py --config C.yaml --shard 1/2": PARTS,
    "python recipes/distill_gsr.py --config C.yaml --shard 2/2": PARTS,
    r"python -m rewards --gold '\frac12' --completion 'so it is \boxed{0.5}'":
        "tests/rewards/test_rewards_for_trl.py::test_the_command_says_why",
}  # fmt: skip
OWN_DATA = "tests/test_docs.py::test_the_example_of_your_own_data_runs"
RUN_BY |= {command: OWN_DATA for page, command in COMMANDS if page == "docs/own_data.md" and " runs/own" in command}
SET_UP = {"make install", "source .venv/bin/activate", "export HF_TOKEN=..."}
SET_UP |= {"python benchmarks/gpu_check.py --make_wheels wheels --python 3.12"}
ARE_THE_TESTS = {"make test", "make test-all"}
BY_HAND = {"make demo"}  # minutes on a quiet machine; results/README.md holds what came out
ALL_KEYS = [key for program in cli.PROGRAMS for key in cli.keys_of(program).values()]
ALL_KEYS += [key for owner in keys.COMMANDS.values() for key in command_line.fields_of(owner).values()]
NEEDS_GPUS = re.compile(
    r"zero[23](_offload)?\.yaml|TARGET=gpu|QwQ-32B|http://teacher-1|gpu-check|--wheels wheels|"
    r"Qwen2\.5-7B-Instruct/(distill|eval)\.yaml(?!.*dry_run)|-1\.5B-Instruct/"
)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command[:60]}" for page, command in COMMANDS])
def test_every_command_is_run_by_a_test_or_marked(page, command):
    if command in SET_UP | ARE_THE_TESTS | BY_HAND:
        return
    if NEEDS_GPUS.search(command):
        said = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(r"never run|no GPU has run|has run on a GPU yet|On GPUs|teacher-1", said, re.IGNORECASE), (
            f"{page} does not say that it needs GPUs"
        )
        return
    assert command in RUN_BY, f"{page}: no test runs `{command}`: add it to RUN_BY with its test"
    path, name = RUN_BY[command].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), RUN_BY[command]


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_what_a_command_names_exists(command):
    words = command.split()
    if words[0] == "make" and len(words) > 1:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        if re.match(r"(recipes|benchmarks|accelerate_configs|tests)/", word):
            assert (ROOT / word).exists(), word
    recipe = re.search(r"recipes/(distill|sft|grpo|eval)_gsr\.py", command)
    if recipe and "C.yaml" not in command:
        cli.read_values(recipe.group(1), words[words.index(recipe.group(0)) + 1 :])  # raises on an unknown key


def test_what_the_table_of_changes_names_is_there():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Where to change what")[1]
    rows = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("| ")]
    for change, test in rows[1:]:
        paths = re.findall(r"`([\w/.]+/[\w/.]*)`", change + test)
        assert paths and all((ROOT / path).exists() for path in paths), paths
        text = "".join((ROOT / path).read_text() for path in paths if path.endswith(".py") and "tests/" not in path)
        for name in re.findall(r"`([A-Za-z_]+)`", change):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b|^    def {name}\b", text, re.MULTILINE), name
    assert len(rows) > 20


def test_the_list_of_commands_is_no_longer_than_the_docs():
    shown = {command for _, command in COMMANDS}
    assert not (set(RUN_BY) | SET_UP | ARE_THE_TESTS | BY_HAND) - shown


def test_commands_are_found_in_both_kinds_of_blocks():
    text = "Text.\n\n    make demo\n\n```yaml\npython: 1\n```\n\n```bash\nmake test  # all\n```\n"
    assert [one.strip() for one in blocks(text)] == ["make test  # all", "make demo"]
    assert len(COMMANDS) > 30 and {"README.md", "docs/hub.md"} <= {page for page, _ in COMMANDS}


def test_the_page_of_keys_is_as_new_as_the_code():
    text = keys.PAGE.read_text(encoding="utf-8")
    assert text == keys.page(), "run `python docs/hooks/keys.py`"
    assert set(keys.GROUPS) == {key.owner for key in ALL_KEYS} - set(command_line.LIBRARIES)
    for key in ALL_KEYS:
        assert key.owner in command_line.LIBRARIES or f"| `{key.name}` |" in text, key.name


def test_every_key_that_a_page_names_in_a_table_is_a_key():
    """Names of one's keys in the first column of a table under `| key |`."""
    known, seen = {key.name for key in ALL_KEYS}, 0
    for page in pages():
        tables = re.findall(r"^\| key \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        for row in "".join(tables).splitlines():
            for name in re.findall(r"`([a-z_0-9]+)", row.split("|")[1]):
                assert name in known, f"{page}: {name}"
                seen += 1
    assert seen > 200


def links(text: str) -> list[tuple[str, str]]:
    """`(path, anchor)` of every relative link of a page, those in code left out."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", text)


def anchors(text: str) -> set[str]:
    """What code-hosting pages and the site call a page's headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*pages(), *sorted(ROOT.glob("results/**/*.md"))], ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    """As on a code-hosting page: without what `make docs` makes."""
    for target, anchor in links(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and ROOT in [path, *path.parents], f"{page}: {target}"
        assert path.relative_to(ROOT).parts[:1] not in [("runs",), ("site",)], f"{page}: {target} is in no clone"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target}#{anchor}"


def test_the_pages_build_without_a_warning_and_ask_nobody(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs installs it")
    site = tmp_path / "site"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    html = {path.relative_to(site).as_posix(): unescape(path.read_text()) for path in site.rglob("*.html")}
    for name, text in html.items():
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="?(https?:[^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]*rel="?stylesheet"?[^>]*href="?(https?:[^"\s>]+)', text)
        assert not loaded, f"{name} loads {loaded}"
    missing = [key.name for key in ALL_KEYS if key.owner not in command_line.LIBRARIES
               and f"<code>{key.name}</code>" not in html["keys.html"]]  # fmt: skip
    assert not missing, f"keys.html lacks {missing}"
    assert "seed0.json" in html["results.html"] and (site / "results/demo/seed0.json").is_file()


def _run(command: str, folder: Path, environment: dict[str, str] | None = None, link: bool = True) -> str:
    """A command of the docs in a folder that has the repository's programs, with this environment's Python."""
    for name in ("recipes", "accelerate_configs", "gsr_rl", "rewards", "benchmarks") if link else ():
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (environment or {})
    command = command.replace("accelerate launch", "accelerate launch --main_process_port 0")
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | more, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_the_commands_of_the_tiny_world_run(tmp_path):
    """In the order of the quick start and of the Hub's page, with fewer problems and steps."""
    for command, more in RECIPES.items():
        _run(f"{command} {more}", tmp_path)
    assert (tmp_path / "runs/tiny/eval/eval.json").is_file()
    assert "### tiny/mix, K = 4" in (tmp_path / "runs/tiny/grpo/README.md").read_text()
    runs = [watch.read_run(tmp_path / "runs/tiny" / name) for name in ("sft", "grpo")]
    drawn = [panel.title for panel, _ in watch.drawn_panels(runs)]
    not_asked_for = {"held-out problems right, %", "age of the sampling weights, steps"}
    assert drawn == [panel.title for panel in watch.PANELS if panel.title not in not_asked_for]
    (tmp_path / "home").mkdir()
    with HubStandIn("hf_" + "TokenOfTheDocs") as hub:
        for command, more in TO_THE_HUB.items():
            named = f"{command.replace('USER/NAME', 'me/name')} {more}"
            text = _run(named, tmp_path, hub.environment(tmp_path / "home"))
            assert "'candidate/accuracy': " in text or "--log_console all" not in more
        assert "evaluations/tiny-mix-k4.json" in hub.files("me/name")
        assert any(name.endswith(".parquet") for name in hub.files("me/name", "dataset"))


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_the_example_of_your_own_data_runs(tmp_path):
    page = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    train, evaluate = [command for command, test in RUN_BY.items() if test == OWN_DATA]
    assert "1 rows by the filter on level" in _run(f"{train} --dry_run true", tmp_path)
    _run(train, tmp_path)
    _run(evaluate, tmp_path)
    assert [step for step, _ in watch.read_run(tmp_path / "runs/own").series["loss"]] == [1, 2]
    assert json.loads((tmp_path / "runs/own/gsr_config.json").read_text())["prompt_template"] == "my_prompts:wording"
    assert (tmp_path / "runs/own-eval/report.html").is_file()


@pytest.mark.slow
def test_the_dry_runs_run(tmp_path):
    for command in DRY_RUNS:
        assert "num_candidates: 4" in _run(command, tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_dry_runs_of_the_chain_for_one_gpu_need_no_override_and_nothing_that_ran(tmp_path):
    """In a folder without runs/: what one program leaves for the next is not there yet."""
    chain = [command for page, command in COMMANDS if page == "docs/hardware.md" and "1.5B-Instruct/" in command]
    texts = [_run(f"{command} --dry_run true", tmp_path) for command in chain]
    assert len(chain) == 5 and all(re.fullmatch(r"python \S+ --config \S+", command) for command in chain)
    assert "sft_rows.jsonl is not there yet: distill_gsr.py writes it" in texts[1]
    assert re.search(r"GPU memory: peak +\S+ of 24 GiB .*: fits\n", texts[2])
    assert re.search(r"GPU memory: peak on other GPUs +\S+ of 48 GiB: fits; \S+ of 80 GiB: fits\n", texts[2])
    assert all("gsm8k  " in text and "1319 from openai/gsm8k" in text for text in texts[3:])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_readmes_commands_for_a_model_and_problems_of_ones_own_pass_as_dry_runs(tmp_path):
    chain = [command for page, command in COMMANDS if page == "README.md" and "1.5B-Instruct/" in command]
    assert len(chain) == 5
    for name, first in (("train", 0), ("test", 100)):
        rows = ({"problem": f"What is {i} + 1?", "answer": f"{i + 1}"} for i in range(first, first + 40))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [_run(f"{command.replace('MODEL', 'ORG/NAME')} --dry_run true", tmp_path) for command in chain]
    assert "sets for openai/gsm8k is left out" in texts[0] and "sets for openai/gsm8k is left out" in texts[2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_a_lora_chain_ends_in_a_model_that_is_evaluated_solves_and_is_pushed(tmp_path):
    """The chain for one GPU in the tiny world, from a working folder that is no clone."""
    lora = "--use_peft true --lora_r 4 --lora_target_modules all-linear --merge_adapter true --max_steps 2"
    few = "--per_device_train_batch_size 16"
    recipes = f"python {ROOT}/recipes"
    for command in (
        f"{recipes}/distill_gsr.py --config tiny/distill.yaml --max_problems 40 --refinements_per_set 2",
        f"{recipes}/sft_gsr.py --config tiny/sft.yaml {lora} {few}",
        f"{recipes}/grpo_gsr.py --config tiny/grpo.yaml {lora} --max_problems 40 --num_generations 4 {few}",
        f"{recipes}/eval_gsr.py --config tiny/eval.yaml --output_dir runs/tiny/plain --max_problems 10",
        f"{recipes}/eval_gsr.py --config tiny/eval.yaml --model runs/tiny/grpo --compare_with runs/tiny/plain "
        "--max_problems 10 --update_model_card true",
    ):
        _run(command, tmp_path, link=False)
    assert (tmp_path / "runs/tiny/eval/compare.md").is_file()
    run = tmp_path / "runs/tiny/grpo"
    card = (run / "README.md").read_text()
    assert "Trained by joint GRPO" in card and "LoRA of rank 4" in card and "### tiny/mix, K = 4" in card
    assert not (run / "adapter_config.json").exists() and (run / "adapter/adapter_model.safetensors").is_file()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('Solver("grpo"', 'Solver("tiny/grpo"')
    (tmp_path / "use.py").write_text(snippet)
    (tmp_path / "runs/elsewhere").mkdir()
    _run(f"python {tmp_path}/use.py", tmp_path / "runs", link=False)
    (tmp_path / "home").mkdir()
    with HubStandIn("hf_" + "TokenOfTheDocs") as hub:
        push = f"python -m gsr_rl.hub push {run} --repo_id me/name"
        _run(push, tmp_path / "runs/elsewhere", hub.environment(tmp_path / "home"), link=False)
        assert "model.safetensors" in hub.files("me/name") and "adapter_config.json" not in hub.files("me/name")


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_smollm2_trains_under_zero_3(tmp_path):
    """One step of the quick start's command, with short completions."""
    from tests.support.benchmark_rows import path_of

    rows = path_of("gsm8k_train")
    model = ROOT / "runs" / "SmolLM2-135M-Instruct"
    if not (model / "config.json").is_file():
        pytest.skip("make smollm2 has not been run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / model.name).symlink_to(model)
    (tmp_path / "gsm8k_train.jsonl").symlink_to(rows)
    less = "--max_steps 1 --max_problems 20 --max_completion_length 32 --max_refinement_length 32"
    _run(f"{SMOLLM2.replace(' --max_steps 3', '')} {less} --max_refinement_prompt_length 512", tmp_path)
    assert (tmp_path / "runs/SmolLM2-135M-Instruct-grpo/model.safetensors").is_file()
