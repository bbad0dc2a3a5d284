"""What `gsr-solve` shows: in a terminal candidates side by side while they are sampled, elsewhere plain text."""

import math
import re
import sys
import textwrap
import time

from gsr_rl.refinement.prompts import candidate_text
from gsr_rl.serving.solver import Watcher
from gsr_rl.serving.steps import Attempt, Solution

REFRESHES = 4  # per second of the live display: each delays sampling by some milliseconds
NARROWEST = 26  # columns of a candidate's box, including its border
LIVE_LINES = 8  # lines shown of a candidate while it is sampled, if there is room
DONE_LINES = 2  # lines shown of a candidate while the next stage is sampled

# A model's text must not move the cursor, clear the screen or set the clipboard.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_DEGRADED = {
    "fewer_candidates": "some candidates are missing, or could not be shown to the refinement",
    "unfinished_candidates": "no candidate was finished: unfinished ones were refined or voted on",
    "fewer_refinements": "some refinements are missing: the others voted",
    "no_usable_candidate": "no candidate could be shown: this is the majority's candidate",
    "prompt_too_long": "the problem and its candidates do not fit the prompt: this is the majority's candidate",
    "refinement_failed": "the refinement failed: this is the majority's candidate",
}


def printable(text: str) -> str:
    """Text without control characters, tabs as spaces."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\t", "    "))


def _votes(attempt: Attempt) -> str:
    return f"{attempt.votes} vote{'s' * (attempt.votes != 1)}"


def votes_line(attempts: list[Attempt], who: str = "Votes") -> str:
    """The distinct answers with their votes, most votes first."""
    groups = {attempt.group: attempt for attempt in reversed(attempts) if attempt.votes}
    by_votes = sorted(groups.values(), key=lambda attempt: -attempt.votes)
    parts = [f"{short(attempt)} ({attempt.votes})" for attempt in by_votes]
    silent = sum(not attempt.votes for attempt in attempts)
    return f"{who}: " + ", ".join(parts + ([f"no answer ({silent})"] if silent else []))


def refinements_votes(solution: Solution) -> list[str]:
    """The refinements' votes as one line; an empty list where they did not vote."""
    voted = len(solution.rounds) > 1 and any(attempt.votes for attempt in solution.rounds[-1])
    return [votes_line(solution.rounds[-1], "Votes of the refinements")] if voted else []


def cost_line(solution: Solution) -> str:
    """Tokens by stage, seconds, tokens per second."""
    usage = solution.usage
    parts = [f"{len(solution.candidates)} candidates: {usage.candidate_tokens:,} tokens"]
    if len(solution.rounds) > 1:
        count = sum(len(attempts) for attempts in solution.rounds[1:])
        parts.append(f"{count} refinement{'s' * (count > 1)}: {usage.refinement_tokens:,} tokens")
    parts.append(f"prompts: {usage.prompt_tokens:,} tokens")
    rate = usage.completion_tokens / max(solution.seconds, 1e-9)
    return "; ".join(parts) + f"; {solution.seconds:.1f} s, {rate:,.0f} tokens/s"


def short(attempt: Attempt, width: int = 40) -> str:
    """An attempt's answer on one line; `no boxed answer` where the answer is the whole text."""
    answer = attempt.answer or "no answer"
    if answer.strip(" .") == candidate_text(attempt.text).strip(" .\n"):
        answer = "no boxed answer"
    text = printable(" ".join(answer.split()))
    return text if len(text) <= width else text[: width - 3] + "..."


def warning(solution: Solution) -> str:
    """What went wrong, in words; empty if nothing did."""
    if not solution.degraded:
        return ""
    reason = f" ({printable(solution.reason)})" if solution.reason else ""
    return f"Note: {_DEGRADED[solution.degraded]}{reason}"


def plain(solution: Solution) -> str:
    """A solution as text for a file or a pipe."""
    if solution.error:
        return f"Problem: {printable(solution.problem)}\nNot solved: {printable(solution.error)}\n"
    lines = [f"Problem: {printable(solution.problem)}", ""]
    for number, candidate in enumerate(solution.candidates, 1):
        end = "" if candidate.finished else ", unfinished"
        answer = f"answer {short(candidate)}, {_votes(candidate)}"
        lines.append(f"Candidate {number}: {answer}, {candidate.num_tokens} tokens{end}")
    if len(solution.candidates) > 1:
        lines.append(votes_line(solution.candidates))
    lines += refinements_votes(solution)
    lines += ["", printable(candidate_text(solution.text) or solution.text), ""]
    lines += [line for line in (warning(solution),) if line]
    lines += [f"Answer: {short(solution.answers[0])}", f"Cost: {cost_line(solution)}", ""]
    return "\n".join(lines)


class Terminal(Watcher):
    """The live display of one problem. `with Terminal(console) as display: ...; display.show(solution)`."""

    def __init__(self, console, problem: str):
        from rich.live import Live

        self._console, self._problem = console, problem
        self._texts: dict[str, list[str]] = {}
        self._attempts: dict[str, list[Attempt]] = {}
        self._numbers: dict[str, int] = {}
        self._number, self._start, self._shown = 0, time.monotonic(), 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self):
        self._live.start()
        self._refresh(now=True)
        return self

    def __exit__(self, *_):
        self._live.stop()

    def started(self, stage: str, number: int, count: int) -> None:
        attempts = self._attempts.pop(stage, [])
        texts = [attempt.text for attempt in attempts if self._numbers.get(stage) == number]
        self._texts[stage], self._number = texts + [""] * (count - len(texts)), number
        self._numbers[stage] = number
        self._refresh(now=True)

    def text(self, stage: str, index: int, text: str) -> None:
        self._texts[stage][index] += text
        self._refresh()

    def finished(self, stage: str, number: int, attempts: list[Attempt]) -> None:
        self._attempts[stage] = attempts
        self._texts[stage] = [attempt.text for attempt in attempts]
        self._refresh(now=True)

    def _refresh(self, now: bool = False) -> None:
        if now or time.monotonic() - self._shown > 1 / REFRESHES:
            self._live.update(self._picture(), refresh=True)
            self._shown = time.monotonic()

    def _picture(self):
        from rich.console import Group
        from rich.text import Text

        parts, last = [self._heading()], list(self._texts)[-1:]
        done_lines, live_lines = self._lines()
        for stage, texts in self._texts.items():
            attempts, lines = self._attempts.get(stage), live_lines if [stage] == last else done_lines
            if lines:
                parts.append(boxes(self._console, stage, texts, attempts, lines))
            if attempts and stage == "candidate" and len(attempts) > 1:
                parts.append(Text(votes_line(attempts), style="bold"))
        what = f"refining, round {self._number}" if self._number else "sampling candidates"
        what = what if self._texts else "starting"
        parts.append(Text(f"{what}, {time.monotonic() - self._start:.0f} s", style="dim"))
        return Group(*parts)

    def _lines(self) -> tuple[int, int]:
        """Lines per box: of finished stages (0 if they would leave too little room) and of the stage being sampled."""
        counts = map(len, self._texts.values())
        *earlier, rows = [0] + [math.ceil(count / in_a_row(self._console, count)) for count in counts]
        room = self._console.height - len(self._console.render_lines(self._heading())) - 2  # votes, and what is done
        left = room - sum(earlier) * (DONE_LINES + 2)
        done = DONE_LINES if left >= 3 * rows else 0
        return done, max(1, min(LIVE_LINES, (left if done else room) // max(1, rows) - 2))

    def _heading(self):
        from rich.text import Text

        return Text(printable(self._problem), style="bold cyan")

    def show(self, solution: Solution) -> None:
        """Print the solved problem in full, in place of the live display."""
        from rich.panel import Panel
        from rich.text import Text

        self._live.stop()
        console = self._console
        console.print(self._heading())
        if solution.error:
            console.print(Text(f"Not solved: {printable(solution.error)}", style="bold red"))
            return
        for number, attempts in enumerate(solution.rounds):
            answers = number > 0 and number == len(solution.rounds) - 1
            if not answers:
                stage = "candidate" if number == 0 else f"round {number}, refinement"
                console.print(boxes(console, stage, [attempt.text for attempt in attempts], attempts, None))
            if number == 0 and len(attempts) > 1:
                console.print(Text(votes_line(attempts), style="bold"))
        for line in refinements_votes(solution):
            console.print(Text(line, style="bold"))
        text = printable(candidate_text(solution.text) or solution.text)
        title = "Solution" if len(solution.rounds) < 2 else "Refined solution"
        console.print(Panel(Text(text, overflow="fold"), title=title, title_align="left", border_style="green"))
        if note := warning(solution):
            console.print(Text(note, style="yellow"))
        console.print(Text(f"Answer: {short(solution.answers[0])}", style="bold green"))
        console.print(Text(cost_line(solution), style="dim"))


def in_a_row(console, count: int) -> int:
    """How many of `count` boxes stand side by side, so that all rows have about the same length."""
    room = max(1, min(count, console.width // NARROWEST))
    return math.ceil(count / math.ceil(count / room))


def boxes(console, stage: str, texts: list[str], attempts: list[Attempt] | None, lines: int | None):
    """Texts side by side, as many per row as fit the terminal, with answers and votes once they are known.

    Only the last `lines` lines of each text are shown; None: all.
    """
    from rich.table import Table

    in_row = in_a_row(console, len(texts))
    table = Table.grid(expand=True)
    for _ in range(in_row):
        table.add_column(ratio=1, overflow="fold")
    width = console.width // in_row - 4
    names = [f"{stage} {number}".capitalize() for number in range(1, len(texts) + 1)]
    names = names if len(texts) > 1 else [stage.capitalize()]
    attempts = attempts or [None] * len(texts)
    cells = [_box(*cell, lines, width) for cell in zip(names, texts, attempts, strict=True)]
    for start in range(0, len(cells), in_row):
        table.add_row(*cells[start : start + in_row])
    return table


def _box(title: str, text: str, attempt: Attempt | None, lines: int | None, width: int):
    from rich.panel import Panel
    from rich.text import Text

    body = printable(text.strip())
    if lines is not None:
        tail = body[-lines * width :].splitlines()
        body = "\n".join([part for row in tail for part in textwrap.wrap(row, width) or [""]][-lines:])
    foot, style = "", "blue"
    if attempt is not None:
        votes = f", {_votes(attempt)}" if attempt.votes else ""
        foot = f"{short(attempt, max(8, width - 14))}{votes}"
        style = "dim" if not attempt.finished else "white"
        foot += "" if attempt.finished else " (cut)"
    how = {"title": title, "title_align": "left", "border_style": style}
    return Panel(Text(body), subtitle=Text(foot) if foot else None, **how)


def terminal_console():
    """A rich console for standard output, or None if that is no terminal."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(highlight=False)
