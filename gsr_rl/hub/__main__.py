"""Push what a run has made to the Hugging Face Hub, write results into a model's card, merge a LoRA run's adapter.

    python -m gsr_rl.hub push runs/demo/grpo --repo_id USER/NAME
    python -m gsr_rl.hub results runs/demo/eval_grpo --model runs/demo/grpo
    gsr-merge runs/demo/lora

A push is one commit, so the Hub shows the state before it or after it, never a part. It only reads the local files.
What failed is retried by `push` alone: hub.json in the folder says where to. The token comes from HF_TOKEN or
`hf auth login`; a file that holds it is not pushed.

Exit codes: 0 done, 2 bad input, 3 the push failed and the local files are whole, 130 interrupted.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from gsr_rl.hub.model_card import PROVENANCE, current_card, write_provenance
from gsr_rl.hub.push import INTERRUPTED, PUSH_FAILED, PushError, Target, add_results, push_folder, read_record
from gsr_rl.refinement.settings import SETTINGS_FILE
from gsr_rl.run_folder import atomic_write

MERGING, ADAPTER = "merging", "adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
RUN_FILES = {name: name for name in (SETTINGS_FILE, "config.yaml", PROVENANCE, "versions.json")}
RUN_FILES["training_config.yaml"] = "config.yaml"  # as an adapter on the Hub has it


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


def merge_adapter(model: str | Path, output_dir: str | Path | None = None) -> Path:
    """A LoRA adapter added to its base model's weights: a model as any other, with the run's files and a card.

    In the adapter's own folder without `output_dir`, where the adapter then is in `adapter/`. May be done again after
    it was cut off. Weights have the base model's number format.

    Args:
        model: The folder of a run with `use_peft`, or an adapter on the Hub.

    Returns:
        The folder of the whole model.

    Raises:
        ValueError: There is no adapter, its base model is not there, or one on the Hub has no `output_dir`.
    """
    source = _adapter_folder(model, output_dir)
    folder = Path(output_dir or source)
    temporary = folder / MERGING
    shutil.rmtree(temporary, ignore_errors=True)
    _write_merged(source, temporary)
    for name, name_there in RUN_FILES.items():
        if (source / name).is_file():
            shutil.copy(source / name, temporary / name_there)
    if not (temporary / PROVENANCE).is_file():
        write_provenance(temporary, _base_of(source)[0], None)
    if folder.resolve() == source.resolve():
        (folder / ADAPTER).mkdir(exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copy(source / name, folder / ADAPTER)
    for path in temporary.iterdir():
        os.replace(path, folder / path.name)
    temporary.rmdir()
    for name in ADAPTER_FILES:  # the weights beside them are whole
        (folder / name).unlink(missing_ok=True)
    atomic_write(folder / "README.md", current_card(folder, folder.absolute().name))
    return folder


def _adapter_folder(model: str | Path, output_dir: str | Path | None) -> Path:
    """Where the adapter's files are: the folder itself, or the Hub's in the cache. Raises `ValueError`."""
    folder = Path(model)
    if not folder.is_dir():
        if output_dir is None:
            raise ValueError(
                f"{model}: there is no such folder; of an adapter on the Hub say where to: --output_dir OUT"
            )
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(model)))
    if not (folder / ADAPTER_FILES[0]).is_file():
        merged = " (it is merged already: adapter/ holds the adapter)" if (folder / ADAPTER).is_dir() else ""
        raise ValueError(
            f"{model} holds no LoRA adapter ({ADAPTER_FILES[0]}){merged}: give the output_dir of such a run"
        )
    return folder


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """The base model of an adapter, a path from any folder above it or a name on the Hub, and its revision."""
    settings = json.loads((adapter / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    base = str(settings["base_model_name_or_path"])
    places = (above / base for above in (Path(), *adapter.resolve().parents))
    return next((str(place) for place in places if place.is_dir()), base), settings.get("revision")


def _write_merged(adapter: Path, folder: Path) -> None:
    """Weights, configurations and tokenizer of the merged model, which also ends where its tokenizer does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base, revision), tokenizer = _base_of(adapter), AutoTokenizer.from_pretrained(adapter)
    try:
        whole = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype="auto")
    except OSError as error:
        raise ValueError(f"{adapter}: its base model {base} cannot be loaded: {str(error).splitlines()[0]}") from None
    whole = PeftModel.from_pretrained(whole, adapter).merge_and_unload()
    add_end_of_sequence(whole, tokenizer)
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_end_of_sequence(model, tokenizer) -> None:
    """Let the model's generation end where its tokenizer says that a sequence ends, too."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id not in ends:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *(end for end in ends if end is not None)]


def merge_command(argv: list[str] | None = None) -> None:
    """`gsr-merge MODEL [--output_dir OUT]`: exits with 2 and a message on bad input."""
    parser = argparse.ArgumentParser(prog="gsr-merge", description=merge_adapter.__doc__.split("\n    Args:")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", help="folder of a LoRA run, or an adapter on the Hub")
    parser.add_argument("--output_dir", help="default: the run's own folder")
    args = parser.parse_args(argv)
    try:
        print(f"merged: {merge_adapter(args.model, args.output_dir)}")
    except (ValueError, OSError) as error:
        print(f"gsr-merge: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    sys.exit(main())
