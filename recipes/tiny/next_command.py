"""The command that the demo ends with: `gsr-solve` on a problem whose refinement is right where the vote is not."""

import shlex
import subprocess
import sys

import chain


def worked_example(model: str, *options: str, limit: int = 40) -> tuple[str, str, str] | None:
    """A `gsr-solve` command whose candidates disagree, do not vote right and are refined to what is right.

    Validation problems are solved here one by one, each as the command would. The first that fits is returned if the
    command itself then says the same: the command, its output, and how the candidates voted.

    Args:
        options: Further ones of the command.
        limit: Problems that are tried.
    """
    from gsr_rl.cli import quiet_libraries

    quiet_libraries()
    from gsr_rl.data.tiny_world import generate
    from gsr_rl.serving.solve_cli import parse
    from gsr_rl.serving.solver import Solver

    for seed, row in enumerate(generate("mix", "validation", limit, seed=0)):
        command = ["gsr-solve", "--model", model, "--seed", str(seed), *options, row["problem"]]
        config = {name: value for name, value in vars(parse(command[1:])[2]).items() if value is not None}
        with Solver(**config | {"engine": "transformers"}) as solver:
            solution = solver.solve(row["problem"])
        text, answers = solution.text, {candidate.answer for candidate in solution.candidates}
        is_right = f"\\boxed{{{row['answer']}}}" in text
        if not is_right or len(answers) < 2 or solution.majority_answer in (None, row["answer"]):
            continue
        program = [sys.executable, "-m", "gsr_rl.serving.solve_cli", *command[1:]]
        output = subprocess.run(program, capture_output=True, text=True, cwd=chain.ROOT).stdout
        if f"\nAnswer: {row['answer']}\n" in output and text in output:
            return shlex.join(command), output, how_they_voted(solution.candidates)
    return None


def how_they_voted(candidates: list) -> str:
    """In words, of candidates whose majority's answer is wrong: it may be the first of a tie."""
    votes = {candidate.group: candidate.votes for candidate in candidates if candidate.votes}
    is_tie = list(votes.values()).count(max(votes.values())) > 1
    return "the vote is a tie" if is_tie else "the vote is wrong"


def show_example(model: str, *options: str) -> None:
    """Print the command to try next with its output; nothing where no problem was found."""
    if example := worked_example(model, *options):
        command, output, vote = example
        print(f"A problem of the validation split, on which {vote} and the refinement right:\n")
        print(f"$ {command}\n\n{output.rstrip()}\n")
        print(f"Try it: .venv/bin/{command}\nProblems of other kinds are unknown to a model this small.\n")
