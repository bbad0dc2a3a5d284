"""Configuration of the evaluation: which problems, which methods, how candidates are grouped."""

from dataclasses import dataclass, field
from typing import Any

from gsr_rl.engines.config import EngineConfig
from gsr_rl.eval_checks import check_eval, sampled_as_candidates
from gsr_rl.hub.config import ResultsHubConfig
from gsr_rl.keys import mapping, raise_if_any
from gsr_rl.refinement.settings import RefinementConfig


@dataclass
class EvalConfig(RefinementConfig, EngineConfig, ResultsHubConfig):
    """Evaluation: candidates, what is made of them by several methods, and controls."""

    model: str | None = field(default=None, metadata={"help": "Path or Hub name of the model to evaluate."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the reports, of samples.parquet and of the shards it resumes from."}
    )
    benchmarks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Benchmarks by name, several in one run: aime24, aime25, amc23, amc22-23, math500, olympiadbench, "
            "gsm8k, minerva, hmmt, knights_knaves/N, knights_knaves/N/choice, reasoning_gym/TASK, tiny/mix, a local "
            "file, a Hub name. Stands in for dataset_name; max_problems is of each."
        },
    )
    benchmark_files: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Local files in place of the Hub's sets: {aime24: FILE.jsonl}. Checked as the sets are."},
    )
    benchmark_name: str | None = field(
        default=None, metadata={"help": "Name in eval.json of what dataset_name holds. Default: from dataset_name."}
    )
    split_by: str | None = field(
        default=None, metadata={"help": "Key of the problem rows; the tables are also given for each of its values."}
    )
    refinement_temperature: float | None = field(
        default=None, metadata={"help": "Sampling temperature of refinements. Default: temperature."}
    )
    refinement_top_p: float | None = field(default=None, metadata={"help": "Nucleus of refinements. Default: top_p."})
    methods: list[str] = field(
        default_factory=lambda: ["selfref", "selfref_none", "selfref_foreign"],
        metadata={
            "help": "What is made of the candidates: selfref, selfref_none (no candidates), selfref_foreign (another "
            "problem's), rounds (refine over refinements), select (the model says which candidate is right), "
            "best_of_n, weighted_vote (both by reward_model), orders (the same set in other orders)."
        },
    )
    refinement_rounds: int = field(
        default=2, metadata={"help": "With rounds: how often K refinements are made over the K texts before them."}
    )
    order_repeats: int = field(
        default=2,
        metadata={"help": "With orders: refinements of a set in other orders, and as many in its own order."},
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of a sequence-classification model that scores candidates."},
    )
    reward_batch_size: int = field(default=8, metadata={"help": "Candidates scored at once."})
    grouping: str = field(
        default="resampled",
        metadata={
            "help": "Candidate sets of a problem: `disjoint` (no candidate in two sets, as in the GSR paper) or "
            "`resampled` (as many sets as asked for, overlapping where they must)."
        },
    )
    num_candidate_sets: int | None = field(
        default=None,
        metadata={"help": "M: candidate sets per problem. Default: 1; with grouping: disjoint all that there are."},
    )
    candidates_from: str | None = field(
        default=None,
        metadata={"help": "samples.parquet of another run: also refine over that run's candidate sets (frozen)."},
    )
    own_candidates: bool = field(
        default=True,
        metadata={
            "help": "false: sample no candidates, take those of candidates_from, and its sets, for every method."
        },
    )
    from_samples: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of finished runs: make their tables and reports anew from samples.parquet, without a "
            "model. With several folders, of several seeds, also a table over them."
        },
    )
    compare_with: str | None = field(
        default=None,
        metadata={
            "help": "Folder of another model's run: also paired differences from it on the problems of both, in "
            "compare.md and compare.json. After an evaluation, or with one run of from_samples."
        },
    )
    problems_per_chunk: int = field(
        default=256, metadata={"help": "Problems of a shard at most; a shard is also written every minute."}
    )
    num_examples: int = field(
        default=3, metadata={"help": "Triumphs and failures that report.html shows of each benchmark."}
    )

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
            most = self.num_generations // self.num_candidates
            self.num_candidate_sets = max(1, most) if self.grouping == "disjoint" else 1
