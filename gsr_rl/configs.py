"""Configuration dataclasses: our own keys on top of TRL's. The YAML files in `recipes/` hold these keys."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from gsr_rl.checks import check_grpo, check_refinement, raise_if_any


@dataclass
class ProblemConfig:
    """Where problems come from."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set on the Hugging Face Hub, a local file (.jsonl, .json, .parquet, .csv), "
            "`tiny/chain`, `tiny/guess` or `tiny/mix` (the tiny world), or `reasoning_gym/TASK`."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to read: train, validation or test."})
    problem_column: str | None = field(
        default=None, metadata={"help": "Column with the problem text. Default: `problem`, else `question`."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column with the reference answer. Default: `answer`, else `solution`."}
    )
    max_problems: int | None = field(default=None, metadata={"help": "Use the first N problems only."})
    problem_seed: int = field(default=0, metadata={"help": "Seed of generated problems (tiny world, reasoning-gym)."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of the problem generator, such as its difficulty."}
    )


@dataclass
class RefinementConfig:
    """How candidates are shown to the model that refines them: the same from distillation to serving."""

    num_candidates: int = field(default=4, metadata={"help": "K: candidates shown in a refinement prompt."})
    prompt_template: str = field(
        default="gsr", metadata={"help": "Wording of the two prompts: a name from gsr_rl/prompts.py (gsr, tiny)."}
    )
    max_refinement_prompt_length: int = field(
        default=8192,
        metadata={"help": "Budget of a refinement prompt in tokens. Longer candidates lose their front to fit."},
    )
    unfinished_candidates: str = field(
        default="drop",
        metadata={
            "help": "A candidate that ran into its length limit is not shown (`drop`), or shown as it is (`cut`)."
        },
    )

    def __post_init__(self):
        raise_if_any(check_refinement(self))


@dataclass
class GSRConfig(RefinementConfig, GRPOConfig):
    """Joint GRPO on candidates and refinements. Every key of TRL's GRPOConfig keeps its meaning.

    `num_generations` is G, the rollouts per problem and stage; `max_completion_length` limits candidates.
    """

    num_candidate_sets: int = field(
        default=1, metadata={"help": "M: candidate sets per problem. Each gets G/M refinements; M divides G."}
    )
    max_refinement_length: int | None = field(
        default=None, metadata={"help": "Limit of a refinement in tokens. Default: max_completion_length."}
    )
    candidate_weight: float = field(
        default=1.0, metadata={"help": "Weight of the candidates' loss. 0: candidates are sampled, not trained."}
    )
    refinement_weight: float = field(
        default=1.0, metadata={"help": "Weight of the refinements' loss. 0: no refinement is sampled."}
    )
    candidate_objective: str = field(
        default="pass@1",
        metadata={
            "help": "Advantage of candidates: `pass@1` (plain) or `pass@k` (a candidate's part in the expected best "
            "of K; keeps the diversity that refinement lives on)."
        },
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy"],
        metadata={"help": "Rewards of both stages by name (accuracy, format, length) or as module:function."},
    )
    vllm_dtype: str = field(
        default="auto", metadata={"help": "Number format of the colocated engine: auto, float32, bfloat16."}
    )
    vllm_enforce_eager: bool | None = field(
        default=None, metadata={"help": "Do not compile the engine's model. Default: eager on CPU, compiled on GPU."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything, print the resolved configuration and the batch, load no weights."},
    )

    def __post_init__(self):
        raise_if_any(check_grpo(self))
        if self.max_refinement_length is None:
            self.max_refinement_length = self.max_completion_length
        GRPOConfig.__post_init__(self)

    @property
    def stages(self) -> list[str]:
        """The stages that are trained, in the order of their rows inside a problem's block."""
        return [
            stage
            for stage, weight in (("candidate", self.candidate_weight), ("refinement", self.refinement_weight))
            if weight > 0
        ]

    @property
    def block_size(self) -> int:
        """Rows of one problem: `num_generations` for each trained stage."""
        return len(self.stages) * self.num_generations
