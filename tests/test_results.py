"""README says what results/ holds."""

import runpy
import sys

import pytest
import yaml
from conftest import ROOT

TINY = ROOT / "recipes" / "tiny"


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(TINY))
    try:
        yield runpy.run_path(str(TINY / "paper_tables.py"))
    finally:
        sys.path.remove(str(TINY))


def test_the_readmes_table_is_made_from_the_results(tables):
    config = yaml.safe_load((TINY / "arms.yaml").read_text())["tables"]["demo"]
    text = (ROOT / "README.md").read_text()
    block = tables["readme_block"](config, ROOT / "results" / "paper", [0, 1, 2])
    assert tables["with_block"](text, block) == text, "run `python recipes/tiny/paper.py --report`"
    assert "after GRPO" in block and tables["with_block"](text, block + " changed") != text


def test_every_arm_starts_from_another_and_every_claim_names_arms_of_its_table(tables):
    config = yaml.safe_load((TINY / "arms.yaml").read_text())
    arms = config["arms"]
    assert all(not arm or (arm["from"] in arms and arm["program"] in ("sft", "grpo")) for arm in arms.values())
    for table in config["tables"].values():
        assert set(table["arms"]) <= set(arms)
        for claim in table["claims"]:
            for arm, column in (claim["new"], claim["old"]):
                assert arm in table["arms"] and column in tables["COLUMNS"]
