"""What a rollout leaves of each problem: a block of candidates, candidate sets and refinements.

The flags, and who sets them:

    usable   of a rollout  the model was asked; else the row only keeps the batch's shape       when sampled
    fits     of a set      there was something to show and its prompt kept within the budget    when chosen
    scored   of a rollout  usable, and the verifier gave a grade                                follows from `correct`
    dropped  of a rollout  its group has no signal and is left out of the denominator           with the advantages
    counted  of a rollout  the loss counts it: scored, with a reward, not dropped               follows from the others
"""

import math
from dataclasses import dataclass, field

from gsr_rl.refinement.candidates import SetChoice


@dataclass(frozen=True, kw_only=True)
class Plan(SetChoice):
    """How problems are rolled out. Training's follows the configuration, evaluation's is one uniform set a problem.

    Attributes:
        generations: G, candidates per problem, and refinements if `refine`.
    """

    generations: int
    same_size: bool = True
    refine: bool = True

    @property
    def refinements_per_set(self) -> int:
        return self.generations // self.num_sets


@dataclass
class Rollout:
    """One sampled completion of one stage.

    Attributes:
        logprobs: The engine's, one per completion token; None if it gives none.
        usable: False for a row that only keeps the batch's shape: one token, masked, outside every mean.
        answer: Its boxed answer; None without one.
        correct: In [0, 1]; None where it could not be graded.
        vote_class: Numbers the different answers of a problem, refinements' and candidates' alike.
        reward_values: One per reward function, NaN where a function gives none.
        reward: Their weighted sum; NaN where unscored.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float] | None
    text: str
    finished: bool
    usable: bool = True
    answer: str | None = None
    correct: float | None = None
    vote_class: int | None = None
    reward_values: list[float] = field(default_factory=list)
    reward: float = float("nan")
    advantage: float = 0.0
    dropped: bool = False

    @property
    def scored(self) -> bool:
        """Whether it has a grade; a reward it has only later."""
        return self.usable and self.correct is not None

    @property
    def counted(self) -> bool:
        """Whether the loss counts it: it has a grade, its reward is a number, and its group is not dropped."""
        return self.scored and not math.isnan(self.reward) and not self.dropped


@dataclass
class CandidateSet:
    """The candidates that one refinement prompt shows, by index, and the refinements over them."""

    shown: list[int]
    policy: str = "uniform"
    num_cut: int = 0
    fits: bool = True
    refinements: list[Rollout] = field(default_factory=list)


@dataclass
class Block:
    """One problem: its row of the data set, G candidates, and its candidate sets with G refinements in all."""

    row: dict
    index: int = 0  # in the data set
    candidates: list[Rollout] = field(default_factory=list)
    sets: list[CandidateSet] = field(default_factory=list)

    @property
    def problem_id(self) -> str:
        return str(self.row["problem_id"])

    @property
    def answer(self) -> str:
        return str(self.row["answer"])

    @property
    def refinements(self) -> list[Rollout]:
        return [refinement for candidate_set in self.sets for refinement in candidate_set.refinements]

    def of_stage(self, stage: str) -> list[Rollout]:
        """The problem's candidates, or its refinements set by set."""
        return self.candidates if stage == "candidate" else self.refinements

    def rows(self, stages: list[str]) -> list[tuple[Rollout, str]]:
        """The block's rows of the batch, with their stage: those of the trained stages, candidates first."""
        both = [(stage, rollout) for stage in ("candidate", "refinement") for rollout in self.of_stage(stage)]
        return [(rollout, stage) for stage, rollout in both if stage in stages]
