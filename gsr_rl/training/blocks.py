"""TODO."""

import math
from dataclasses import dataclass, field


@dataclass
class Rollout:
    """One sampled completion of one stage.

    `usable` is False for a row that only keeps the batch's shape (its prompt did not fit, or there was no candidate
    to show): one token, masked, outside every mean. `correct` is None where it could not be graded. `vote_class`
    numbers the different answers of a problem, refinements' and candidates' alike. `rewards` has one value a reward
    function, NaN where it has no say. `dropped` is set on a group that is left out of the denominator.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float] | None
    text: str
    finished: bool
    usable: bool = True
    correct: float | None = None
    vote_class: int | None = None
    rewards: list[float] = field(default_factory=list)
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

    def rows(self, stages: list[str]) -> list[tuple[Rollout, str]]:
        """The block's rows of the batch, with their stage: those of the trained stages, candidates first."""
        both = [(c, "candidate") for c in self.candidates] + [(r, "refinement") for r in self.refinements]
        return [(rollout, stage) for rollout, stage in both if stage in stages]


@dataclass(frozen=True)
class Plan:
    """How problems are rolled out. Training's follows the configuration, evaluation's is one uniform set a problem."""

    generations: int
    num_candidates: int
    min_candidates: int | None = None
    num_sets: int = 1
    policy: str = "uniform"
    uniform_share: float = 0.0
    refine: bool = True
