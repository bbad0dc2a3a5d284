"""Rollouts for the eye: a problem, its candidates side by side, then a refinement; right is green, wrong is red."""

from gsr_rl.rollout import Block

SHOWN_CHARACTERS = 700  # of the end of a completion, where its answer stands


def print_examples(blocks: list[Block], number: int, step: int, file=None) -> None:
    """Print up to `number` problems, first those that a refinement fixed or broke.

    Args:
        blocks: The step's problems.
        file: Where to; standard output by default. Colours only on a terminal.
    """
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = Console(file=file, width=None if file is None else 120)

    def panel(title: str, rollout) -> Panel:
        colour = {1.0: "green", 0.0: "red"}.get(rollout.correct, "yellow")
        verdict = {1.0: "right", 0.0: "wrong"}.get(rollout.correct, "not graded")
        cut = "" if rollout.finished else ", cut off"
        text = rollout.text if len(rollout.text) <= SHOWN_CHARACTERS else "... " + rollout.text[-SHOWN_CHARACTERS:]
        return Panel(Text(text), title=f"{title}: {verdict}{cut}", border_style=colour)

    for block in sorted(blocks, key=_interest, reverse=True)[:number]:
        one = block.sets[0] if block.sets and block.sets[0].shown else None
        shown = one.shown if one else range(min(4, len(block.candidates)))
        parts = [Text(f"problem {block.problem_id}: {block.row['problem'][:SHOWN_CHARACTERS]}")]
        parts.append(Text(f"answer: {block.answer}"))
        candidates = [panel(f"candidate {place}", block.candidates[i]) for place, i in enumerate(shown, 1)]
        parts.append(Columns(candidates, equal=True, expand=True))
        if one and one.refinements:
            parts.append(panel("refinement", one.refinements[0]))
        console.print(Panel(Group(*parts), title=f"step {step}"))


def _interest(block: Block) -> float:
    """How much a refinement differs from its candidates: fixed, broken, or neither."""
    if not block.sets or not block.sets[0].shown or not block.sets[0].refinements:
        return 0.0
    shown = [block.candidates[i].correct or 0.0 for i in block.sets[0].shown]
    return abs((block.sets[0].refinements[0].correct or 0.0) - sum(shown) / len(shown))
