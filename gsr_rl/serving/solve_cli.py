"""`gsr-solve`: candidates, votes and the refined solution of problems from the command line, a file or a pipe."""

import dataclasses
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsr_rl.command_line import asks_for_help, fields_of_all, help_of, of_type, read
from gsr_rl.engines.base import is_unicode
from gsr_rl.serving.config import SHORT_NAMES, SolveConfig, SolveInput
from gsr_rl.serving.steps import Solution

USAGE = """\
usage: gsr-solve --model PATH_OR_HUB_ID [--config FILE.yaml] [--KEY VALUE ...] [PROBLEM]

Solve problems: K candidates, then a refinement over them.

  gsr-solve --model PATH_OR_HUB_ID "What is 12 * 13?"
  gsr-solve --model PATH_OR_HUB_ID --file problem.txt            one problem
  gsr-solve --model PATH_OR_HUB_ID --file problems.jsonl --json  one a line: {"problem": ..., "id": ...}
  echo "What is 12 * 13?" | gsr-solve --model PATH_OR_HUB_ID
  gsr-solve --model PATH_OR_HUB_ID -- "-3 + 5"                   `--` before a problem that starts with a dash
  gsr-solve --model NAME --endpoints http://localhost:8000/v1 --endpoint_tokenizer PATH_OR_HUB_ID "..."

Exit codes: 0 all solved, 1 some not, 2 wrong input, 130 interrupted.
Keys come from the YAML file; a --KEY VALUE on the command line overrides it, --KEY null unsets it.
--k is --num_candidates, --a-key is --a_key, and --endpoints is given once per address.
"""


def help_text() -> str:
    """What `--help` prints."""
    return USAGE + help_of(fields_of_all(("SolveInput", "SolveConfig")).values())


def parse(argv: list[str]) -> tuple[str | None, SolveInput, SolveConfig]:
    """The problem of a command line, if any, and its keys. `ValueError` for two problems, or a wrong key or value."""
    keys = fields_of_all(("SolveInput", "SolveConfig"))
    values, words = read(argv, keys, "--help", short=SHORT_NAMES, positional=True)
    if len(words) > 1:
        raise ValueError(f"stray argument {words[1]!r}: one problem is expected, in quotes")
    values = of_type(values, keys)
    names = {field.name for field in dataclasses.fields(SolveInput)}
    source = SolveInput(**{name: value for name, value in values.items() if name in names})
    config = SolveConfig(**{name: value for name, value in values.items() if name not in names})
    return (words[0] if words else None), source, config


def read_problems(problem: str | None, file: str | None, stdin=None) -> list[dict]:
    """Rows with at least `problem`. `ValueError` for no source or two of them, an empty problem, or a bad line."""
    if problem is not None and file is not None:
        raise ValueError("a problem and --file are both given: leave one of them out")
    if problem is not None:
        text, name, many = problem, "the problem", False
    elif file is not None:
        try:
            named = Path(file).is_file()  # a pipe, such as `<(...)`, is not, and its name says nothing
            text = Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--file {file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise ValueError(f"--file {file}: {error.strerror}: a file that can be read is expected") from None
        name, many = f"--file {file}", file.endswith(".jsonl") if named else _are_rows(text)
    else:
        stdin = stdin or sys.stdin
        if stdin.isatty():
            raise ValueError("no problem is given: write it in quotes, name a --file, or pipe it in")
        text, name = stdin.read(), "standard input"
        many = _are_rows(text)
    if many:
        return _rows(text, name)
    if not text.strip():
        raise ValueError(f"{name} is empty: a problem is expected")
    if not is_unicode(text):
        raise ValueError(f"{name} is not UTF-8 text")
    return [{"problem": text.strip()}]


def _are_rows(text: str) -> bool:
    """Whether piped text is JSON lines: its first line is an object with a problem."""
    try:
        row = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool({"problem", "question"} & set(row))


def _rows(text: str, name: str) -> list[dict]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, line {number}: not JSON ({error}), one object a line is expected") from None
        problem = (row.get("problem") or row.get("question")) if isinstance(row, dict) else None
        if not isinstance(problem, str) or not problem.strip():
            raise ValueError(f"{name}, line {number}: an object with the text `problem` (or `question`) is expected")
        if not is_unicode(json.dumps(row, ensure_ascii=False)):
            raise ValueError(f"{name}, line {number}: half a character (a lone surrogate): a whole one is expected")
        rows.append({**row, "problem": problem})
    if not rows:
        raise ValueError(f"{name} holds no problem: one JSON object a line is expected")
    return rows


def as_json(row: dict, solution: Solution) -> str:
    """A solution as one line of JSON; `id` and `answer` of the row come back as `id` and `reference`."""
    record = {"id": row["id"]} if "id" in row else {}
    record |= {"problem": row["problem"], "text": solution.text, "answer": solution.answer}
    if "answer" in row:
        record["reference"] = row["answer"]
    record |= {
        "majority_answer": solution.majority_answer,
        "candidates": [dataclasses.asdict(attempt) for attempt in solution.candidates],
        "refinements": [[dataclasses.asdict(attempt) for attempt in attempts] for attempts in solution.rounds[1:]],
        "degraded": solution.degraded,
        "error": solution.error or None,
        "usage": dataclasses.asdict(solution.usage) | {"completion_tokens": solution.usage.completion_tokens},
        "seconds": round(solution.seconds, 3),
    }
    return json.dumps(record, ensure_ascii=False)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What must not break off half-way: a second Ctrl-C is not heard inside."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def run(rows: list[dict], config: SolveConfig, *, json_lines: bool) -> int:
    """Open the engine, solve, print. Returns the exit code."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its lines would go through the live display

    from gsr_rl.engines.open import automatic_kind
    from gsr_rl.serving.display import plain, terminal_console
    from gsr_rl.serving.solver import Solver

    console = None if json_lines else terminal_console()
    if console:
        console.print(f"loading {config.model} ...", style="dim", markup=False)
    if config.engine == "auto" and not config.endpoints:
        config = dataclasses.replace(config, engine=automatic_kind(config.model, len(rows)))
    solver = Solver(**{name: value for name, value in vars(config).items() if value is not None})
    failed = 0
    try:
        if console:
            return _in_terminal(solver, console, rows)
        for row, solution in zip(rows, solver.solve_many(row["problem"] for row in rows), strict=True):
            failed += bool(solution.error)
            print(as_json(row, solution) if json_lines else plain(solution), flush=True)
        return 1 if failed else 0
    finally:
        with uninterrupted():
            solver.close()


def _in_terminal(solver, console, rows: list[dict]) -> int:
    from gsr_rl.serving.display import Terminal

    failed = 0
    for row in rows:
        with Terminal(console, row["problem"]) as display:
            (solution,) = solver.solve_many([row["problem"]], display)
            display.show(solution)
        failed += bool(solution.error)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> None:
    """The console script."""
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print(help_text())
        sys.exit(0)
    try:
        code = _guarded(argv)
    except KeyboardInterrupt:
        print("gsr-solve: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `gsr-solve ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _guarded(argv: list[str]) -> int:
    try:
        problem, source, config = parse(argv)
        config.solve_settings()
        rows = read_problems(problem, source.file)
    except ValueError as error:
        print(f"gsr-solve: error: {error}", file=sys.stderr)
        return 2
    from gsr_rl.engines.base import EngineError

    try:
        return run(rows, config, json_lines=source.json)
    except (ValueError, EngineError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"gsr-solve: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    main()
