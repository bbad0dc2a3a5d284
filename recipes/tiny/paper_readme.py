"""README's results: five lines of results/paper, those that speak against the method among them."""

from pathlib import Path

import paper_scaling
from paper_arms import Arm, load, seeds_of

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "results" / "paper"
BEGIN, END = "<!-- made by recipes/tiny/paper.py --report -->", "<!-- end -->"
NEEDED = ("headline", "scaling", "compute")  # the tables whose figures README has
NUMBERS = {1: "one seed", 2: "two seeds", 3: "three seeds", 4: "four seeds", 5: "five seeds"}


def write(tables: dict, results: Path) -> None:
    """README with its results made again, unless these are not the results that it shows."""
    from gsr_rl.run_folder import atomic_write

    if why := not_shown(tables, results):
        return print(f"README is left as it is: {why}")
    atomic_write(README, with_block(README.read_text(encoding="utf-8"), block(tables, results)))


def not_shown(tables: dict, results: Path) -> str | None:
    """Why README does not show these results; None if it does."""
    if results.resolve() != RESULTS:
        return f"its lines are made from {RESULTS.relative_to(ROOT)}, not from {results}"
    for name in NEEDED:
        arms = load(tables[name], results, seeds_of(results))
        if not {arm for claim in tables[name]["claims"] for arm, _ in (claim["new"], claim["old"])} <= set(arms):
            return f"not all arms of the table {name} are in {results}"
        splits = {settings["split"] for arm in arms.values() for settings in arm.settings}
        if splits != {"test"}:
            return f"the table {name} is of the {', '.join(sorted(splits))} problems, not of the test problems"
    return None


def with_block(text: str, lines: str) -> str:
    """README's text with its results replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{lines}\n{END}{rest.split(END)[1]}"


def block(tables: dict, results: Path) -> str:
    """Five lines; three of them speak against the method."""
    headline, scaling, compute = (load(tables[name], results, seeds_of(results)) for name in NEEDED)
    pools = scaling["grpo_k_pools"]
    tokens, rule, vote = at_equal_tokens(pools)
    ours, control = headline["grpo_k"], headline["sft_k_most"]
    short, longer = compute["grpo"], compute["sft_compute"]
    four, sixteen, many = (right(pools, name) for name in ("selfref@4", "refine_and_vote@16", "refine_and_vote@64"))
    lines = [
        f"More candidates help: right answers rise from {four} % with 4 candidates to {sixteen} % with 16 and {many} "
        f"% with 64, where sets of eight are refined and 16 refinements vote. A plain vote with as many tokens as the "
        f"16 take has {vote} %.",
        f"Joint GRPO against SFT continued with as many tokens: refined answers {less(ours, control, 'selfref@K')} "
        f"points, single answers {less(ours, control, 'pass@1')}.",
        f"*Against it:* where both read the same candidates, the base's, the difference is "
        f"{less(ours, control, 'selfref_frozen')}: joint GRPO is shown to improve the candidates, not the reading.",
        f"*Against it:* a rule does better in this world. A vote among the candidates that say that their check held "
        f"has {rule} % at {tokens} tokens, where refinement with 16 has {sixteen} %.",
        f"*Against it:* after a short SFT, joint GRPO refines no better than more SFT with as many tokens: "
        f"{right(short, 'selfref@K')} % against {right(longer, 'selfref@K')} % "
        f"({less(short, longer, 'selfref@K')}; {NUMBERS[len(short.seeds)]}).",
    ]
    intervals = f"{NUMBERS[len(ours.seeds)].capitalize()}; 95 % intervals over seeds and problems in brackets."
    return "\n".join([intervals, "", *(f"- {line}" for line in lines)])


def right(arm: Arm, column: str) -> str:
    """Problems right, percent."""
    return f"{100 * arm.estimate(column)['value']:.1f}"


def less(new: Arm, old: Arm, column: str) -> str:
    """The paired difference in points, with its interval."""
    from gsr_rl.refinement.metrics import share
    from gsr_rl.report.intervals import estimate_over_seeds
    from gsr_rl.report.markdown import figure

    pairs = zip(new.frames, old.frames, strict=True)
    estimate = estimate_over_seeds([share(a[column] - b[column]) for a, b in pairs], signed=True)
    return f"{'+' if estimate['value'] > 0 else ''}{figure(estimate)}"


def at_equal_tokens(pools: Arm) -> tuple[str, str, str]:
    """Tokens of refine and vote over 16; percent right of the verdict rule and of a vote with as many, or fewer."""
    rows = paper_scaling.rows_of(pools, min(pools.settings[0]["scaling"], key=len))
    composed = [row for row in rows if row["method"] == "refine and vote" and row["candidates"] == 16]
    tokens = max(row["tokens"] for row in composed)

    def percent(method: str) -> str:
        affordable = [row for row in rows if row["method"] == method and row["tokens"] <= 1.01 * tokens]
        return f"{100 * max(affordable, key=lambda row: row['tokens'])['value']:.1f}"

    return f"{tokens:,.0f}", percent("verdict"), percent("vote")
