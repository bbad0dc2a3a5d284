"""What is installed: imports are in setup.cfg, pins fit it, nothing is compiled that nobody asked for; the package."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gsr_rl import cli
from gsr_rl.keys import shipped
from tests.support.paths import ROOT

# What the package of SmolLM2's weights asks for. Only its file is read, so none of it is installed.
LEFT_OUT = {"llama-cpp-python", "llm", "sqlite-utils", "sqlite-fts4", "condense-json", "click-default-group"}
LEFT_OUT |= {"python-ulid", "puremagic", "diskcache", "pip"}


FROM_SOURCE = {"cellpylib", "deepspeed", "pycosat", "zss"}  # have no wheel: pycosat, of reasoning-gym, is C
PYPI_NAMES = {"yaml": "pyyaml"}
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def asked_for(*extras: str) -> set[str]:
    """What setup.cfg installs without and with these extras, names in one spelling."""
    texts = [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][extra] for extra in extras)]
    names = {re.match(r"[\w-]*", line)[0] for text in texts for line in text.splitlines()} - {""}
    return {name.lower().replace("_", "-") for name in names}


@cache
def imported(path: Path) -> set[str]:
    """The packages that a file imports, in functions too, by the names that pip has for them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) and not node.level else set()
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"gsr_rl", "rewards"}
    return {PYPI_NAMES.get(name, name).replace("_", "-") for name in tops}


# vLLM has a name for each target; reasoning-gym is asked for where a data set of its is named.
@pytest.mark.parametrize(
    ("pattern", "extras", "besides"),
    [
        ("gsr_rl/**/*.py", ("gym", "serve"), {"vllm"}),
        ("gsr_rl/[!s]*/**/*.py", ("gym",), {"vllm"}),  # all but serving/
        ("rewards/**/*.py", (), set()),
        ("recipes/*.py", (), set()),
    ],
)
def test_every_import_is_asked_for_in_setup_cfg(pattern, extras, besides):
    missing = {str(path): imported(path) - asked_for(*extras) for path in ROOT.glob(pattern)}
    assert missing and set().union(*missing.values()) == besides, missing


def test_reasoning_gym_is_imported_by_its_tasks_alone():
    paths = [path for path in (ROOT / "gsr_rl").rglob("*.py") if "reasoning-gym" in imported(path)]
    assert [path.name for path in paths] == ["gym_tasks.py"]


def test_nothing_is_asked_for_that_is_not_imported():
    paths = [path for pattern in ("gsr_rl/**/*.py", "rewards/*.py", "recipes/*.py") for path in ROOT.glob(pattern)]
    assert asked_for("serve", "gym") - set().union(*map(imported, paths)) == set()


def test_setup_cfg_names_every_room():
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "gsr_rl").rglob("__init__.py")} | {Path("rewards")}
    beside = {"gsr_rl.recipes", "gsr_rl.accelerate_configs"}
    assert set(SETUP["options"]["packages"].split()) == {".".join(room.parts) for room in rooms} | beside


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel of this repository puts into a folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("gsr_rl", "rewards", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "build", "--build-lib", folder]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def run_installed(site: Path, module: str, function: str, *words: str, cwd: Path) -> str:
    """What a console script of the wheel prints, in a folder that is no clone."""
    code = (
        f"import gsr_rl, sys; from {module} import {function}; assert {str(site)!r} in gsr_rl.__file__; {function}()"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_wheel_finds_its_configurations_and_models_from_any_folder(installed, tmp_path):
    here = [str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")]
    here += [path.name for path in (ROOT / "accelerate_configs").glob("*.yaml")]
    assert sorted(run_installed(installed, "gsr_rl.cli", "print_config_paths", cwd=tmp_path).split()) == sorted(here)
    path = run_installed(installed, "gsr_rl.cli", "print_config_paths", "zero3.yaml", cwd=tmp_path).strip()
    assert Path(path).read_text() == (ROOT / "accelerate_configs/zero3.yaml").read_text()
    words = ("--config", "tiny/distill.yaml", "--dry_run", "true")
    text = run_installed(installed, "gsr_rl.recipes.distill_gsr", "main", *words, cwd=tmp_path)
    assert f"student_model: {installed}/gsr_rl/recipes/tiny/models/base" in " ".join(text.split())
    assert list(tmp_path.iterdir()) == []


def test_the_working_folder_comes_before_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("tiny/grpo.yaml") == str(ROOT / "recipes/tiny/grpo.yaml")
    assert shipped("recipes/tiny/grpo.yaml") == shipped("tiny/grpo.yaml")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/grpo.yaml").write_text("seed: 3")
    assert shipped("tiny/grpo.yaml") == "tiny/grpo.yaml" and cli.read_values("grpo", ["--config", "tiny/grpo.yaml"])
    assert [shipped(name) for name in ("nothing.yaml", "", "/no/such", "gsr_rl/cli.py")] == [
        "nothing.yaml", "", "/no/such", "gsr_rl/cli.py"]  # fmt: skip
    with pytest.raises(SystemExit, match=r"nothing\.yaml: there is no such configuration"):
        cli.print_config_paths(["nothing.yaml"])


def test_gsr_config_has_a_help(capsys):
    cli.print_config_paths(["--help"])
    assert capsys.readouterr().out.startswith("usage: gsr-config [NAME ...]")


def test_make_refuses_an_unknown_target():
    done = subprocess.run(
        ["make", "-n", "install", "TARGET=tpu"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "TARGET=tpu is not known: use cpu or gpu" in done.stderr


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_the_four_programs_of_a_wheel_run_from_any_folder(installed, tmp_path):
    for program in ("distill", "sft", "grpo", "eval"):
        assert f"gsr-{program}" in run_installed(
            installed, f"gsr_rl.recipes.{program}_gsr", "main", "--help", cwd=tmp_path
        )
    small = ("--config", "tiny/distill.yaml", "--max_problems", "60", "--refinements_per_set", "2")
    run_installed(installed, "gsr_rl.recipes.distill_gsr", "main", *small, cwd=tmp_path)
    words = ("--config", "tiny/sft.yaml", "--max_steps", "1", "--per_device_train_batch_size", "4")
    run_installed(installed, "gsr_rl.recipes.sft_gsr", "main", *words, cwd=tmp_path)
    config = run_installed(installed, "gsr_rl.cli", "print_config_paths", "zero2_cpu.yaml", cwd=tmp_path).strip()
    launch = ("--config_file", config, "--main_process_port", "0", "-m", "gsr_rl.recipes.grpo_gsr", "--config")
    few = ["tiny/grpo.yaml", "--max_steps", "1", "--max_problems", "40", "--num_generations", "4"]
    few += ["--per_device_train_batch_size", "16"]
    run_installed(installed, "accelerate.commands.launch", "main", *launch, *few, cwd=tmp_path)
    words = ("--config", "tiny/eval.yaml", "--model", "runs/tiny/grpo", "--max_problems", "20")
    run_installed(installed, "gsr_rl.recipes.eval_gsr", "main", *words, cwd=tmp_path)
    words = ("--model", "runs/tiny/grpo", "--engine", "transformers", "1+2")
    assert run_installed(installed, "gsr_rl.serving.solve_cli", "main", *words, cwd=tmp_path)


def pins_of(text: str) -> dict[str, str]:
    """`{package: version}` of a requirements file's lines, names in one spelling."""
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in lines}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_nothing_is_pinned_that_only_the_tools_around_the_weights_of_smollm2_ask_for(target):
    pins = pins_of((ROOT / "requirements" / f"{target}.txt").read_text())
    assert len(pins) > 150 and not LEFT_OUT & pins.keys()


def test_the_pins_for_gpus_hold_vllms_bound_on_setuptools():
    pins = pins_of((ROOT / "requirements" / "gpu.txt").read_text())
    assert int(pins["setuptools"].split(".")[0]) < 81


def test_readme_names_the_pinned_versions():
    readme, pins = (ROOT / "README.md").read_text(), pins_of((ROOT / "requirements" / "gpu.txt").read_text())
    named = re.search(r"pinned packages into `.venv` \((.*?)\)", readme).group(1)
    versions = dict(part.lower().split() for part in named.split(", "))
    assert set(versions) == {"torch", "transformers", "trl", "vllm", "deepspeed"}
    assert all(pins[name].startswith(f"{version}.") for name, version in versions.items())


def test_both_targets_pin_the_same_versions_but_of_what_belongs_to_cuda():
    cpu, gpu = (pins_of((ROOT / "requirements" / f"{target}.txt").read_text()) for target in ("cpu", "gpu"))
    differ = {name: (cpu[name], gpu[name]) for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert len(cpu.keys() & gpu.keys()) > 100 and differ.keys() == {"triton", "apache-tvm-ffi"}


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_setup_cfg_asks_for_on_a_gpu_is_pinned(tmp_path, python):
    pins, out, wanted = ROOT / "requirements" / "gpu.txt", tmp_path / "resolved.txt", tmp_path / "wanted.in"
    extras = SETUP["options.extras_require"]
    wanted.write_text(
        "\n".join([SETUP["options"]["install_requires"], *map(extras.get, ("gpu", "gym", "serve", "dev"))])
    )
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", wanted, "--constraint", pins]
    command += ["--only-binary", ":all:"] + [word for name in FROM_SOURCE for word in ("--no-binary", name)]
    links = os.environ.get("PIP_FIND_LINKS")
    command += ["--python-version", python, "--quiet", "--output-file", out] + (
        ["--find-links", links] if links else []
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if "dns error" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    resolved, pinned = pins_of(out.read_text()), pins_of(pins.read_text())
    assert resolved.keys() - pinned.keys() == set()
    assert {name for name in resolved.keys() & pinned.keys() if resolved[name].split("+")[0] != pinned[name]} == set()


@pytest.fixture
def fresh(tmp_path):
    """Run requirements/install.sh, of a single package, in an empty `.venv`; `env` hides tools and the network."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements/install.sh", tmp_path / "requirements")
    for target in ("cpu", "gpu"):
        (tmp_path / f"requirements/{target}.txt").write_text("zss==1.2.0\n")
    (tmp_path / "bin").mkdir()

    def run(target: str = "cpu", venv: bool = True, **env: str) -> tuple[int, list[str]]:
        uv = Path(sys.executable).with_name("uv")
        if venv:
            subprocess.run(
                [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / ".venv"], check=True, timeout=60
            )
            (tmp_path / ".venv/bin/uv").symlink_to(uv)
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "LC_ALL": "C"} | env
        done = subprocess.run(
            ["bash", "requirements/install.sh", target, ".venv"], cwd=tmp_path, env=env, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).splitlines()

    run.tool = lambda name, text: ((tmp_path / "bin" / name).write_text(text), (tmp_path / "bin" / name).chmod(0o755))
    return run


def test_without_a_network_the_install_ends_with_a_line_that_says_so(fresh, tmp_path):
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    code, (first, last) = fresh(UV_CACHE_DIR=str(tmp_path / "cache"), UV_HTTP_RETRIES="0", **nowhere)
    assert code == 1 and first.startswith("make install: the pinned packages for a CPU, about 4 GB")
    assert last.startswith("make install: no package index can be reached: check the network or the proxy")
    assert not (tmp_path / ".venv/.installed-cpu").exists() and (tmp_path / ".venv/install.log").stat().st_size


def test_without_a_python_a_compiler_or_room_nothing_is_begun(fresh, tmp_path):
    code, lines = fresh(venv=False, PYTHON="no-such-python")
    assert (code, lines) == (1, ["make install: PYTHON=no-such-python is no Python of 3.11 or newer: make install "
                                 "PYTHON=python3.12"])  # fmt: skip
    fresh.tool("df", "#!/bin/sh\necho Filesystem\necho /dev/x 1 1 3145728 1% /\n")
    code, (line,) = fresh("gpu", venv=False)
    assert code == 1 and line.endswith(" has 3 GB of disk free, 12 GB are needed: make room")
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    code, (line,) = fresh(venv=False, PATH=str(tmp_path / "bin"))
    assert code == 1 and line.startswith("make install: there is no g++")
    assert not (tmp_path / ".venv").exists()
    assert fresh("tpu", venv=False)[1] == ["make install: TARGET=tpu is not known: use cpu or gpu"]


def test_a_full_disk_and_another_failure_are_told_apart(fresh, tmp_path):
    fresh.tool("uv", "#!/bin/sh\necho 'failed to write: No space left on device (os error 28)' >&2\nexit 2\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("uv", "python"):
        (tmp_path / ".venv/bin" / name).symlink_to(tmp_path / "bin/uv")
    code, (_, last) = fresh(venv=False)
    assert code == 1 and last.startswith("make install: the disk is full, 6 GB are needed")
    fresh.tool("uv", "#!/bin/sh\necho 'no such version'\nexit 2\n")
    code, lines = fresh("gpu", venv=False)
    words, last = lines[-2:]
    assert code == 1 and words == "no such version" and last.startswith("make install: the packages could not be")


@pytest.mark.parametrize("goal", ["test", "docs", "smollm2"])
def test_what_is_made_after_an_install_for_gpus_keeps_its_packages(goal, tmp_path):
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed-gpu").touch()
    os.utime(tmp_path / ".venv/.installed-gpu", (1, 1))  # older than the pins: they are installed anew
    text = subprocess.run(
        ["make", "--no-print-directory", "-n", goal], cwd=tmp_path, capture_output=True, text=True, timeout=60
    ).stdout
    assert "requirements/install.sh gpu .venv" in text and "install.sh cpu" not in text
    (tmp_path / ".venv/.installed-gpu").unlink()
    text = subprocess.run(
        ["make", "--no-print-directory", "-n", "install", "PYTHON=python3.12"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert text.stdout == "PYTHON=python3.12 bash requirements/install.sh cpu .venv\n"
