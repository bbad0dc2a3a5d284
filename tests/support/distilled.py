"""A small distillation in the tiny world for tests: its configuration, and its units."""

from types import SimpleNamespace

from gsr_rl.data import tiny_world
from gsr_rl.distillation.distill import distill
from gsr_rl.engines.jobs import ShardStore
from tests.support.fixed_engine import FixedEngine


def problem_config(**more):
    from gsr_rl.data.config import ProblemConfig

    return ProblemConfig(dataset_name="tiny/mix", dataset_split="sft", max_problems=30, **more)


def config(folder, **more):
    from gsr_rl.distillation.config import DistillConfig

    (folder / "model").mkdir(exist_ok=True)
    values = {
        "student_model": str(folder / "model"),
        "teacher_model": str(folder),
        "output_dir": str(folder / "run"),
        "prompt_template": "tiny",
        "num_candidates": 3,
        "num_generations": 6,
        "num_candidate_sets": 2,
        "refinements_per_set": 3,
        "max_completion_length": 40,
        "problems_per_chunk": 4,
    }
    return DistillConfig(**(values | more))


def rows(number: int = 30) -> list[dict]:
    return tiny_world.generate("mix", "sft", number, 0)


def run(folder, **more) -> SimpleNamespace:
    """An uninterrupted run: folder, config, SFT rows, counts."""
    one = config(folder, **more)
    sft_rows, counts = distill(rows(), problem_config(), one, open_engine=FixedEngine)
    return SimpleNamespace(folder=folder, config=one, rows=sft_rows, counts=counts)


def units(whole):
    store = ShardStore.__new__(ShardStore)
    store.folder = whole.folder / "run" / "shards"
    return store.load("candidates"), store.load("refinements")
