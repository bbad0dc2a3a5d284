"""What `make install` installs: the pins fit setup.cfg, and nothing is compiled from source that nobody asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# What the package of SmolLM2's weights asks for. Only its file is read, so none of it is installed.
LEFT_OUT = {"llama-cpp-python", "llm", "sqlite-utils", "sqlite-fts4", "condense-json", "click-default-group"}
LEFT_OUT |= {"python-ulid", "puremagic", "diskcache", "pip"}


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


def test_both_targets_pin_the_same_versions_but_of_what_belongs_to_cuda():
    cpu, gpu = (pins_of((ROOT / "requirements" / f"{target}.txt").read_text()) for target in ("cpu", "gpu"))
    differ = {name: (cpu[name], gpu[name]) for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert len(cpu.keys() & gpu.keys()) > 100 and differ.keys() == {"triton", "apache-tvm-ffi"}


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_setup_cfg_asks_for_on_a_gpu_is_pinned(tmp_path, python):
    pins, out = ROOT / "requirements" / "gpu.txt", tmp_path / "resolved.txt"
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "setup.cfg", "--constraint", pins]
    command += [word for extra in ("gpu", "demo", "serve", "dev") for word in ("--extra", extra)]
    links = os.environ.get("PIP_FIND_LINKS")
    command += ["--python-version", python, "--quiet", "--output-file", out] + (
        ["--find-links", links] if links else []
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if "dns error" in done.stderr or "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    resolved, pinned = pins_of(out.read_text()), pins_of(pins.read_text())
    assert resolved.keys() - pinned.keys() - LEFT_OUT == set()
    assert {name for name in resolved.keys() & pinned.keys() if resolved[name].split("+")[0] != pinned[name]} == set()
