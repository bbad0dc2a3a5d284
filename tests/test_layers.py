"""Which room of gsr_rl may import which, imports inside functions included; and no two modules import each other."""

import re
import subprocess
import sys

import pytest

from docs.hooks.rooms import PACKAGE, PICTURE, draw, imports_of, module_name, modules, room
from tests.support.paths import ROOT

GROUND = {"keys", "run_folder", "command_line"}
MAY_IMPORT = {
    **{name: GROUND for name in GROUND},
    "refinement": GROUND,  # prompts, choice of candidates, votes: no engine, no trainer
    "data": GROUND | {"refinement"},
    "engines": GROUND | {"refinement"},
    "report": GROUND | {"refinement"},  # everything from samples.parquet alone
    "hub": GROUND | {"refinement", "data", "report"},
    "serving": GROUND | {"refinement", "engines"},
    "distillation": GROUND | {"refinement", "data", "engines", "report", "hub"},
    "evaluation": GROUND | {"refinement", "data", "engines", "report", "hub"},
    "training": GROUND | {"refinement", "data", "engines", "hub"},
    "cli": GROUND | {"data", "distillation", "evaluation", "training"},
    "__init__": {"serving"},
    "server_worker": {"training"},
}
LIGHT = [*sorted(PACKAGE.glob("*/config.py")), PACKAGE / "refinement" / "settings.py", PACKAGE / "keys.py"]
HEAVY = {"torch", "transformers", "trl", "vllm", "deepspeed", "datasets"}


MODULES = modules()
IMPORTS = {module: imports_of(path, MODULES) for module, path in MODULES.items()}


def test_every_room_imports_only_what_lies_below_it():
    wrong = {
        f"{module} -> {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if room(module) != room(target) and room(target) not in MAY_IMPORT[room(module)]
    }
    assert not wrong, "move the name down, or hand the value in"


def test_no_modules_import_each_other_in_a_circle():
    left = dict(IMPORTS)
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert not left, f"these hold each other: {sorted(left)}"


def test_chains_of_imports_are_at_most_ten_modules_long():
    left, floors = dict(IMPORTS), 0
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
        floors += 1
    assert floors <= 10


@pytest.mark.parametrize("path", LIGHT, ids=module_name)
def test_a_configuration_is_imported_without_torch(path):
    if path.parent.name == "training":
        pytest.skip("it inherits from TRL's configurations, which import torch")
    code = f"import sys, {module_name(path)}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_the_package_is_small_enough_to_be_seen():
    assert len(MODULES) <= 85
    longest = max(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values())
    assert longest <= 400
    recipes = [len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "recipes").glob("*.py")]
    assert max(recipes) <= 200


def test_the_picture_of_the_rooms_is_as_new_as_the_code():
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run `python docs/hooks/rooms.py`"


def test_every_path_that_the_architecture_page_names_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+(?:\.py|/))`", text)
    starts = (ROOT, PACKAGE, *(path.parent for path in MODULES.values()))
    assert len(paths) > 40
    assert [path for path in paths if not any((start / path).exists() for start in starts)] == []
