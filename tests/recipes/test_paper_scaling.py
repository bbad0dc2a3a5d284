"""The scaling table of the tiny world over seeds, from figures whose means are worked out by hand."""

import importlib
import json
import re

import pandas as pd
import pytest

from tests.support.paths import ROOT

PARTS = {"tiny/mix": ["p0", "p1", "p2", "p3"], "tiny/mix/chain": ["p0", "p1"], "tiny/mix/guess": ["p2", "p3"]}
CLAIM = {"text": "16 above 2", "new": ["grpo_k_pools", "refine_and_vote@16"], "old": ["grpo_k_pools", "selfref@2"]}
CONFIG = {"title": "More candidates", "arms": ["grpo_k_pools"], "claims": [CLAIM], "scaling": True,
          "columns": ["selfref@2", "refine_and_vote@16"]}  # fmt: skip


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "tiny"))
    return importlib.import_module("paper_scaling")


def made(folder, seed: int, right: list[float]) -> None:
    """A seed's figures: refine and vote is right on `right`, with all four refinements; with two on half of that."""
    (folder / f"seed{seed}").mkdir(parents=True)

    def points(part: str) -> list[dict]:
        share = sum(right[int(name[1])] for name in PARTS[part]) / len(PARTS[part])
        rows = [("vote", 1, 0, 0.5, 10), ("flat", 2, 1, 0.5, 30), ("refine and vote", 16, 2, share / 2, 180 + seed)]
        rows += [("refine and vote", 16, 4, share, 200 + seed)]
        names = ("method", "candidates", "refinements", "value", "tokens", "prompt_tokens", "distinct_prompt_tokens")
        return [dict(zip(names, [*row, 7.0, 5.0], strict=True)) | {"low": 0.0, "high": 1.0} for row in rows]

    settings = {"k": 2, "pools": {"16": 4}, "scaling": {part: points(part) for part in PARTS}, "by_num_correct": {}}
    settings |= {"seconds": {"train": 0.0, "eval": 9.0}, "optimizer_steps": 0, "training_tokens": 0}
    (folder / f"seed{seed}" / "grpo_k_pools.json").write_text(json.dumps(settings))
    frame = pd.DataFrame({"problem_id": PARTS["tiny/mix"], "part": ["tiny/mix/chain"] * 2 + ["tiny/mix/guess"] * 2})
    columns = {"selfref@K": [0.0, 1.0, 0.0, 1.0], "maj@1": [0.5] * 4, "maj@tokens@16": [0.25] * 4}
    frame.assign(**columns | {"refine_and_vote@16": right}).to_parquet(folder / f"seed{seed}" / "grpo_k_pools.parquet")


def test_points_are_means_over_seeds_with_intervals_where_problems_are_stored(scaling, tmp_path):
    from paper_tables import load, section

    made(tmp_path, 0, [1.0, 1.0, 1.0, 0.0])
    made(tmp_path, 1, [1.0, 1.0, 0.0, 0.0])
    arms = load(CONFIG, tmp_path)
    vote, flat, half, full = scaling.rows_of(arms["grpo_k_pools"], "tiny/mix")
    assert (vote["value"], flat["value"], flat["tokens"], full["tokens"]) == (0.5, 0.5, 30, 200.5)
    assert (full["value"], half["value"]) == (0.625, 0.3125)
    assert full["low"] < 0.625 < full["high"] and half["low"] is None, "with two of four only the means are stored"
    guess = scaling.rows_of(arms["grpo_k_pools"], "tiny/mix/guess")[3]
    assert guess["value"] == 0.25
    text = "\n".join(section(CONFIG, arms))
    line = next(line for line in text.splitlines() if re.match(r"\| refine and vote \| 16 +\| 4 ", line))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == "200" and [cell.split()[0] for cell in cells[6:]] == ["62.5", "100.0", "25.0", "37.5"]
    assert "![Accuracy against tokens](scaling.png)" in text
    scaling.draw(arms, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_arms_without_pools_have_no_scaling(scaling):
    from paper_tables import load

    table = {"seeds": [0], "arms": ["grpo"], "claims": [{"new": ["grpo", ""], "old": ["grpo", ""]}]}
    arms = load(table, ROOT / "results/paper")
    assert scaling.with_pools(arms) == {} and scaling.section(arms, "scaling.png") == []
