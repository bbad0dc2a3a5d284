"""What a distillation says before it starts, when it is done, and on the Hub."""

import json
from pathlib import Path

import pytest
import yaml

from gsr_rl.distillation.report import plan, report_markdown, write_report
from gsr_rl.hub.__main__ import main
from gsr_rl.hub.dataset_card import card_text, write_data_set
from tests.support.distilled import problem_config, run
from tests.support.fixed_engine import FixedEngine, run_recipe
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return next(row for row in rows if row[0] == first)


def test_the_report_holds_the_counts_and_five_rows_to_read(whole):
    counts = whole.counts | {"problems": {"rows read": 31, "without a usable answer": 1, "problems": 30}}
    counts |= {"removed": {"exam": {"exact": 2}}}
    text = report_markdown(counts, whole.rows, whole.config)
    funnel = counts["funnel"]
    assert cells(text, "refinement rows")[1] == f"{funnel['refinement rows']:,}"
    assert cells(text, "without a usable answer")[1] == "1" and cells(text, "exam")[1:] == ["2", "0"]
    share = f"{100 * funnel['candidates right'] / funnel['candidates sampled']:.1f} % right"
    assert f"- student, candidates: {share}" in text and text.count("\n### ") == 5
    whole_row = cells(text, "all")
    table = counts["by_num_correct"].values()
    sampled, majority = (sum(one[key] for one in table) for key in ("sampled", "majority"))
    fixed, broken = (sum(one[key] for one in table) for key in ("fixed", "broken"))
    assert whole_row[1] == f"{sampled:,}" and whole_row[3] == f"{100 * majority / sampled:.1f}"
    assert whole_row[4] == f"{100 * fixed / (sampled - majority):.1f}"
    assert whole_row[5] == f"{100 * broken / majority:.1f}"
    assert cells(text, "candidates")[1] == f"{counts['lengths']['candidates']['mean']:,.0f}"
    tokens = counts["tokens"]["student"]
    assert cells(text, "student")[1:] == ["30", f"{tokens['prompt tokens']:,}", f"{tokens['completion tokens']:,}"]


def test_with_a_random_number_of_candidates_the_report_counts_rows_by_number(whole, tmp_path):
    drawn = run(tmp_path, num_candidates=4, min_num_candidates=2)
    text = report_markdown(drawn.counts, drawn.rows, drawn.config)
    assert "K = 2 to 4 of 6" in text
    table = text.split("## Refinements by number of candidates")[1]
    for number, one in drawn.counts["by_num_candidates"].items():
        assert cells(table, number)[1] == f"{one['sampled']:,}" and cells(table, number)[-1] == f"{one['kept']:,}"
    assert cells(table, "all")[-1] == f"{drawn.counts['funnel']['refinement rows']:,}"
    assert "by number of candidates" not in report_markdown(whole.counts, whole.rows, whole.config)
    assert "K = 3 of 6" in report_markdown(whole.counts, whole.rows, whole.config)
    card = card_text("me/set", drawn.counts, text, drawn.config, problem_config())
    assert "- candidate sets: 2 to 4 candidates" in card


def test_a_text_with_a_fence_does_not_break_the_report(whole):
    row = whole.rows[0] | {"completion": [{"role": "assistant", "content": "```python\n1\n```"}]}
    assert "````\n```python\n1\n```\n````" in report_markdown(whole.counts, [row], whole.config)


def test_the_plot_is_drawn_even_when_nothing_was_kept(whole, tmp_path):
    pytest.importorskip("matplotlib")
    empty = {"funnel": {"problems": 1}, "by_num_correct": {}, "policies": {}, "tokens": {}, "lengths": {}}
    for name, counts, rows in (("full", whole.counts, whole.rows), ("empty", empty, [])):
        write_report(tmp_path / name, counts, rows, whole.config)
        assert (tmp_path / name / "distill_report.png").read_bytes()[:4] == b"\x89PNG"


def figures(text: str) -> tuple[float, float]:
    """The expected figure and the one at most."""
    first, _, rest = text.partition("expected")
    return float(first.replace(",", "")), float(rest.removesuffix("at most").replace(",", ""))


def test_the_plan_of_the_papers_recipe_has_the_papers_sizes():
    from gsr_rl.distillation.config import DistillConfig

    values = yaml.safe_load((ROOT / "recipes/Qwen2.5-7B-Instruct/distill.yaml").read_text())
    known = set(DistillConfig.__dataclass_fields__)
    config = DistillConfig(**{key: value for key, value in values.items() if key in known})
    found = {name: figures(text) for name, text in plan(56000, config).items()}
    assert found["candidates"] == (336_000, 336_000)
    assert found["candidate sets within the prompt's budget"][0] == pytest.approx(53_000, rel=0.01)
    assert found["refinements"][0] == pytest.approx(530_000, rel=0.01)
    assert found["refinement rows"][0] == pytest.approx(184_000, rel=0.01)
    assert found["rows"][0] == pytest.approx(368_000, rel=0.01)
    assert found["student, completion tokens"] == (336_000 * 1536, 336_000 * 4096)
    assert found["teacher, completion tokens"][1] == (560_000 + 336_000) * 16_384
    assert all(expected <= most for expected, most in found.values())


def test_hours_and_cost_follow_from_speed_and_price(tmp_path):
    from tests.support.distilled import config

    means = {"candidate_tokens": 20, "refinement_tokens": 30, "refinement_prompt_tokens": 100}
    means["solve_prompt_tokens"] = 50
    more = {"student_tokens_per_second": 10.0, "teacher_price": [2.0, 4.0], "direct_source": "none"}
    more["student_price"] = [1.0, 3.0]
    one = config(tmp_path, expected=means, **more)
    found = plan(1000, one)
    assert figures(found["student, hours"])[0] == pytest.approx(1000 * 6 * 20 / 10 / 3600, abs=0.05)
    cost = (1000 * 2 * 100 * 2.0 + 1000 * 2 * 3 * 30 * 4.0) / 1e6
    assert figures(found["teacher, cost"])[0] == pytest.approx(cost, abs=0.005)
    cost = (1000 * 50 * 1.0 + 1000 * 6 * 20 * 3.0) / 1e6
    assert figures(found["student, cost"])[0] == pytest.approx(cost, abs=0.005)


def test_the_dry_run_of_a_hub_set_with_a_stated_size_asks_no_hub(monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    run_recipe(monkeypatch, "distill", config=ROOT / "recipes/Qwen2.5-7B-Instruct/distill.yaml", dry_run="true")
    said = capsys.readouterr().out
    assert "disk, MB" in said and "183,827 expected" in said
    more = {"dry_run": "true", "max_problems": 560}
    run_recipe(monkeypatch, "distill", config=ROOT / "recipes/Qwen2.5-7B-Instruct/distill.yaml", **more)
    assert "1,838 expected" in capsys.readouterr().out


def test_the_plan_of_a_part_is_that_of_its_problems(tmp_path):
    from tests.support.distilled import config

    parts = [plan(10, config(tmp_path, shard=f"{i}/3")) for i in (1, 2, 3)]
    assert [figures(one["problems"])[0] for one in parts] == [4, 3, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shard": "0/2"}, "shard='0/2': i/n is expected, counted from 1"),
        ({"shard": "3/2"}, "shard='3/2'"),
        ({"num_correct_shares": {0: 0.5, 1: 0.4}}, "add up to 0.9"),
        ({"num_correct_shares": {9: 1.0}}, "keys from 0 to num_candidates=4"),
        ({"candidate_choice": "best"}, "candidate_choice='best'"),
        ({"overlong_prompts": "skip"}, "overlong_prompts='skip': use cut or drop"),
        ({"teacher_price": [1.0]}, "teacher_price=[1.0]: two numbers"),
        ({"expected": {"tokens": 1}}, "with keys of problems, fitting"),
        ({"uniform_share": 1.5}, "uniform_share=1.5"),
        ({"min_num_candidates": 0}, "min_num_candidates=0: from 1 to num_candidates=4 is expected"),
        ({"min_num_candidates": 5}, "min_num_candidates=5: from 1 to num_candidates=4 is expected"),
    ],
)
def test_a_bad_key_is_named_before_anything_is_loaded(values, message):
    from gsr_rl import cli

    base = {"dataset_name": "tiny/mix", "student_model": "m", "output_dir": "o"}
    with pytest.raises(ValueError) as caught:
        cli.check_values("distill", base | values)
    assert message in str(caught.value)


def test_mappings_can_be_given_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "m").mkdir()
    keys = {"dataset_name": "tiny/mix", "dataset_split": "sft", "max_problems": 8, "prompt_template": "tiny"}
    keys |= {"student_model": tmp_path / "m", "output_dir": tmp_path / "run", "dry_run": "true"}
    keys |= {"num_correct_shares": "{0: 0.5, 1: 0.5}", "expected": "{candidate_tokens: 10}"}
    run_recipe(monkeypatch, "distill", **keys)
    said = capsys.readouterr().out
    assert "num_correct_shares:\n    '0': 0.5\n    '1': 0.5" in said
    assert "640 expected" in said, "8 problems, 8 candidates, 10 tokens"


def test_the_rows_and_their_card_make_a_data_set(whole, tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "sft_rows.jsonl"
    path.write_text("".join(json.dumps(row | {"source": "/somewhere/runs/model"}) + "\n" for row in whole.rows))
    report = report_markdown(whole.counts, whole.rows, whole.config)
    card = card_text("me/set", whole.counts, report, whole.config, problem_config(decontaminate_against=["x/exam"]))
    folder = write_data_set(path, tmp_path / "data_set", card)
    rows = pq.read_table(folder / "data/train-00000-of-00001.parquet").to_pylist()
    assert rows == [row | {"source": "model"} for row in whole.rows], "a path of this machine stays here"
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["size_categories"] == ["n<1K"] and "generative-self-refinement" in header["tags"]
    assert {path.name for path in folder.iterdir()} == {"README.md", "data"}, "another file would be read as rows"
    assert "- versions: python " in text
    assert "decontaminated against: x/exam" in text and "Rows to read" not in text
    assert f"| rows {' ' * 4}".strip() in text and str(tmp_path) not in text
    student = Path(whole.config.student_model)
    assert student.is_absolute() and f"- student: {student.name}," in text and str(student) not in text


def test_a_large_set_is_cut_into_files(whole, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = tmp_path / "sft_rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in whole.rows))
    monkeypatch.setattr("gsr_rl.hub.dataset_card.SHARD_BYTES", 4_000)
    write_data_set(path, tmp_path / "set", "card")
    files = sorted((tmp_path / "set/data").iterdir())
    assert len(files) > 1 and files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    assert [row["problem_id"] for file in files for row in pq.read_table(file).to_pylist()] == [
        row["problem_id"] for row in whole.rows
    ]


def test_the_program_pushes_only_when_asked(tmp_path, monkeypatch):
    from huggingface_hub import DatasetCard

    from tests.support.hub_stand_in import HubStandIn, client_of

    monkeypatch.setattr("gsr_rl.engines.open.open_engine", FixedEngine)
    (tmp_path / "m").mkdir()
    keys = {"dataset_name": "tiny/mix", "dataset_split": "sft", "max_problems": 8, "prompt_template": "tiny"}
    keys |= {"student_model": tmp_path / "m", "num_candidates": 2, "num_generations": 4, "max_completion_length": 40}
    keys |= {"output_dir": tmp_path / "run", "hub_dataset_id": "me/set"}
    token = "hf_" + "AnotherPlantedToken"
    with HubStandIn(token) as hub:
        client_of(hub, monkeypatch, tmp_path)
        run_recipe(monkeypatch, "distill", **keys)
        assert hub.requests == []
        hub.dies_at = "commit"
        with pytest.raises(SystemExit) as end:
            run_recipe(monkeypatch, "distill", **keys, push_to_hub="true")
        assert end.value.code == 3 and (tmp_path / "run" / "sft_rows.jsonl").is_file()
        hub.revive()
        assert main(["push", str(tmp_path / "run" / "data_set")]) == 0
        files = hub.files("me/set", "dataset")
        assert hub.repositories["dataset", "me/set"].private, "a set is private unless asked to be public"
    pushed = [row for name, content in files.items() if name.endswith(".parquet") for row in rows_of(content)]
    lines = (tmp_path / "run" / "sft_rows.jsonl").read_text().splitlines()
    assert [row | {"source": None} for row in pushed] == [json.loads(line) | {"source": None} for line in lines]
    assert DatasetCard(files["README.md"].decode()).data.task_categories == ["text-generation"]
    everything = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(token.encode() in content for content in [*everything, *files.values()])


def rows_of(content: bytes) -> list[dict]:
    import io

    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content)).to_pylist()
