"""Push what a run has made to the Hugging Face Hub, and write results into a model's card: see __main__.py."""

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from gsr_rl.hub.config import token
from gsr_rl.hub.model_card import PROVENANCE, Evaluation, current_card, public_config, read_evaluation, with_results
from gsr_rl.run_folder import atomic_write

RECORD = "hub.json"
UPLOADING = "hub-uploading"  # folder of a run: what is being pushed beside the training
PUSH_FAILED, INTERRUPTED = 3, 130
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
    "*processor_config.json", "gsr_config.json", "versions.json", "README.md", "evaluations/*.json",
)  # fmt: skip
DATA_SET_FILES = ("data/*.parquet", "README.md")  # a JSON file beside them would be read as rows
START_SECONDS, LEAST_BYTES_PER_SECOND = 600.0, 1e6  # what a push may take: this long, and its size at this speed
TEXT_BYTES = 20_000_000  # longer files are weights and tables, not looked through for a token
WEIGHTS = re.compile(
    r"(adapter_)?(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_config\.json"
)
SHARD = re.compile(r"(data/[^/]+)-\d+-of-\d+\.parquet")  # the group: its split
WHOLE_CHECKPOINT = re.compile(r"((?:last-checkpoint|checkpoint-\d+)/).+")

Files = dict[str, Path | bytes]  # what is pushed, by its path in the repository


@dataclass(frozen=True)
class Target:
    """A repository: `model` or `dataset`, the branch, and whether it is private if it has to be made."""

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    revision: str | None = None


class PushError(RuntimeError):
    """A push did not happen. The message says why, that nothing is lost, and how to retry."""


def push_folder(folder: str | Path, target: Target) -> str:
    """Push the files of a model or data set folder, with its card. Returns the address of the commit.

    Raises:
        ValueError: There is no model or data set in `folder`.
        PushError: The Hub did not take it; `folder` is as it was.
    """
    folder = Path(folder)
    files = files_of(folder, target)
    size = sum(path.stat().st_size for path in files.values() if isinstance(path, Path))
    _record(folder, target, None)
    print(
        f"pushing {len(files)} files, {size / 1e6:,.1f} MB, to {target.repo_id}. If this is cut off: "
        f"python -m gsr_rl.hub push {folder}",
        flush=True,
    )
    if base := _local_base(folder):
        print(f"warning: the adapter's base model is the local folder {base}: others cannot load it", file=sys.stderr)
    address = push_files(files, target, f"{folder.name} by gsr-rl", retry=f"python -m gsr_rl.hub push {folder}")
    _record(folder, target, address)
    return address


def _local_base(folder: Path) -> str | None:
    """The base model of a LoRA adapter, if it is a folder of this machine."""
    path = folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") if path.is_file() else None
    return base if base and Path(base).is_dir() else None


def files_of(folder: Path, target: Target) -> Files:
    """What of a folder is pushed, by its path in the repository. Raises `ValueError` where that is no model or set."""
    patterns = MODEL_FILES if target.repo_type == "model" else DATA_SET_FILES
    files: Files = {
        path.relative_to(folder).as_posix(): path
        for part in ("*", "data/*", "evaluations/*")
        for path in sorted(folder.glob(part))
        if path.is_file() and any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)
    }
    if target.repo_type == "dataset":
        if not any(name.endswith(".parquet") for name in files):
            raise ValueError(f"{folder} holds no data set: give the folder with README.md and data/*.parquet")
        return files
    if not {"config.json", "adapter_config.json"} & set(files) or not any(n.endswith(".safetensors") for n in files):
        raise ValueError(f"{folder} holds no model (config.json and *.safetensors): give a run's output_dir")
    files["README.md"] = current_card(folder, target.repo_id).encode()
    if (folder / "config.yaml").is_file():
        files["training_config.yaml"] = public_config(folder / "config.yaml").encode()
    return files


def push_files(files: Files, target: Target, message: str, retry: str) -> str:
    """One commit with these files, in a repository that is made if it is not there. Returns its address.

    Raises `PushError`, whatever went wrong, a time limit by the size of the files included.
    """
    size = sum(content.stat().st_size if isinstance(content, Path) else len(content) for content in files.values())
    try:
        _refuse_token(files)
        seconds = START_SECONDS + size / LEAST_BYTES_PER_SECOND
        return bounded(lambda: commit(files, target, message), seconds, f"the Hub's commit to {target.repo_id}")
    except Exception as error:  # whatever it is, the run's files are whole and it can be retried
        raise _not_done(f"the push to {target.repo_id} failed", error, retry) from error


def _not_done(what: str, error: Exception, retry: str) -> PushError:
    why = without_token(in_one_line(error))
    return PushError(f"{what}: {why}\nNothing local is lost. Retry with:\n    {retry}")


def push_or_exit(folder: str | Path, target: Target) -> None:
    """`push_folder` at the end of a program: a failure ends it with its message and exit code 3."""
    with exit_on_failure():
        print(push_folder(folder, target), flush=True)


def add_results(folder: str | Path, model: str | Path | None, target: Target | None) -> list[str]:
    """Write an evaluation's results into a card: of a `model` folder, of a `target` repository, or of both.

    Returns what was written, one line each. `folder` is that of eval.json and config.yaml.

    Raises:
        ValueError: There is no eval.json in `folder`.
        PushError: The Hub did not take it.
    """
    evaluation = read_evaluation(Path(folder))
    lines = []
    if model:
        atomic_write(Path(model) / evaluation.path, evaluation.text)
        record = read_record(Path(model))
        atomic_write(Path(model) / "README.md", current_card(Path(model), record.get("repo_id", Path(model).name)))
        lines.append(f"results of {evaluation.name}: {Path(model) / 'README.md'}")
    if target:
        retry = f"python -m gsr_rl.hub results {folder} --repo_id {target.repo_id}"
        retry += f" --revision {target.revision}" if target.revision else ""
        retry += {True: " --private", False: " --no-private", None: ""}[target.private]
        lines.append(_push_results(evaluation, model, target, retry))
    return lines


def _push_results(evaluation: Evaluation, model: str | Path | None, target: Target, retry: str) -> str:
    """Results into a repository's card: its own, else that of the folder `model`. Returns the commit's address."""
    try:
        old = bounded(lambda: _hub_card(target), START_SECONDS, f"the card of {target.repo_id}")
    except Exception as error:
        raise _not_done(f"the card of {target.repo_id} could not be read", error, retry) from error
    if not old:
        old = current_card(Path(model), target.repo_id) if model else f"# {target.repo_id}\n"
    card = with_results(old, evaluation, target.repo_id)
    files = {"README.md": card.encode(), evaluation.path: evaluation.text.encode()}
    return push_files(files, target, f"Results of {evaluation.name}", retry)


def _hub_card(target: Target) -> str:
    """README.md of a repository as it is now; empty if it has none, or does not exist."""
    from huggingface_hub import HfApi

    api, name = HfApi(library_name="gsr-rl"), "README.md"
    if not api.file_exists(target.repo_id, name, revision=target.revision):
        return ""
    path = api.hf_hub_download(target.repo_id, name, revision=target.revision, force_download=True)
    return Path(path).read_text(encoding="utf-8")


def results_or_exit(folder: str | Path, model: str | Path | None, target: Target | None) -> None:
    """`add_results` at the end of a program: a failure ends it with its message and exit code 3."""
    with exit_on_failure():
        print("\n".join(add_results(folder, model, target)), flush=True)


def commit(files: Files, target: Target, message: str) -> str:
    """Put these files into the repository, and take out the weights and rows that they replace. Returns its address.

    Raises `ValueError` where the repository shall be private and is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    make_repository(target)
    api = HfApi(library_name="gsr-rl")
    where = {"repo_type": target.repo_type, "revision": target.revision}
    adds = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
    ]
    deletes = [CommitOperationDelete(name) for name in stale(api.list_repo_files(target.repo_id, **where), files)]
    return str(api.create_commit(target.repo_id, adds + deletes, commit_message=message, **where).commit_url)


def stale(there: list[str], files: Files) -> list[str]:
    """Which files of the repository would be loaded beside those pushed now, and are none of them.

    That is: other weights, if weights are pushed; other shards of a pushed split; what else lies in the folder of a
    pushed whole checkpoint. Nothing else is ever taken out.
    """

    def kind(name: str) -> str | None:
        if WEIGHTS.fullmatch(name):
            return "weights"
        part = SHARD.fullmatch(name) or WHOLE_CHECKPOINT.fullmatch(name)
        return part.group(1) if part else None

    pushed = {kind(name) for name in files} - {None}
    return [name for name in there if name not in files and kind(name) in pushed]


def make_repository(target: Target) -> str:
    """The full name of the repository, made if it is not there, with its branch. Raises `ValueError` as `commit`."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="gsr-rl")
    made = api.create_repo(target.repo_id, repo_type=target.repo_type, private=target.private, exist_ok=True)
    if target.private and not api.repo_info(made.repo_id, repo_type=target.repo_type).private:
        raise ValueError(
            f"{made.repo_id} is public, but hub_private_repo=true (--private): make it private in its settings on the "
            "Hub, name another one, or say hub_private_repo false (--no-private)"
        )
    if target.revision and target.revision != "main" and not target.revision.startswith("refs/"):
        api.create_branch(made.repo_id, branch=target.revision, repo_type=target.repo_type, exist_ok=True)
    return made.repo_id


def bounded(action: Callable[[], str], seconds: float, what: str) -> str:
    """The result of `action`, which runs beside this thread: the Hub's client waits for ever for a silent server.

    Raises `TimeoutError`, which says `what` it waited for, after so many `seconds`.
    """
    result: dict[str, object] = {}

    def run() -> None:
        try:
            result["value"] = action()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"{what} was not done after {seconds:.0f} seconds")
    if "error" in result:
        raise result["error"]
    return str(result["value"])


@contextmanager
def exit_on_failure():
    """Turn a `PushError` into its message and exit code 3, an interruption into one and exit code 130."""
    try:
        yield
    except PushError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(PUSH_FAILED) from None
    except KeyboardInterrupt:
        print("interrupted while pushing, nothing local is lost: see above for the retry", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


def without_token(text: str) -> str:
    """`text` without the token, wherever an error message may have it from."""
    secret = token()
    return text.replace(secret, "...") if secret else text


def _refuse_token(files: Files) -> None:
    """Raise if a file that would be pushed holds the token."""
    secret = (token() or "").encode()
    for name, content in files.items() if secret else ():
        if isinstance(content, Path) and content.stat().st_size <= TEXT_BYTES:
            content = content.read_bytes()
        if isinstance(content, bytes) and secret in content:
            raise ValueError(f"{name} holds your token: take it out, and make a new token")


def in_one_line(error: BaseException) -> str:
    """An error with its cause in one line."""
    parts = [str(error) or type(error).__name__]
    if error.__cause__ is not None and not isinstance(error.__cause__, SystemExit):
        parts.append(str(error.__cause__) or type(error.__cause__).__name__)
    return ": ".join(" ".join(part.split()) for part in dict.fromkeys(parts))


def _record(folder: Path, target: Target, commit: str | None) -> None:
    atomic_write(folder / RECORD, json.dumps(asdict(target) | {"commit": commit}, indent=1) + "\n")


def read_record(folder: Path) -> dict:
    """What hub.json of a folder says: the fields of `Target` and the last commit; empty if there is none."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class CheckpointPush:
    """A push of a checkpoint beside the training: one commit. A failure is printed, and the training goes on.

    Args:
        checkpoint: Its folder. It is linked first, because training may delete it meanwhile.
        target: Where to.
        whole_as: Folder of the repository that also gets the whole checkpoint, optimizer included.
    """

    def __init__(self, checkpoint: Path, target: Target, whole_as: str | None):
        self.links = checkpoint.parent / UPLOADING / checkpoint.name
        shutil.rmtree(self.links, ignore_errors=True)
        shutil.copytree(checkpoint, self.links, copy_function=_link)
        self.parts = [path for path in self.links.rglob("*") if path.is_file()]
        for name in ("config.yaml", PROVENANCE, "versions.json", "README.md"):
            if (checkpoint.parent / name).is_file():
                shutil.copy2(checkpoint.parent / name, self.links / name)
        size = sum(path.stat().st_size for path in self.links.rglob("*") if path.is_file())
        self.deadline = time.monotonic() + START_SECONDS + 2 * size / LEAST_BYTES_PER_SECOND
        self.name, self.target, self.whole_as = checkpoint.name, target, whole_as
        self.thread = threading.Thread(target=self._run, daemon=True, name="hub-checkpoint")
        self.thread.start()

    def _run(self) -> None:
        try:
            files = files_of(self.links, self.target)
            if self.whole_as:
                files |= {f"{self.whole_as}/{path.relative_to(self.links).as_posix()}": path for path in self.parts}
            push_files(files, self.target, f"Training in progress, {self.name}", retry="")
        except Exception as error:
            first = str(error).splitlines()[0]
            print(f"warning: {self.name} was not pushed, training goes on: {first}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(self.links, ignore_errors=True)

    def is_done(self) -> bool:
        """Whether nothing is under way any more."""
        return not self.thread.is_alive()

    def wait_until_done(self) -> None:
        """Wait for the end, at most until the deadline that the size sets."""
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        if self.thread.is_alive():
            print(f"warning: the push of {self.name} is not done, it is not waited for any more", file=sys.stderr)


def _link(source: str, copy: str) -> str:
    """A hard link: no room on the disk, and it outlives the checkpoint. A copy where there are no links."""
    try:
        os.link(source, copy)
    except OSError:
        shutil.copy2(source, copy)
    return copy
