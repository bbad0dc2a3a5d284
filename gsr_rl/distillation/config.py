"""Configuration of a distillation: models, sampling, which rows are made; and its checks. Imports no engine."""

import re
from dataclasses import dataclass
from typing import Any

from gsr_rl.engines.config import EngineConfig, check_engine, check_sampling
from gsr_rl.hub.config import DataSetHubConfig, check_hub
from gsr_rl.keys import at_least, check_model, key, mapping, raise_if_any
from gsr_rl.refinement.candidates import check_candidate_choice
from gsr_rl.refinement.settings import RefinementConfig, check_chat_template, check_refinement

EXPECTED = ("problems", "fitting", "solve_prompt_tokens", "candidate_tokens", "refinement_prompt_tokens",
            "refinement_tokens", "refinement_rows")  # fmt: skip
DIRECT_SOURCES = ("student", "student_right", "teacher", "gold", "none")


@dataclass
class TeacherConfig:
    """What the teacher may have of its own; each key defaults to the student's of like name."""

    teacher_engine: str | None = key(None, "As `engine`, for the teacher alone.")
    teacher_tensor_parallel_size: int | None = key(None, "As `tensor_parallel_size`, for the teacher alone.")
    teacher_endpoints: list[str] | None = key(None, "As `endpoints`, for the teacher alone.")
    teacher_endpoint_api: str | None = key(None, "As `endpoint_api`, for the teacher alone.")
    teacher_endpoint_tokenizer: str | None = key(None, "As `endpoint_tokenizer`, for the teacher alone.")
    teacher_endpoint_options: dict[str, Any] | str | None = key(None, "As `endpoint_options`, for the teacher alone.")
    teacher_chat_template: str | None = key(None, "As `chat_template`, for a teacher that is another model.")
    teacher_api_key_env: str | None = key(None, "As `api_key_env`, for the teacher alone.")


@dataclass
class DistillConfig(RefinementConfig, TeacherConfig, EngineConfig, DataSetHubConfig):
    """Distillation: the student's candidates, the teacher's refinements of them, verified and balanced."""

    min_num_candidates: int | None = key(
        None, "Show a random number of candidates, from this one to num_candidates, drawn for each set."
    )

    student_model: str | None = key(None, "Path or Hub name of the candidates' model.")
    teacher_model: str | None = key(None, "Path or Hub name of the refinements' model. Default: the student.")
    output_dir: str | None = key(None, "Folder of sft_rows.jsonl, the report and the shards it resumes from.")
    candidate_choice: str = key(
        "paper",
        "Which K of a problem's candidates a set shows: paper (all right ones, filled with wrong ones), uniform, "
        "balanced (as many right as wrong) or hard (right ones in the minority).",
    )
    uniform_share: float = key(0.5, "Share of sets chosen uniformly whatever candidate_choice, to keep majorities.")
    overlong_prompts: str = key(
        "cut",
        "A refinement prompt over its budget: its candidates lose their front (`cut`), or the set is left out "
        "(`drop`, as in the paper).",
    )
    refinements_per_set: int = key(10, "Refinements sampled per candidate set.")
    max_if_all_right: int = key(4, "Rows kept of a problem all of whose refinements are right; of others all right.")
    num_correct_shares: dict[int, float] | str | None = key(
        None,
        "Share of refinement rows by number of right candidates, adding up to 1: {0: 0.1, 1: 0.3, 2: 0.3, 3: 0.2, 4: "
        "0.1}. Rows above a share are left out at random. Default: as they come.",
    )
    direct_source: str = key(
        "teacher",
        "Direct solutions mixed in: `student` (its own samples, right or wrong), `student_right`, `teacher` (sampled "
        "and verified), `gold` (the rows' `solution`), or `none`.",
    )
    direct_ratio: float = key(1.0, "Direct rows per refinement row.")
    keep_duplicate_solutions: bool = key(
        False, "With direct_source: student, its distribution is kept: equal solutions, all problems alike."
    )
    direct_generations: int = key(4, "Direct solutions per problem by the teacher, with direct_source: teacher.")
    keep_thinking: bool = key(True, "Train on a completion's thinking part too; otherwise on what follows it.")
    problems_per_chunk: int = key(1024, "Problems of a shard at most; a shard is also written every minute.")
    shard: str | None = key(None, "i/n: do the i-th of n parts, i from 1. Without it, the rest, and the rows.")
    join: list[str] | None = key(None, "Folders (output_dir) of other machines' parts, whose units are taken over.")
    allow_unfinished: bool = key(False, "Make the rows although endpoints gave no answer for some problems.")
    expected: dict[str, float] | str | None = key(
        None,
        "What the dry run's figures are estimated from: problems (a Hub set is then not read), fitting (share of "
        "problems with a prompt in its budget), solve_prompt_tokens, candidate_tokens, refinement_prompt_tokens, "
        "refinement_tokens (means), refinement_rows (rows per problem).",
    )
    student_price: list[float] | None = key(None, "Prices of a million prompt and of a million completion tokens.")
    teacher_price: list[float] | None = key(None, "As `student_price`, of the teacher.")
    student_tokens_per_second: float | None = key(None, "For the dry run: completion tokens a second of the student.")
    teacher_tokens_per_second: float | None = key(None, "As `student_tokens_per_second`, of the teacher's engine.")

    def __post_init__(self):
        for name in ("endpoint_options", "teacher_endpoint_options", "num_correct_shares", "expected"):
            setattr(self, name, mapping(name, getattr(self, name)))
        RefinementConfig.__post_init__(self)
        if self.max_refinement_length is None:
            self.max_refinement_length = self.max_completion_length
        if self.teacher_model is None:
            self.teacher_model = self.student_model
        if self.teacher_model == self.student_model and self.teacher_chat_template is None:
            self.teacher_chat_template = self.chat_template
        self.join = [self.join] if isinstance(self.join, str) else self.join
        raise_if_any(check_distill(self))


def check_distill(c) -> list[str]:
    """The keys of `DistillConfig`."""
    return check_refinement(c) + check_sampling(c) + check_distillation(c) + check_hub(c)


def check_distillation(c) -> list[str]:
    """The keys of `DistillConfig` that it does not share with others."""
    messages = check_engine(c, "teacher_")
    if c.engine != "endpoint":
        messages += check_model(c, "student_model")
    elif not c.student_model:
        messages.append("student_model is not set: give the name by which the endpoints know it")
    if c.teacher_model and (c.teacher_engine or c.engine) != "endpoint":
        messages += check_model(c, "teacher_model")
    messages += check_chat_template(c, "student_model")
    if c.teacher_model not in (None, c.student_model):
        messages += check_chat_template(c, "teacher_model", "teacher_")
    if c.direct_source not in DIRECT_SOURCES:
        messages.append(f"direct_source={c.direct_source!r}: use one of {', '.join(DIRECT_SOURCES)}")
    if c.direct_ratio < 0:
        messages.append(f"direct_ratio={c.direct_ratio} is negative: set it to 0 or direct_source to none")
    messages += at_least(c, 1, "refinements_per_set", "max_if_all_right", "direct_generations", "problems_per_chunk")
    messages += check_candidate_choice(c)
    if c.overlong_prompts not in ("cut", "drop"):
        messages.append(f"overlong_prompts={c.overlong_prompts!r}: use cut or drop")
    messages += _check_shares(c) + _check_shard(c)
    return messages + _check_prices(c) + _check_expected(c)


def _check_prices(c) -> list[str]:
    prices = {name: getattr(c, name) for name in ("student_price", "teacher_price")}
    return [
        f"{name}={price!r}: two numbers are expected, the price of a million prompt tokens and of a million "
        "completion tokens"
        for name, price in prices.items()
        if price is not None and (not isinstance(price, list | tuple) or len(price) != 2)
    ]


def _check_expected(c) -> list[str]:
    expected = c.expected or {}
    if not isinstance(expected, dict) or set(expected) - set(EXPECTED):
        return [f"expected={expected!r}: a mapping is expected, with keys of {', '.join(EXPECTED)}"]
    return [
        f"expected: {key}={value!r}: a number of at least 0 is expected"
        for key, value in expected.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf")
    ]


def _check_shares(c) -> list[str]:
    shares = c.num_correct_shares
    if shares is None:
        return []
    try:
        parts = {int(key): float(value) for key, value in shares.items()}
    except (AttributeError, TypeError, ValueError):
        return [f"num_correct_shares={shares!r}: a mapping is expected, such as {{0: 0.1, 1: 0.3, 2: 0.3, 3: 0.3}}"]
    if not all(0 <= key <= c.num_candidates for key in parts) or any(value < 0 for value in parts.values()):
        return [f"num_correct_shares={shares!r}: keys from 0 to num_candidates={c.num_candidates} and shares of at "
                "least 0 are expected"]  # fmt: skip
    if abs(sum(parts.values()) - 1) > 1e-6:
        return [f"num_correct_shares={shares!r} add up to {sum(parts.values()):g}: they must add up to 1"]
    return []


def _check_shard(c) -> list[str]:
    if c.shard is None:
        return []
    match = re.fullmatch(r"(\d+)/(\d+)", str(c.shard))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        return [f"shard={c.shard!r}: i/n is expected, counted from 1: 1/4, 2/4, 3/4, 4/4 on four machines"]
    return []
