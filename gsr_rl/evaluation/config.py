"""Configuration of the evaluation: which problems, which methods, how candidates are grouped."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from gsr_rl.data.config import check_problems
from gsr_rl.data.sources import LOCAL_SUFFIXES, as_list, file_kind, is_still_to_come
from gsr_rl.engines.config import EngineConfig, check_sampling
from gsr_rl.engines.local import reward_model_messages
from gsr_rl.hub.config import ResultsHubConfig, check_hub, check_update_model_card
from gsr_rl.keys import at_least, check_model, check_output, key, mapping, one_of, raise_if_any
from gsr_rl.refinement.settings import RefinementConfig, check_chat_template, check_refinement, check_trained_for
from gsr_rl.report.samples import read_samples, samples_path

METHODS = ("selfref", "selfref_none", "selfref_foreign", "rounds", "select", "best_of_n", "weighted_vote", "orders",
           "flat", "refine_and_vote", "tree")  # fmt: skip
SCORED = ("best_of_n", "weighted_vote")  # need the reward model


@dataclass
class EvalConfig(RefinementConfig, EngineConfig, ResultsHubConfig):
    """Evaluation: candidates, what is made of them by several methods, and controls."""

    model: str | None = key(None, "Path or Hub name of the model to evaluate.")
    output_dir: str | None = key(None, "Folder of the reports, of samples.parquet and of the shards it resumes from.")
    benchmarks: list[str] | None = key(
        None,
        "Benchmarks by name, several in one run: aime24, aime25, amc23, amc22-23, math500, olympiadbench, gsm8k, "
        "minerva, hmmt, knights_knaves/N, knights_knaves/N/choice, reasoning_gym/TASK, tiny/mix, a local file, a Hub "
        "name. Stands in for dataset_name; max_problems is of each.",
    )
    benchmark_files: dict[str, Any] | str | None = key(
        None, "Local files in place of the Hub's sets: {aime24: FILE.jsonl}. Checked as the sets are."
    )
    benchmark_name: str | None = key(None, "Name in eval.json of what dataset_name holds. Default: from dataset_name.")
    split_by: str | None = key(None, "Key of the problem rows; the tables are also given for each of its values.")
    refinement_temperature: float | None = key(None, "Sampling temperature of refinements. Default: temperature.")
    refinement_top_p: float | None = key(None, "Nucleus of refinements. Default: top_p.")
    methods: list[str] = key(
        ["selfref", "selfref_none", "selfref_foreign"],
        "What is made of the candidates: selfref, selfref_none (no candidates), selfref_foreign (another problem's), "
        "rounds (refine over refinements), select (the model says which candidate is right), best_of_n, weighted_vote "
        "(both by reward_model), orders (the same set in other orders), flat (other sizes of the set), and for many "
        "candidates in sets of K refine_and_vote and tree.",
    )
    pool_sizes: list[int] | None = key(
        None,
        "With refine_and_vote and tree: N, the first so many candidates; several in one run, tree takes the largest. "
        "Default: num_generations.",
    )
    refinements_per_pool: int | None = key(
        None, "With refine_and_vote: R, refinements over sets of K drawn from a pool, which then vote. Default: N."
    )
    flat_sizes: list[int] | None = key(None, "With flat: sizes of the set in place of num_candidates.")
    refinement_rounds: int = key(2, "With rounds: how often K refinements are made over the K texts before them.")
    order_repeats: int = key(2, "With orders: refinements of a set in other orders, and as many in its own order.")
    verdict_pattern: str | None = key(
        None,
        "Regular expression: a candidate in which it is found says that its check held. Adds the vote among those, "
        "verdict@K, as a control.",
    )
    reward_model: str | None = key(None, "Path or Hub name of a sequence-classification model that scores candidates.")
    reward_batch_size: int = key(8, "Candidates scored at once.")
    grouping: str = key(
        "resampled",
        "Candidate sets of a problem: `disjoint` (no candidate in two sets, as in the GSR paper) or `resampled` (as "
        "many sets as asked for, overlapping where they must).",
    )
    num_candidate_sets: int | None = key(None, "M: candidate sets per problem. Default: 1; if disjoint, all.")
    candidates_from: str | None = key(None, "samples.parquet of another run: refine over its sets too (frozen).")
    own_candidates: bool = key(True, "false: take candidates and sets of candidates_from for every method.")
    from_samples: list[str] | None = key(
        None,
        "Folders of finished runs: make their tables and reports anew from samples.parquet, without a model. With "
        "several folders, of several seeds, also a table over them.",
    )
    regrade: bool = key(False, "With one run of from_samples: grade its texts anew first, into output_dir.")
    compare_with: str | None = key(
        None,
        "Folder of another model's run: also paired differences from it on the problems of both, in compare.md and "
        "compare.json. After an evaluation, or with one run of from_samples.",
    )
    problems_per_chunk: int = key(256, "Problems of a shard at most; a shard is also written every minute.")
    num_examples: int = key(3, "Triumphs and failures that report.html shows of each benchmark.")

    def __post_init__(self):
        vars(self).update(sampled_as_candidates(self))
        self.endpoint_options = mapping("endpoint_options", self.endpoint_options)
        self.benchmark_files = mapping("benchmark_files", self.benchmark_files)
        for name in ("methods", "benchmarks", "from_samples"):  # a YAML file may give one without brackets
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        RefinementConfig.__post_init__(self)
        if self.max_refinement_length is None:
            self.max_refinement_length = self.max_completion_length
        raise_if_any(check_eval(self))
        if self.num_candidate_sets is None:
            disjoint = self.num_generations // self.num_candidates
            self.num_candidate_sets = max(1, disjoint) if self.grouping == "disjoint" else 1
        self.pool_sizes, self.flat_sizes = sorted(self.pool_sizes or [self.num_generations]), self.flat_sizes or []

    @property
    def pools(self) -> dict[int, int]:
        """R, the refinements of each size N of a pool, of `refine_and_vote`."""
        sizes = self.pool_sizes if "refine_and_vote" in self.methods else []
        return {size: self.refinements_per_pool or size for size in sizes}


def check_eval_problems(c) -> list[str]:
    """Where the problems come from: `benchmarks`, or else the keys of `ProblemConfig`."""
    if c.from_samples:
        return []
    files = c.benchmark_files or {}
    if not c.benchmarks:
        if files:
            return [f"benchmark_files={files}: names files for benchmarks, and benchmarks is not set"]
        if not c.dataset_name:
            return [
                "neither benchmarks nor dataset_name is set: name what to evaluate on, such as --benchmarks aime24"
            ]
        return check_problems(c) + _check_reported_name(c)
    messages = [] if c.max_problems is None or c.max_problems >= 1 else [f"max_problems={c.max_problems}: at least 1"]
    messages += one_of(c, unusable_rows=("error", "drop"))
    return messages + _check_beside_benchmarks(c) + check_benchmarks(c)


def _check_reported_name(c) -> list[str]:
    """What `dataset_name` names is not reported as a benchmark: nothing checks that it is that one."""
    from gsr_rl.data import benchmarks

    path = Path(c.dataset_name)
    name = c.benchmark_name or (path.stem if file_kind(path) else "")
    if not benchmarks.is_name(name):
        return []
    key = f"benchmark_name={name}" if c.benchmark_name else f"dataset_name={path} would be reported as {name}"
    return [
        f"{key}: that is a benchmark's name, and here nobody checks that it is that one: evaluate it by --benchmarks "
        f"{name} (a file by --benchmark_files '{{{name}: FILE}}'), or give another benchmark_name"
    ]


def _check_beside_benchmarks(c) -> list[str]:
    """No key is set that is ignored where `benchmarks` is."""
    fixes = {
        "dataset_name": "only one of them says what is evaluated: name it in benchmarks, or unset one by null",
        "dataset_split": "a split is said with the name, such as tiny/mix@validation: leave the key out",
        "benchmark_name": "each goes by its own name: leave the key out, or give a file another name",
        "decontaminate_against": "they are evaluated whole: leave the key out, or use dataset_name",
    }
    values = {key: getattr(c, key) for key in fixes}
    return [
        f"{key}={value!r} is ignored when benchmarks is set: {fixes[key]}"
        for key, value in values.items()
        if value and (key, value) != ("dataset_split", "test")
    ]


def _check_read(c, sources: list) -> list[str]:
    """Keys about rows are read by one of the benchmarks; filters, which all would be taken to pass, by each."""
    messages = []
    for name in ("dataset_config", "dataset_kwargs", "problem_column", "answer_column", "row_filters"):
        without = [source.name for source in sources if name not in source.reads]
        if getattr(c, name) and without and (name == "row_filters" or len(without) == len(sources)):
            messages.append(
                f"{name}={getattr(c, name)!r} is ignored by {', '.join(without)}: leave the key out, or give a file "
                "of your own by dataset_name"
            )
    return messages


def check_benchmarks(c) -> list[str]:
    """Every benchmark is known and named once; every file belongs to one of them and exists."""
    from gsr_rl.data import benchmarks

    files = c.benchmark_files or {}
    try:
        files = yaml.safe_load(files) if isinstance(files, str) else files
    except yaml.YAMLError:
        files = None
    if not isinstance(files, dict):
        return [f"benchmark_files={c.benchmark_files!r}: a mapping of names to files is expected: {{aime24: FILE}}"]
    messages, sources = [], []
    for name in as_list(c.benchmarks):
        try:
            sources.append(benchmarks.resolve(str(name), files))
        except ValueError as error:
            messages.append(str(error))
    messages += _check_read(c, sources)
    names = [source.name for source in sources]
    messages += [
        f"benchmarks: {name} is named twice: leave one out, or rename one of two files, since figures go by name"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    used = {source.file for source in sources}
    for name, path in files.items():
        if str(path) not in used:
            messages.append(f"benchmark_files: {name} is none of benchmarks ({', '.join(names)}): add it there")
    for path in sorted(filter(None, used)):
        if not file_kind(path) or not Path(path).is_file():
            messages.append(f"benchmarks: {path}: there is no such file, give a {', '.join(LOCAL_SUFFIXES)} file")
    return messages


def sampled_as_candidates(c) -> dict[str, float]:
    """How refinements are sampled: where a key says nothing, as candidates."""
    pairs = {key: (getattr(c, f"refinement_{key}"), getattr(c, key)) for key in ("temperature", "top_p")}
    return {f"refinement_{key}": candidates if value is None else value for key, (value, candidates) in pairs.items()}


def check_eval(c) -> list[str]:
    """The keys of `EvalConfig`."""
    if c.from_samples:
        return _check_folders(c) + check_output(c) + _check_compared(c) + _check_beside_samples(c)
    disjoint = max(1, c.num_generations // c.num_candidates) if c.num_candidates > 0 else 1
    number = 1 if c.num_candidate_sets is None else c.num_candidate_sets
    sampling = SimpleNamespace(**vars(c) | {"num_candidate_sets": number} | sampled_as_candidates(c))
    messages = check_refinement(c) + check_sampling(sampling) + _check_methods(c) + _check_candidates(c)
    messages += _check_compared(c)
    messages += check_hub(c) + check_update_model_card(c) + check_trained_for(c, "model")
    asks = c.own_candidates or set(as_list(c.methods)) - set(SCORED)
    if asks:
        messages += check_chat_template(c, "model")
    if asks and c.engine != "endpoint":
        messages += check_model(c, "model")
    elif asks and not c.model:
        messages.append("model is not set: give the name by which the endpoints know it")
    if c.num_generations < c.num_candidates + 1:
        messages.append(
            f"num_generations={c.num_generations} is too few for maj@{c.num_candidates + 1}, the compute-matched "
            f"vote: set num_generations to at least {c.num_candidates + 1}"
        )
    messages += one_of(c, grouping=("disjoint", "resampled"))
    if c.grouping == "disjoint" and number > disjoint:
        messages.append(
            f"num_candidate_sets={c.num_candidate_sets} x num_candidates={c.num_candidates} is more than "
            f"num_generations={c.num_generations}, so sets would share candidates: set num_candidate_sets to at most "
            f"{disjoint}, or grouping to resampled"
        )
    messages += at_least(c, 1, "problems_per_chunk", "reward_batch_size") + at_least(c, 0, "num_examples")
    return messages or _check_kept(c)


def _check_kept(c) -> list[str]:
    """What the folder's samples.parquet holds is in the one that takes its place, with the same K."""
    path = Path(str(c.output_dir)) / "samples.parquet"
    if not path.is_file():
        return []
    header, samples = read_samples(path, ["round", "method", "pool"])
    where, otherwise = f"output_dir={c.output_dir}", "or give another output_dir"
    if header["k"] != c.num_candidates:
        return [f"num_candidates={c.num_candidates}: {where} has K = {header['k']}: set it to that, {otherwise}"]
    messages, methods = [], as_list(c.methods)
    if lost := [name for name in header["methods"] if name not in methods]:
        names = " ".join([*methods, *lost])
        messages.append(
            f"{where} has {', '.join(lost)}, which methods lacks: name them too (--methods {names}), {otherwise}"
        )
    for method, name in (("refine_and_vote", "pool_sizes"), ("flat", "flat_sizes")):
        sizes = {sample["pool"] for sample in samples if sample["method"] == method}
        if method in methods and (lost := sorted(sizes - set(getattr(c, name) or [c.num_generations]))):
            messages.append(f"{where} has {method} of {lost}, which {name} lacks: name them too, {otherwise}")
    rounds = max((sample["round"] or 0 for sample in samples if sample["method"] == "rounds"), default=0)
    if "rounds" in methods and c.refinement_rounds < rounds:
        messages.append(
            f"refinement_rounds={c.refinement_rounds}: {where} has {rounds} rounds: set it to that, {otherwise}"
        )
    if header["candidates_from"] and not c.candidates_from:
        origin = header["candidates_from"]
        messages.append(f"{where} has refinements over {origin}: set candidates_from to that, {otherwise}")
    return messages


def _check_methods(c) -> list[str]:
    """Every method is known, and has what it needs."""
    methods, messages = as_list(c.methods), []
    if unknown := [name for name in methods if name not in METHODS]:
        messages.append(f"methods={unknown}: use {', '.join(METHODS)}")
    if doubled := sorted({name for name in methods if methods.count(name) > 1}):
        messages.append(f"methods names {', '.join(doubled)} twice")
    if "rounds" in methods and c.refinement_rounds < 1:
        messages.append(f"refinement_rounds={c.refinement_rounds}: at least 1 is needed, 2 refines over refinements")
    if "orders" in methods and c.order_repeats < 2:
        messages.append(
            f"order_repeats={c.order_repeats}: at least 2 are needed, or what the order does cannot be told from what "
            "sampling again does"
        )
    for method in ("orders", "select", "tree"):
        if method in methods and c.num_candidates < 2:
            messages.append(f"methods: {method} needs num_candidates of at least 2, got {c.num_candidates}")
    messages += _check_sizes(c, methods) + _check_pattern(c)
    scored = [method for method in methods if method in SCORED]
    if scored and not c.reward_model:
        messages.append(
            f"methods: {' and '.join(scored)} need reward_model, a sequence-classification model: name one"
        )
    if c.reward_model and not scored:
        messages.append(f"reward_model={c.reward_model} is not used: add {' or '.join(SCORED)} to methods")
    return messages + (_check_reward_model(c) if c.reward_model and scored else [])


def _check_pattern(c) -> list[str]:
    try:
        re.compile(c.verdict_pattern or "")
    except re.error as error:
        return [f"verdict_pattern={c.verdict_pattern!r} is no regular expression: {error}"]
    return []


def _check_sizes(c, methods: list[str]) -> list[str]:
    """Pools and flat sets are of as many candidates as there are, and their keys are read by a method."""
    messages = at_least(c, 1, "refinements_per_pool") if c.refinements_per_pool is not None else []
    readers = {"pool_sizes": ("refine_and_vote", "tree"), "refinements_per_pool": ("refine_and_vote",)}
    readers["flat_sizes"] = ("flat",)
    for name, of in readers.items():
        if getattr(c, name) and not set(of) & set(methods):
            messages.append(f"{name}={getattr(c, name)} is not used: add {' or '.join(of)} to methods")
    if "flat" in methods and not c.flat_sizes:
        messages.append("methods: flat needs flat_sizes, sizes of the set beside num_candidates, such as 8")
    for name, least in (("pool_sizes", c.num_candidates), ("flat_sizes", 1)):
        sizes = getattr(c, name) or []
        wrong = [size for size in sizes if not least <= size <= c.num_generations]
        if wrong:
            messages.append(
                f"{name}={wrong}: from {least} to num_generations={c.num_generations} candidates are expected"
            )
        if len(set(sizes)) < len(sizes):
            messages.append(f"{name}={sizes} names a size twice")
    if c.num_candidates in (c.flat_sizes or []):
        messages.append(f"flat_sizes={c.flat_sizes}: {c.num_candidates} is num_candidates, which selfref is over")
    return messages


def _check_reward_model(c) -> list[str]:
    """A local reward model is one; one of the Hub is asked for its configuration before anything is sampled."""
    messages = check_model(c, "reward_model")
    path = Path(str(c.reward_model)) / "config.json"
    if messages or not path.is_file():
        return messages
    return reward_model_messages(c.reward_model, json.loads(path.read_text(encoding="utf-8")))


def _check_candidates(c) -> list[str]:
    if c.candidates_from and not Path(c.candidates_from).is_file():
        return [f"candidates_from={c.candidates_from}: there is no such file, give a run's samples.parquet"]
    if not c.own_candidates and not c.candidates_from:
        return ["own_candidates=false needs candidates_from: the samples.parquet whose candidates are taken"]
    return []


def _check_folders(c) -> list[str]:
    """Every folder of `from_samples` holds samples."""
    messages = []
    for folder in as_list(c.from_samples):
        if not samples_path(folder).is_file():
            messages.append(f"from_samples={folder}: there is no samples.parquet, run eval_gsr.py first")
    if len(as_list(c.from_samples)) > 1 and not c.output_dir:
        messages.append("from_samples names several runs: give the folder of the table over them by output_dir")
    return messages


def _check_beside_samples(c) -> list[str]:
    """No key is set that asks for more than tables."""
    fix = "leave the key out; the command that made the run samples nothing anew, so it can be given with the key"
    return [
        f"{key}=true is ignored with from_samples, which only makes tables: {fix}"
        for key in ("update_model_card", "push_to_hub", "dry_run")
        if getattr(c, key)
    ]


def _check_compared(c) -> list[str]:
    """`compare_with` is one finished run, set against one other."""
    if not c.compare_with:
        return []
    runs, other = as_list(c.from_samples) or as_list(c.output_dir), samples_path(c.compare_with)
    if not other.is_file() and not (c.dry_run and is_still_to_come(c.compare_with)):
        return [f"compare_with={c.compare_with}: there is no samples.parquet, run eval_gsr.py first"]
    if len(runs) > 1:
        return [f"compare_with={c.compare_with}: from_samples names {len(runs)} runs: name one to compare"]
    if runs and samples_path(runs[0]).resolve() == other.resolve():
        return [f"compare_with={c.compare_with} is the run itself: name the run of another model"]
    return []
