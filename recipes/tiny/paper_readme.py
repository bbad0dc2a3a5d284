"""README's results: five lines of results/paper, those that speak against the method among them."""

from pathlib import Path

import paper_scaling
from paper_arms import Arm, differences, load

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
        arms = load(tables[name], results)
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
    headline, scaling, compute = (load(tables[name], results) for name in NEEDED)
    pools = scaling["grpo_k_pools"]
    tokens, rule, vote = at_equal_tokens(pools)
    ours, control = headline["grpo_k"], headline["sft_k_most"]
    short, longer = compute["grpo"], compute["sft_compute"]
    prompt = {number: right(pools, f"selfref@{number}") for number in (4, 8, 16)}
    sixteen, many = (right(pools, f"refine_and_vote@{number}") for number in (16, 64))
    of_seeds = "" if len(short.seeds) == len(ours.seeds) else f", over {NUMBERS[len(short.seeds)]}"
    lines = [
        f"One refinement of all candidates: {prompt[4]} with 4, {prompt[8]} with 8, {prompt[16]} with 16, which is "
        f"more than in training. Instead, draw 16 sets of eight, refine each, and let the refinements vote: "
        f"**{sixteen}** with 16 candidates ({tokens} tokens per problem), **{many}** with 64. A majority vote of "
        f"candidates that takes {tokens} tokens: {vote}.",
        f"After a long SFT, compared with more SFT at equal trained tokens, joint GRPO adds "
        f"**{less(ours, control, 'pass@1')}** to single answers and **{less(ours, control, 'selfref@K')}** to refined "
        f"ones.",
        f"*Against it:* on these toy problems a simple rule does better. Voting only among the candidates that report "
        f"passing their own check reaches {rule} with {tokens} tokens.",
        f"*Against it:* when the jointly trained model and the one with more SFT refine the same candidates, the base "
        f"model's, they differ by {less(ours, control, 'selfref_frozen')}.",
        f"*Against it:* after a short SFT, joint GRPO has {right(short, 'selfref@K')} in refined answers, more SFT at "
        f"equal trained tokens {right(longer, 'selfref@K')}: {less(short, longer, 'selfref@K')}{of_seeds}.",
    ]
    head = f"Percent right, or points of difference, with 95 % intervals over problems and {NUMBERS[len(ours.seeds)]}"
    few = " unless stated; few seeds make them wide." if len(ours.seeds) < 4 else " unless stated."
    return "\n".join([head + few, "", *(f"- {line}" for line in lines)])


def right(arm: Arm, column: str) -> str:
    """Problems right, percent, with the interval."""
    from gsr_rl.report.markdown import figure

    return figure(arm.estimate(column))


def less(new: Arm, old: Arm, column: str) -> str:
    """The paired difference in points, with its interval, and whether that holds zero."""
    from gsr_rl.report.intervals import estimate_over_seeds
    from gsr_rl.report.markdown import figure

    estimate = estimate_over_seeds(differences(new, column, old, column), signed=True)
    unsettled = " (not shown to differ from zero)" if estimate["low"] <= 0 <= estimate["high"] else ""
    return f"{'+' if estimate['value'] > 0 else ''}{figure(estimate)}{unsettled}"


def at_equal_tokens(pools: Arm) -> tuple[str, str, str]:
    """Tokens of refine and vote over 16; percent right of the verdict rule and of a vote with as many, or fewer."""
    rows = paper_scaling.rows_of(pools, min(pools.settings[0]["scaling"], key=len))
    composed = [row for row in rows if row["method"] == "refine and vote" and row["candidates"] == 16]
    tokens = max(row["tokens"] for row in composed)

    def percent(method: str) -> str:
        affordable = [row for row in rows if row["method"] == method and row["tokens"] <= 1.01 * tokens]
        return f"{100 * max(affordable, key=lambda row: row['tokens'])['value']:.1f}"

    return f"{tokens:,.0f}", percent("verdict"), percent("vote")
