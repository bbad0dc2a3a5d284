"""The shards of an evaluation: a store per kind, tied to what its units depend on; and the samples of other runs."""

import dataclasses
import hashlib
from collections import defaultdict
from pathlib import Path

from gsr_rl.engines.jobs import ShardStore
from gsr_rl.evaluation.methods import kinds_of, unit_id
from gsr_rl.refinement.prompts import get_template
from gsr_rl.report.samples import GRADINGS, check_same_problems, read_samples

PROBLEMS = ("dataset_name", "dataset_config", "dataset_split", "problem_column", "answer_column", "max_problems",
            "problem_seed", "dataset_kwargs", "row_filters")  # fmt: skip
SAMPLER = ("model", "engine", "engine_dtype", "max_model_length", "endpoint_options", "prompt_template", "seed",
           "chat_template")  # fmt: skip
CANDIDATE = ("num_generations", "temperature", "top_p", "max_completion_length")
REFINEMENT = ("num_candidates", "num_candidate_sets", "unfinished_candidates", "max_refinement_prompt_length",
              "refinement_temperature", "refinement_top_p", "max_refinement_length")  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json",
               "tokenizer_config.json", "chat_template.jinja")  # fmt: skip
PIECES, PIECE = 64, 4096  # of a weights file that are looked at


def weights_fingerprint(model: str | None) -> str | None:
    """A hash of a local model's configuration and of pieces of its weights; None for a name on the Hub.

    A model that is trained anew into the same folder is another model.
    """
    folder = Path(str(model))
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=8)
    weights = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    for path in sorted([*weights, *(folder / name for name in MODEL_FILES if (folder / name).is_file())]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for piece in range(PIECES):
                file.seek(piece * max(PIECE, size // PIECES))
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def _candidates_hash(path: str, sets: bool) -> str:
    """A hash of another run's candidates, and of the `sets` that it refined: its further methods change neither."""
    columns = ["benchmark", "problem_id", "method", "index", "text", "candidates"]
    _, samples = read_samples(path, columns)
    taken = {"direct": "text"} | ({"selfref": "candidates"} if sets else {})
    lines = [
        repr([*(sample[key] for key in columns[:4]), sample[taken[sample["method"]]]])
        for sample in samples
        if sample["method"] in taken
    ]
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()


def settings_of(kind: str, rows: list[dict], problem_config, config) -> dict:
    """What the units of a kind depend on: an evaluation may change whatever else it likes between two starts."""
    values = dataclasses.asdict(problem_config) | dataclasses.asdict(config)
    settings = {key: values[key] for key in (("benchmarks", "max_problems") if config.benchmarks else PROBLEMS)}
    texts = "\x1f".join(f"{unit_id(row)}\x1e{row['problem']}\x1e{row['answer']}" for row in rows)
    settings["problems_hash"] = hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()
    if kind == "scores":
        return settings | {"reward_model": config.reward_model, "weights": weights_fingerprint(config.reward_model)}
    if kind == "candidates" and not config.own_candidates:
        other = _candidates_hash(config.candidates_from, sets=False)
        return settings | {"own_candidates": False, "candidates_from": other}
    settings |= {key: values[key] for key in SAMPLER + (CANDIDATE if kind == "candidates" else REFINEMENT)}
    settings["template_version"] = get_template(config.prompt_template).version
    settings["weights"] = weights_fingerprint(config.model)
    if kind == "orders":
        settings["order_repeats"] = config.order_repeats
    if kind.startswith("refine_and_vote"):
        settings["refinements_per_pool"] = config.pools[int(kind.rpartition("_")[2])]
    if kind.startswith("tree"):
        settings["pool_sizes"] = max(config.pool_sizes)
    if kind == "selfref_frozen":
        settings["candidates_from"] = _candidates_hash(config.candidates_from, sets=True)
    return settings


def open_stores(rows: list[dict], problem_config, config) -> dict[str, ShardStore]:
    """The store of each kind that the configuration needs, in the order in which they are made.

    Raises:
        ValueError: A store holds the units of other settings. Names each key that differs.
    """
    folder = Path(config.output_dir) / "shards"
    kinds = kinds_of(config)
    return {kind: ShardStore(folder / kind, settings_of(kind, rows, problem_config, config)) for kind in kinds}


def _read_other(config) -> tuple[dict, dict, dict]:
    """The other run's settings; its candidates and its sets, by unit."""
    columns = ["benchmark", "problem_id", "problem", "gold", "method", "index", "text", "finished", "skipped"]
    columns += ["candidates", "tokens", "prompt_tokens"]
    columns += [f"{name}_{g}" for g in GRADINGS for name in ("answer", "correct", "class")]
    header, samples = read_samples(config.candidates_from, columns)
    if header["k"] != config.num_candidates:
        raise ValueError(
            f"candidates_from={config.candidates_from} has sets of {header['k']} candidates, num_candidates is "
            f"{config.num_candidates}: set it to {header['k']} or name another run"
        )
    direct, sets = defaultdict(list), defaultdict(dict)
    for sample in samples:
        unit = f"{sample['benchmark']}/{sample['problem_id']}"
        if sample["method"] == "direct":
            direct[unit].append(sample)
        elif sample["method"] == "selfref":
            sets[unit][sample["index"]] = sample["candidates"]
    for group in direct.values():
        group.sort(key=lambda sample: sample["index"])
    return header, direct, sets


def _check_holds(rows: list[dict], direct: dict[str, list[dict]], config) -> None:
    """The other run's candidates, by unit, are of these problems."""
    where = f"candidates_from={config.candidates_from}"
    ours, theirs = {}, {}
    for row in rows:
        if unit_id(row) not in direct:
            raise ValueError(
                f"{where} has no problem {row['id']} of {row['benchmark']}: evaluate the same problems (benchmarks, "
                "dataset_name, dataset_split, problem_seed, max_problems, dataset_kwargs) as that run"
            )
        first = direct[unit_id(row)][0]
        ours[row["benchmark"], row["id"]] = (row["problem"], row["answer"])
        theirs[row["benchmark"], row["id"]] = (first["problem"], first["gold"])
    check_same_problems(ours, theirs, ours, f"{where}: ")


def frozen_sets(rows: list[dict], config) -> dict[str, tuple[list[dict], dict[int, list[int]]]]:
    """The candidates and the candidate sets that another run refined, by unit.

    Raises:
        ValueError: The other run has other sizes of sets, lacks a problem, or refined nothing.
    """
    header, direct, sets = _read_other(config)
    _check_holds(rows, direct, config)
    if not sets:
        raise ValueError(
            f"candidates_from={config.candidates_from} has refined nothing (methods: {', '.join(header['methods'])}), "
            "so there are no sets to refine over: run it again with selfref among its methods, which samples no "
            "candidates anew, or take its candidates by own_candidates=false"
        )
    return {unit_id(row): (direct[unit_id(row)], sets[unit_id(row)]) for row in rows}


def candidates_of_file(rows: list[dict], config) -> tuple[list[dict], dict]:
    """The candidates of another run as units, and its settings, whose `sets_seed` gives the same candidate sets.

    Raises:
        ValueError: The other run has other sizes or numbers of sets, other numbers of candidates, or lacks a problem.
    """
    header, direct, _ = _read_other(config)
    _check_holds(rows, direct, config)
    for key, name in (("num_samples", "num_generations"), ("num_candidate_sets", "num_candidate_sets")):
        if header[key] != getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)}: candidates_from={config.candidates_from} has {header[key]}, and "
                f"own_candidates=false takes its sets: set {name} to {header[key]}"
            )
    dropped = ("benchmark", "problem_id", "problem", "gold", "candidates")
    units = []
    for row in rows:
        samples = [
            {key: value for key, value in sample.items() if key not in dropped}
            | {"stage": "candidate", "repeat": 0, "skipped": bool(sample["skipped"])}
            for sample in direct[unit_id(row)]
        ]
        units.append({"unit": unit_id(row), "samples": samples})
    return units, {"sets_seed": header["seed"], "candidates_model": header["model"]} | header
