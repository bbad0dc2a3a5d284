"""A distilled set on the Hugging Face Hub: the rows as parquet, with a card that says how they were made."""

from pathlib import Path


def card_text(repo_id: str, counts: dict, report: str, config, problem_config) -> str:
    """The set's README.md: what it is, how it was made and what became of what was sampled."""
    import yaml

    from gsr_rl import __version__

    size = counts["funnel"]["rows"]
    sizes = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    category = next((name for limit, name in sizes if size < limit), "n>1M")
    header = {
        "pretty_name": repo_id.split("/")[-1],
        "task_categories": ["text-generation"],
        "tags": ["gsr-rl", "generative-self-refinement", "math", "synthetic"],
        "size_categories": [category],
    }
    teacher = f"temperature {config.refinement_temperature}, top_p {config.refinement_top_p}, at most "
    teacher += f"{config.max_refinement_length} tokens"
    student = f"temperature {config.temperature}, top_p {config.top_p}, at most {config.max_completion_length} tokens"
    against = problem_config.decontaminate_against
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {repo_id}

Rows for the warm start of generative self-refinement (arXiv 2509.00084), made with gsr-rl {__version__}: a student's
candidate solutions, a teacher's refinements of them, kept where the boxed answer is right; and direct solutions.

- problems: {problem_config.dataset_name}, split {problem_config.dataset_split}; mind their licence
- student: {config.student_model}, {config.num_generations} candidates a problem, {student}
- teacher: {config.teacher_model}, {config.refinements_per_set} refinements a candidate set, {teacher}
- candidate sets: {config.num_candidates} candidates, choice `{config.candidate_choice}`, prompt template
  `{config.prompt_template}`
- decontaminated against: {", ".join([against] if isinstance(against, str) else against) if against else "nothing"}

Columns: `prompt` and `completion` (messages), `stage` (candidate or refinement), `problem_id`, `answer`, `candidates`
(the texts shown) and `num_correct` (how many of them are right; both null for direct solutions), `source`.

```python
from datasets import load_dataset
rows = load_dataset("{repo_id}", split="train")
```

{report.replace("# Distillation", "## How it came out", 1).split("## Rows to read")[0].rstrip()}
"""


def push_rows(path: str | Path, repo_id: str, card: str, private: bool) -> str:
    """Push a file of SFT rows and its card, as the account that `hf auth login` or HF_TOKEN names.

    Returns:
        The address of the data set.
    """
    import datasets
    from huggingface_hub import DatasetCard

    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": text})
    kinds = {name: text for name in ("stage", "problem_id", "answer", "source")}
    kinds |= {"prompt": messages, "completion": messages, "candidates": datasets.List(text)}
    features = datasets.Features(kinds | {"num_correct": datasets.Value("int64")})
    rows = datasets.load_dataset("json", data_files=str(path), split="train", features=features)
    rows.push_to_hub(repo_id, split="train", private=private)
    DatasetCard(card).push_to_hub(repo_id)
    return f"https://huggingface.co/datasets/{repo_id}"
