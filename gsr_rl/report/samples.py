"""samples.parquet: every sample of an evaluation, one a row, with the run's settings in the file's metadata."""

import json
from collections.abc import Iterable
from pathlib import Path

GRADINGS = ("lenient", "strict")
TEXTS = ("benchmark", "part", "problem_id", "problem", "gold", "stage", "method", "candidates_of", "text")
NUMBERS = ("index", "round", "order", "repeat", "chosen", "tokens", "prompt_tokens")
FLAGS = ("finished", "skipped", "copied")
# settings that the first files lack
FIRST = {"grouping": "resampled", "methods": ["selfref", "selfref_none", "selfref_foreign"], "candidates_from": None}


def samples_path(path: str | Path) -> Path:
    """A samples.parquet, named itself or by the run folder that holds it."""
    return Path(path) / "samples.parquet" if Path(path).is_dir() else Path(path)


def schema(header: dict):
    """The file's pyarrow schema.

    Columns beside the plain ones: `index` of the candidate or of the candidate set; `candidates`, what was shown, as
    indices into the problem's candidates (with `round` above 1, into the refinements of the round before);
    `candidates_of`, the problem that they belong to; `order` 0 for the set's own order; `repeat` among samples of one
    prompt; `chosen` by a selection; `class_*` groups equal answers of a problem, candidates' classes first; `score`
    of a reward model, as a logit; `copied`, word by word from a candidate.
    """
    import pyarrow as pa

    kinds = {name: pa.string() for name in TEXTS} | {name: pa.int64() for name in NUMBERS}
    kinds |= {name: pa.bool_() for name in FLAGS} | {"candidates": pa.list_(pa.int64()), "score": pa.float64()}
    for grading in GRADINGS:
        kinds |= {f"answer_{grading}": pa.string(), f"correct_{grading}": pa.float64(), f"class_{grading}": pa.int64()}
    return pa.schema(list(kinds.items()), metadata={"gsr": json.dumps(header)})


def write_samples(path: str | Path, samples: list[dict], header: dict) -> None:
    """Write samples and the run's settings to a parquet file, whole or not at all. A column that is absent is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gsr_rl.run_folder import atomic_path

    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(samples, schema=schema(header)), temporary)


def read_samples(path: str | Path, columns: list[str] | None = None) -> tuple[dict, list[dict]]:
    """The settings and the rows of a samples.parquet; a column that the file lacks is None in every row.

    Files of before a setting was kept have what it then was.

    Raises:
        ValueError: Another kind of file.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path}: not a samples.parquet of eval_gsr.py ({error})") from None
    with opened as file:
        metadata, known = file.schema_arrow.metadata or {}, set(file.schema_arrow.names)
        if b"gsr" not in metadata:
            raise ValueError(f"{path}: not a samples.parquet of eval_gsr.py (it lacks the run's settings)")
        wanted = columns if columns is not None else file.schema_arrow.names
        rows = file.read(columns=[name for name in wanted if name in known]).to_pylist()
    missing = dict.fromkeys(name for name in wanted if name not in known)
    return FIRST | json.loads(metadata[b"gsr"]), [missing | row for row in rows] if missing else rows


def skipped_of(samples: list[dict]) -> dict[str, dict[str, int]]:
    """By method, of those that have any: how many samples were `skipped`, and how many there are (`samples`)."""
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        one = found.setdefault(sample["method"], {"skipped": 0, "samples": 0})
        one["skipped"] += sample["skipped"]
        one["samples"] += 1
    return {method: one for method, one in found.items() if one["skipped"]}


def check_same_problems(here: dict, there: dict, keys: Iterable[tuple[str, str]], where: str = "") -> None:
    """Raises `ValueError` where a (benchmark, id) of both stands for another problem or gold answer."""
    for name, identity in keys:
        for what, one, other in zip(("problem", "answer"), here[name, identity], there[name, identity], strict=True):
            if one != other and None not in (one, other):
                raise ValueError(
                    f"{where}{identity} of {name} is not the same {what} in both runs ({one[:60]!r} and "
                    f"{other[:60]!r}): evaluate the same file, or give its rows ids of their own"
                )


def header_of(config, rows: list[dict], other: dict | None = None) -> dict:
    """The settings that belong to the figures: model, K, sampling of each stage, seed, versions, hardware.

    Args:
        config, rows: An `EvalConfig` and the problems.
        other: The settings of the run whose candidates are taken (`eval_stores.candidates_of_file`).
    """
    from gsr_rl.refinement.prompts import get_template
    from gsr_rl.run_folder import hardware, versions

    candidate = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_completion_length}
    return {
        "model": config.model,
        "candidates_model": other["candidates_model"] if other else config.model,
        "k": config.num_candidates,
        "num_problems": len(rows),
        "num_samples": config.num_generations,
        "num_candidate_sets": config.num_candidate_sets,
        "grouping": config.grouping,
        "methods": list(config.methods),
        "seed": config.seed,
        "sampling": {
            "candidate": other["sampling"]["candidate"] if other else candidate,
            "refinement": {
                "temperature": config.refinement_temperature,
                "top_p": config.refinement_top_p,
                "max_tokens": config.max_refinement_length,
            },
            "prompt_template": config.prompt_template,
            "prompt_template_version": get_template(config.prompt_template).version,
            "max_refinement_prompt_length": config.max_refinement_prompt_length,
            "unfinished_candidates": config.unfinished_candidates,
        },
        "engine": config.engine,
        "reward_model": config.reward_model,
        "candidates_from": config.candidates_from,
        "own_candidates": config.own_candidates,
        "versions": versions(),
        "hardware": hardware(),
    }
