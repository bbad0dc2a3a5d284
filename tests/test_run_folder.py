"""Run folders: files are whole, secrets stay out, versions are stated."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gsr_rl import run_folder


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "figures.json"
    run_folder.atomic_write(path, "old")
    with pytest.raises(RuntimeError), run_folder.atomic_path(path) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    run_folder.atomic_write(path, b"new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o444 == 0o444


@dataclass
class Config:
    rate: float = 0.1
    hub_token: str = "geheim"
    stages: tuple = ("a",)


def test_the_resolved_configuration_is_yaml_without_secrets(tmp_path):
    run_folder.write_run_info(tmp_path, {"training": Config(), "more": {"x": None}})
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text) == {"training": {"rate": 0.1, "stages": ["a"]}, "more": {"x": None}}
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["gsr-rl"] and versions["torch"] and versions["hardware"]["cores"] >= 1


def test_metrics_are_appended_a_line_a_record(tmp_path):
    for step in range(3):
        run_folder.append_json_line(tmp_path / "run" / "metrics.jsonl", {"step": step})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
