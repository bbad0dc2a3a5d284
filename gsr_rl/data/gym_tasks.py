"""Problems of reasoning-gym's tasks: splits that share no text, and answers that rewards can grade."""

import difflib
from types import ModuleType

DEFAULT_PROBLEMS = 1000  # of a generated set without max_problems

# A problem of these has several right answers, or one in any order: only the task's own scorer could tell.
SEVERAL_RIGHT = {
    "boxnet", "codeio", "composite", "countdown", "cryptarithm", "graph_color", "group_anagrams",
    "intermediate_integration", "jugs", "kakurasu", "knight_swap", "n_queens", "palindrome_generation",
    "palindrome_partitioning", "propositional_logic", "puzzle24", "quantum_lock", "rubiks_cube", "rush_hour",
    "shortest_path", "simple_integration", "sokoban", "survo", "tower_of_hanoi", "word_ladder",
}  # fmt: skip

# A problem of these asks for a form: factors, lowest terms, an expanded product, three digits. Rewards compare values,
# so that the problem's own text would be right, or what it asks for wrong.
ASKS_FOR_A_FORM = {"fraction_simplification", "polynomial_multiplication", "power_function", "prime_factorization"}

# Generated rows belong to the split of their text's hash, in shares of 100 buckets: no two splits share a text,
# whatever the task, its difficulty and the seed. `train` is `sft`, `grpo` and `base` together; `base` is for making a
# base or a teacher.
GYM_SPLITS = {
    "train": (0, 60),
    "sft": (0, 25),
    "grpo": (25, 50),
    "base": (50, 60),
    "validation": (60, 80),
    "test": (80, 100),
}
_SEEDS_A_SPLIT = 1_000_000_000
_SEEDS_A_RUN = 1_000_000


def installed(name: str) -> ModuleType:
    """reasoning-gym, which `name` needs. Raises `ValueError` where it is not installed."""
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(f"{name} needs reasoning-gym: pip install 'gsr-rl[demo]'") from None
    return reasoning_gym


def generate(config, task: str, options: dict) -> list[dict]:
    """Rows of a reasoning-gym task, as `problems.read_problems` gives them.

    reasoning-gym seeds row i with seed + i, and small tasks repeat texts at any distance of seeds. So a split has its
    own far range of seeds, and keeps only the texts that its hash buckets hold.

    Raises:
        ValueError: No such task, split, seed or options, too few problems, or answers that the verifier cannot grade.
    """
    from gsr_rl.data.sources import problem_id
    from rewards.golds import read_gold

    reasoning_gym = installed(config.dataset_name)
    if task not in (known := reasoning_gym.factory.DATASETS):
        near = difflib.get_close_matches(task, known, n=1)
        hint = f", did you mean reasoning_gym/{near[0]}" if near else ""
        raise ValueError(f"reasoning_gym/{task}: reasoning-gym has no such task{hint}")
    refused = {
        "have several right answers, and rewards know one of them": SEVERAL_RIGHT,
        "ask for a form of a value, and rewards compare values": ASKS_FOR_A_FORM,
    }
    if why := next((why for why, tasks in refused.items() if task in tasks), None):
        raise ValueError(
            f"reasoning_gym/{task}: its problems {why}: take another task, or write its rows into a file and grade "
            "them by a reward function of your own"
        )
    if config.dataset_split not in GYM_SPLITS:
        raise ValueError(f"dataset_split={config.dataset_split!r}: use one of {sorted(GYM_SPLITS)}")
    if not 0 <= config.problem_seed < _SEEDS_A_SPLIT // _SEEDS_A_RUN:
        raise ValueError(f"problem_seed={config.problem_seed}: 0 to {_SEEDS_A_SPLIT // _SEEDS_A_RUN - 1} is expected")
    wanted = config.max_problems or DEFAULT_PROBLEMS
    place = {"validation": 1, "test": 2}.get(config.dataset_split, 0)
    start = place * _SEEDS_A_SPLIT + config.problem_seed * _SEEDS_A_RUN
    low, high = GYM_SPLITS[config.dataset_split]
    size = min(_SEEDS_A_RUN, 20 * wanted * 100 // (high - low) + 1000)
    try:
        source = reasoning_gym.create_dataset(task, seed=start, size=size, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"dataset_kwargs={options}: reasoning_gym/{task} does not take them: {error}") from None
    rows: dict[str, dict] = {}
    unreadable: dict[str, str] = {}
    for entry in source:
        text = entry["question"]
        key = problem_id(text)
        if entry["answer"] is None or key in rows or not low <= int(key, 16) % 100 < high:
            continue
        if read_gold(str(entry["answer"])) is None:
            unreadable[key] = str(entry["answer"])
            continue
        rows[key] = {"id": f"{task}-{key}", "problem": text, "answer": str(entry["answer"]), "task": task}
        if len(rows) == wanted:
            return list(rows.values())
    if unreadable:
        raise ValueError(
            f"reasoning_gym/{task}: rewards cannot read {len(unreadable)} of {len(unreadable) + len(rows)} answers, "
            f"such as {next(iter(unreadable.values()))[:60]!r}: take another task"
        )
    raise ValueError(
        f"max_problems={wanted}: reasoning_gym/{task} has only {len(rows)} different problems in {size} rows of its "
        f"{config.dataset_split} split: lower max_problems or make the task harder by dataset_kwargs"
    )
