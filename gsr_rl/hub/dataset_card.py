"""A distilled set on the Hugging Face Hub: the rows as parquet, with a card that says how they were made."""

from pathlib import Path

import yaml

from gsr_rl.data.sources import as_list
from gsr_rl.refinement.candidates import range_text
from gsr_rl.run_folder import atomic_path, atomic_write, versions

SHARD_BYTES = 500_000_000
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}  # the Hub's names, by upper limit
BODY = """
# {repo_id}

Rows for the warm start of generative self-refinement (arXiv 2509.00084), made with gsr-rl {version}: a student's
candidate solutions, a teacher's refinements of them, kept where the boxed answer is right; and direct solutions.

{facts}

Columns: `prompt` and `completion` (messages), `stage` (candidate or refinement), `problem_id`, `answer`, `candidates`
(the texts shown) and `num_correct` (how many of them are right; both null for direct solutions), `source`.

```python
from datasets import load_dataset
rows = load_dataset("{repo_id}", split="train")
```

{report}
"""


def card_text(repo_id: str, counts: dict, report: str, config, problem_config) -> str:
    """The set's README.md: what it is, how it was made and what became of what was sampled.

    `counts` and `report` are the distillation's: its counts.json, and its report as markdown.
    """
    for model in (config.student_model, config.teacher_model):
        report = report.replace(model, _shown(model))
    report = report.replace("# Distillation", "## How it came out", 1).split("## Rows to read")[0].rstrip()
    facts = _facts(config, problem_config, versions())
    body = BODY.format(repo_id=repo_id, version=versions()["gsr-rl"], facts=facts, report=report)
    return f"---\n{_metadata(repo_id, counts['funnel']['rows'])}\n---\n{body}"


def _metadata(repo_id: str, num_rows: int) -> str:
    """What the Hub reads, as YAML."""
    header = {
        "pretty_name": repo_id.split("/")[-1],
        "task_categories": ["text-generation"],
        "tags": ["gsr-rl", "generative-self-refinement", "math", "synthetic"],
        "size_categories": [next((name for limit, name in SIZES.items() if num_rows < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    return yaml.safe_dump(header, sort_keys=False).strip()


def _facts(config, problem_config, versions: dict) -> str:
    """Where the rows come from, as a list."""
    teacher = f"temperature {config.refinement_temperature}, top_p {config.refinement_top_p}, at most "
    teacher += f"{config.max_refinement_length} tokens"
    student = f"temperature {config.temperature}, top_p {config.top_p}, at most {config.max_completion_length} tokens"
    shown = range_text(config.min_num_candidates, config.num_candidates)
    against = ", ".join(as_list(problem_config.decontaminate_against)) or "nothing"
    return f"""\
- problems: {_shown(problem_config.dataset_name)}, split {problem_config.dataset_split}; mind their licence
- student: {_shown(config.student_model)}, {config.num_generations} candidates per problem, {student}
- teacher: {_shown(config.teacher_model)}, {config.refinements_per_set} refinements per candidate set, {teacher}
- candidate sets: {shown} candidates, choice `{config.candidate_choice}`, prompt template
  `{config.prompt_template}`
- decontaminated against: {against}
- versions: {", ".join(f"{name} {version}" for name, version in versions.items())}"""


def _shown(name: str) -> str:
    """A name as it may be told to others: of a path from this machine's root its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def write_data_set(rows_file: str | Path, folder: str | Path, card: str) -> Path:
    """SFT rows (a file of JSON lines) as parquet in `data/` with their card, as the Hub has a data set.

    Returns `folder`, in which an older set is replaced.
    """
    import datasets

    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": text})
    kinds = {name: text for name in ("stage", "problem_id", "answer", "source")}
    kinds |= {"prompt": messages, "completion": messages, "candidates": datasets.List(text)}
    features = datasets.Features(kinds | {"num_correct": datasets.Value("int64")})
    rows = datasets.load_dataset("json", data_files=str(rows_file), split="train", features=features)
    rows = rows.map(lambda row: {"source": _shown(row["source"])}, features=features)
    folder = Path(folder)
    for old in folder.glob("data/*.parquet"):
        old.unlink()
    number = max(1, -(-rows.data.nbytes // SHARD_BYTES))
    for index in range(number):
        with atomic_path(folder / "data" / f"train-{index:05d}-of-{number:05d}.parquet") as path:
            rows.shard(number, index, contiguous=True).to_parquet(path)
    atomic_write(folder / "README.md", card)
    return folder
