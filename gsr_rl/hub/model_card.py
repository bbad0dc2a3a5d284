"""A model's card: metadata that the Hub reads, how the model was made, its evaluation with intervals, how to use it.

Made from the run folder alone (config.yaml, provenance.json, versions.json, gsr_config.json, evaluations/), so it can
be remade. In a card without `MARK`, which somebody has edited, only the results are updated.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import yaml

from gsr_rl.data.sources import LOCAL_SUFFIXES, from_hub
from gsr_rl.hub.config import is_repo_name
from gsr_rl.report.markdown import INTERVALS, figure, main_metrics, markdown_table, run_lines, versions_of
from gsr_rl.run_folder import atomic_write, machine

MARK = "<!-- made by gsr-rl; take this line out to keep what you write here -->"
LONGEST_NAME = 80  # of a file under evaluations/
PROVENANCE = "provenance.json"
# What tells an `EvalResult` from the others of a card.
_place = attrgetter("dataset_type", "dataset_config", "dataset_split", "dataset_name", "metric_type")
INHERITED = ("base_model", "datasets", "license", "language")  # from the card of the model that training starts from
SHOWN_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "loss_type", "beta", "num_generations", "num_candidate_sets", "candidate_objective",
    "candidate_choice", "max_completion_length", "max_refinement_length", "reward_funcs", "stages", "seed",
)  # fmt: skip
BODY = """{mark}

# {title}

A language model that refines its own parallel attempts (generative self-refinement, arXiv 2509.00084): it \
writes {k} candidate solutions of a problem, reads them next to the \
problem and writes a better one. Trained by {program} with gsr-rl, which sits on TRL.

## How it was made

{facts}

Every key with its value: `training_config.yaml`. How candidates must be shown to the model: `gsr_config.json`.

{settings}

## Evaluation

Not evaluated yet.

## How to use it

{usage}

## Versions

{versions}
"""
USAGE = """In a terminal, with candidates, votes and the refined solution:

```bash
gsr-solve --model {name} {option}"{problem}"
```

In Python:

```python
from gsr_rl import Solver

if __name__ == "__main__":  # on a GPU vLLM starts processes, which import this script again
    solver = Solver("{name}"{argument})
    solution = solver.solve("{problem}")
    print(solution.text)  # refined over the {k} of solution.candidates
```

Both read `gsr_config.json` of this model: how many candidates are shown, and how."""
MERGE = """

These weights are a LoRA adapter, which gsr-rl runs with transformers. For vLLM and `gsr-serve` merge it with its base
model; `merged` is a model as any other then:

```bash
gsr-merge {name} --output_dir merged
```"""


@dataclass(frozen=True)
class Evaluation:
    """One eval.json: its name (benchmarks and K), its text and content, and the data set that the problems are of."""

    name: str
    text: str
    summary: dict
    dataset: dict

    @property
    def path(self) -> str:
        """Where it lies beside the model's card."""
        return f"evaluations/{self.name}.json"


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a run folder. Raises `ValueError` if there is none."""
    path = folder / "eval.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, give the output_dir of eval_gsr.py")
    text = path.read_text(encoding="utf-8")
    config = _yaml(folder / "config.yaml").get("problems", {})
    dataset = {key: config.get(f"dataset_{key}") for key in ("name", "config", "split")}
    return evaluation_of(text, dataset)


def evaluation_of(text: str, dataset: dict | None = None) -> Evaluation:
    """An evaluation from the text of an eval.json. The data set stays in it, so that the copy is enough later."""
    summary = json.loads(text)
    if dataset and dataset.get("name"):
        summary["dataset"] = dataset
        text = json.dumps(summary, indent=1) + "\n"
    names = [re.sub(r"[^A-Za-z0-9.-]+", "-", benchmark).strip("-.") for benchmark in benchmarks_of(summary)]
    name = "-".join(names)
    if len(name) > LONGEST_NAME:
        digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
        name = f"{names[0]}-and-{len(names) - 1}-more-{digest}"
    return Evaluation(f"{name}-k{summary['k']}", text, summary, summary.get("dataset") or {})


def benchmarks_of(summary: dict) -> list[str]:
    """The benchmarks of an eval.json without their parts; of one that does not tell them apart, the first."""
    return summary.get("names") or [next(iter(summary["benchmarks"]))]


def current_card(folder: Path, name: str) -> str:
    """The folder's card under this name: remade, or with its results updated if somebody has edited it."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else MARK
    return card_of(folder, name) if MARK in text else _with_evaluations(text, folder, name)


def _with_evaluations(card: str, folder: Path, name: str) -> str:
    for path in sorted(folder.glob("evaluations/*.json")):
        card = with_results(card, evaluation_of(path.read_text(encoding="utf-8")), name)
    return card


def card_of(folder: Path, name: str) -> str:
    """The card of a trained model, called `name`, from its folder; what is not there is left out."""
    from huggingface_hub import ModelCard, ModelCardData

    config, settings = _yaml(folder / "config.yaml"), _json(folder / "gsr_config.json")
    dataset = (config.get("problems") or config.get("training") or {}).get("dataset_name")
    origin = read_provenance(folder, str(config.get("model", {}).get("model_name_or_path") or ""), dataset)
    adapter = (folder / "adapter_config.json").is_file()
    data = {"library_name": "peft" if adapter else "transformers"}
    data |= {"pipeline_tag": "text-generation", "tags": ["gsr-rl", "trl", "generative-self-refinement"]}
    header = ModelCardData(**(origin["card"] | data)).to_yaml()
    table = markdown_table(["refinement setting", "value"], [[key, str(value)] for key, value in settings.items()])
    body = BODY.format(
        mark=MARK,
        title=name.split("/")[-1],
        k=settings.get("num_candidates", "K"),
        program="joint GRPO" if "problems" in config else "a supervised warm start",
        facts=_facts(config, origin["start"] if origin["on_hub"] else Path(origin["start"]).name),
        settings=table if settings else "No gsr_config.json was saved with this model.",
        usage=_usage(name, settings, adapter),
        versions=_versions(_json(folder / "versions.json")),
    )
    text = _with_evaluations(f"---\n{header}\n---\n\n{body}", folder, name)
    ModelCard(text)  # raises on metadata that the Hub's client would not read
    return text


def _facts(config: dict, start: str) -> str:
    problems, training = config.get("problems") or {}, config.get("training") or {}
    dataset = problems.get("dataset_name") or training.get("dataset_name")
    rows = [["started from", start]]
    if dataset:
        split = (problems or training).get("dataset_split")
        local = Path(dataset).suffix in LOCAL_SUFFIXES
        rows.append(["data", f"local file {Path(dataset).name}" if local else f"{dataset}, split {split}"])
    model = config.get("model") or {}
    if model.get("use_peft"):
        rows.append(["trained", f"LoRA of rank {model.get('lora_r')} on {model.get('lora_target_modules')}"])
    unused = "num_train_epochs" if (training.get("max_steps") or -1) > 0 else "max_steps"  # steps decide where set
    rows += [[key, training[key]] for key in SHOWN_SETTINGS if key != unused and training.get(key) is not None]
    return markdown_table(["", ""], [[key, str(value)] for key, value in rows if str(value)])


def _usage(name: str, settings: dict, adapter: bool) -> str:
    tiny = settings.get("prompt_template") == "tiny"
    problem = "47+5*3-8*7" if tiny else "What is the sum of the first 100 odd numbers?"
    engine = {"option": "--engine transformers ", "argument": ', engine="transformers"'}
    engine = engine if adapter else dict.fromkeys(engine, "")
    usage = USAGE.format(name=name, problem=problem, k=settings.get("num_candidates", 4), **engine)
    return usage + (MERGE.format(name=name) if adapter else "")


def _versions(versions: dict) -> str:
    hardware, launch = versions.get("hardware") or {}, versions.get("launch") or {}
    packages = [f"{key} {value}" for key, value in versions.items() if key not in ("hardware", "launch")]
    trained_on = [machine(hardware), *(f"{key}: {value}" for key, value in launch.items())]
    return f"- {', '.join(packages) or 'not known'}\n- trained on {', '.join(trained_on)}"


def write_provenance(folder: str | Path, start: str, dataset: str | None) -> None:
    """Write `provenance.json`: whether the start is a folder here or a model of the Hub, and what a card says of it.

    It is written when training starts, so that a card made later and elsewhere says the same: a folder's name, seen
    from another place, looks like a name on the Hub. `start`: `model_name_or_path`; `dataset`: `dataset_name`.
    """
    origin = _origin(start, dataset, start_on_hub=not Path(start).is_dir())
    atomic_write(Path(folder) / PROVENANCE, json.dumps(origin, indent=1) + "\n")


def read_provenance(folder: Path, start: str, dataset: str | None) -> dict:
    """`provenance.json` of a run: `start`, `on_hub`, and `card` (base_model, datasets, license, language).

    Older runs lack it: nothing then says that their start is on the Hub.
    """
    return _json(folder / PROVENANCE) or _origin(start, dataset, start_on_hub=False)


def _origin(start: str, dataset: str | None, start_on_hub: bool) -> dict:
    card = {"base_model": start} if start_on_hub and is_repo_name(start) else _inherited(Path(start) / "README.md")
    if dataset and from_hub(dataset) and is_repo_name(dataset) and not Path(dataset).exists():
        card["datasets"] = list(dict.fromkeys([*card.get("datasets", []), dataset]))
    return {"start": start, "on_hub": start_on_hub, "card": card}


def _inherited(card: Path) -> dict:
    """What a local model's card says that holds for one trained from it; names that the Hub cannot have left out."""
    if not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    inherited = {key: getattr(data, key, None) for key in INHERITED}
    for key in ("base_model", "datasets"):
        names = [inherited[key]] if isinstance(inherited[key], str) else inherited[key] or []
        names = [name for name in names if is_repo_name(str(name))]
        inherited[key] = names[0] if key == "base_model" and len(names) == 1 else names
    return {key: value for key, value in inherited.items() if value}


def with_results(card: str, evaluation: Evaluation, name: str) -> str:
    """The card with an evaluation's results, in its text and its `model-index`; older ones of the same are replaced.

    `card` is a README.md with or without metadata, `name` the model's, for a `model-index` that is not there yet.
    """
    from huggingface_hub import ModelCard

    new = ModelCard(card)
    results = hub_results(evaluation)
    replaced = {_place(result) for result in results}
    others = [result for result in new.data.eval_results or [] if _place(result) not in replaced]
    new.data.eval_results = others + results
    new.data.model_name = getattr(new.data, "model_name", None) or name.split("/")[-1]
    new.text = _put_section(new.text, evaluation)
    return str(new)


def hub_results(evaluation: Evaluation) -> list:
    """The figures as huggingface_hub's `EvalResult`: percent, with the interval's ends as arguments."""
    from huggingface_hub import EvalResult

    summary, dataset = evaluation.summary, evaluation.dataset
    name = dataset.get("name")
    source = name if name and from_hub(name) else None
    main = next(iter(summary["benchmarks"]))
    results = []
    for benchmark, estimates in summary["benchmarks"].items():
        config = dataset.get("config") if benchmark == main else benchmark  # the Hub tells a set's parts by this
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type=source or benchmark,
                dataset_name=benchmark,
                dataset_config=config if source else None,
                dataset_split=dataset.get("split"),
                metric_type=metric,
                metric_name=f"{metric}, %",
                metric_value=round(100 * estimate["value"], 2),
                metric_args={end: round(100 * estimate[end], 2) for end in ("low", "high")},
            )
            for metric, estimate in estimates.items()
            if estimate and estimate.get("value") is not None
        ]
    return results


def _put_section(text: str, evaluation: Evaluation) -> str:
    """The evaluation's part of the text, in the place of an older one, or under `## Evaluation`."""
    first, last = f"<!-- evaluation {evaluation.name} -->", f"<!-- end of {evaluation.name} -->"
    section = f"{first}\n{results_text(evaluation)}\n{last}"
    old = re.compile(re.escape(first) + ".*?" + re.escape(last), re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: section, text)
    heading = re.search(r"^## Evaluation[ \t]*\n", text, re.MULTILINE)
    if not heading:
        return f"{text.rstrip()}\n\n## Evaluation\n\n{section}\n"
    rest = re.sub(r"\A\s*Not evaluated yet\.\n", "\n", text[heading.end() :])
    return f"{text[: heading.end()]}\n{section}\n{rest}"


def results_text(evaluation: Evaluation) -> str:
    """A table with intervals, and what belongs to the figures: sizes, sampling, versions."""
    summary = evaluation.summary
    k = summary["k"]
    known = {metric for estimates in summary["benchmarks"].values() for metric, each in estimates.items() if each}
    wanted = [*main_metrics(k), f"maj@{k + 1}", "selfref_none", "selfref_foreign"]
    metrics = [metric for metric in wanted if metric in known]
    rows = [[name, *(figure(values.get(m)) for m in metrics)] for name, values in summary["benchmarks"].items()]
    lines = [
        f"### {', '.join(benchmarks_of(summary))}, K = {k}",
        "",
        f"{summary['num_problems']} problems, {summary['num_samples']} candidates each, seed {summary.get('seed')}. "
        f"Percent with 95 % {INTERVALS}; any final answer counts, boxed or not.",
        "",
        markdown_table(["", *metrics], rows),
        "",
    ]
    lines += [f"- {line}" for line in run_lines(summary)]
    return "\n".join([*lines, f"- measured with {versions_of(summary)}", f"- all figures: `{evaluation.path}`"])


def public_config(path: Path) -> str:
    """A run's config.yaml without the folders of the machine it ran on."""

    def shown(value):
        if isinstance(value, dict):
            return {key: shown(of_key) for key, of_key in value.items()}
        if isinstance(value, list):
            return [shown(item) for item in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return yaml.safe_dump(shown(_yaml(path)), sort_keys=False, width=119)


def _yaml(path: Path) -> dict:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
