"""Push what a run has made to the Hugging Face Hub, write results into a model's card, retry what has failed.

    python -m gsr_rl.hub push runs/demo/grpo --repo_id USER/NAME
    python -m gsr_rl.hub results runs/demo/eval_grpo --model runs/demo/grpo

A push is one commit, so the Hub shows the state before it or after it, never a part. It only reads the local files.
What failed is retried by `push` alone: hub.json in the folder says where to. The token comes from HF_TOKEN or
`hf auth login`; a file that holds it is not pushed.

Exit codes: 0 done, 2 bad input, 3 the push failed and the local files are whole, 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

from gsr_rl.hub.push import INTERRUPTED, PUSH_FAILED, PushError, Target, add_results, push_folder, read_record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gsr_rl.hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="push a model or data set folder, for the first time or again")
    push.add_argument("folder", type=Path)
    results = commands.add_parser("results", help="write an evaluation's results into a model's card")
    results.add_argument("folder", type=Path, help="folder of eval.json")
    results.add_argument("--model", type=Path, help="folder of the model")
    for command in (push, results):
        command.add_argument("--repo_id", help="USER/NAME on the Hub (push: default from hub.json in the folder)")
        command.add_argument("--revision", help="branch, made if it is not there")
        command.add_argument(
            "--private",
            action=argparse.BooleanOptionalAction,
            help="if the repository has to be made; a public one that is there is refused (default: as asked before)",
        )
    push.add_argument("--repo_type", choices=("model", "dataset"), help="default: what the folder holds")
    return parser


def target_of(args: argparse.Namespace) -> Target:
    """Where `push` goes: as the arguments say, else as hub.json says. Raises `ValueError` if neither does."""
    record = read_record(args.folder)
    repo_id = args.repo_id or record.get("repo_id")
    if not repo_id:
        raise ValueError(f"--repo_id is not given and {args.folder} has not been pushed before: give USER/NAME")
    guess = "dataset" if list(args.folder.glob("data/*.parquet")) else "model"
    return Target(
        repo_id,
        args.repo_type or record.get("repo_type") or guess,
        record.get("private") if args.private is None else args.private,
        args.revision or record.get("revision"),
    )


def results_target_of(args: argparse.Namespace) -> Target | None:
    """Where `results` goes on the Hub: private as the arguments say, else as the model was pushed there."""
    record = read_record(args.model) if args.model else {}
    private = args.private
    if private is None and record.get("repo_id") == args.repo_id:
        private = record.get("private")
    return Target(args.repo_id, private=private, revision=args.revision) if args.repo_id else None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        if not args.folder.is_dir():
            raise ValueError(f"{args.folder}: there is no such folder")
        if args.command == "push":
            print(push_folder(args.folder, target_of(args)))
        elif not args.model and not args.repo_id:
            raise ValueError("results needs --model FOLDER, --repo_id USER/NAME, or both")
        else:
            print("\n".join(add_results(args.folder, args.model, results_target_of(args))))
    except ValueError as error:
        print(f"gsr_rl.hub: error: {error}", file=sys.stderr)
        return 2
    except PushError as error:
        print(f"gsr_rl.hub: {error}", file=sys.stderr)
        return PUSH_FAILED
    except KeyboardInterrupt:
        print("gsr_rl.hub: interrupted, nothing local is lost", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
