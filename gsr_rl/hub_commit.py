"""One commit to a repository of the Hugging Face Hub, which is made if it is not there; what it replaces goes out."""

import re
from dataclasses import dataclass
from pathlib import Path

Files = dict[str, Path | bytes]

WEIGHTS = re.compile(
    r"(adapter_)?(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_config\.json"
)
SHARD = re.compile(r"(data/[^/]+)-\d+-of-\d+\.parquet")  # the group: its split
WHOLE_CHECKPOINT = re.compile(r"((?:last-checkpoint|checkpoint-\d+)/).+")


@dataclass(frozen=True)
class Target:
    """A repository: `model` or `dataset`, the branch, and whether it is private if it has to be made."""

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    revision: str | None = None


def commit(files: Files, target: Target, message: str) -> str:
    """Put these files into the repository, and take out the weights and rows that they replace. Returns its address.

    Raises:
        ValueError: It shall be private and is public.
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
    """The full name of the repository, made if it is not there, with its branch.

    Raises:
        ValueError: It shall be private and is public.
    """
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
