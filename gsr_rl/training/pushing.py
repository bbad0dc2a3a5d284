"""Pushing from a trainer: TRL's keys, our files and card, and failures that are told and never cost a checkpoint."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

from transformers.trainer_utils import HubStrategy

from gsr_rl.hub import push
from gsr_rl.hub.model_card import MARK, PROVENANCE, card_of
from gsr_rl.refinement.settings import write_refinement_settings
from gsr_rl.run_folder import atomic_write

UPLOADING = "hub-uploading"


class PushesToHub:
    """Mixin for a transformers `Trainer` with a `RefinementConfig` among its arguments."""

    def init_hf_repo(self, token=None):
        """transformers makes the repository and fails with a traceback; ours says what is wrong and ends with 2."""
        if not self.is_world_process_zero():
            return
        shutil.rmtree(Path(self.args.output_dir) / UPLOADING, ignore_errors=True)
        target = self._target(self.args.hub_model_id or Path(self.args.output_dir).absolute().name)
        try:
            self.hub_model_id = push.bounded(
                lambda: push.make_repository(target), 120, f"making {target.repo_id} on the Hub"
            )
        except Exception as error:
            why = push.without_token(push.in_one_line(error))
            print(
                f"error: push_to_hub: {target.repo_id} cannot be pushed to: {why}\n"
                "Nothing was trained. Fix it, or leave push_to_hub out and push later by `python -m gsr_rl.hub push`",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2) from None
        self.push_in_progress = None

    def _target(self, repo_id: str) -> push.Target:
        return push.Target(repo_id, "model", self.args.hub_private_repo, self.args.hub_revision)

    def _save(self, output_dir=None, state_dict=None):
        """transformers saves weights and tokenizer; we also say beside them how candidates must be shown."""
        folder = Path(output_dir or self.args.output_dir)
        card = folder / "README.md"
        before = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict=state_dict)
        card.unlink(missing_ok=True) if before is None else atomic_write(card, before)  # PEFT writes a card of its own
        write_refinement_settings(folder, self.args)

    def save_model(self, output_dir=None, _internal_call=False):
        """transformers pushes at every call of this; ours saves, and pushes when it is asked to."""
        super().save_model(output_dir, _internal_call=True)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """TRL writes its own card; ours is made from the run folder, and leaves alone what somebody has written."""
        path = Path(self.args.output_dir) / "README.md"
        by_hand = path.is_file() and MARK not in path.read_text(encoding="utf-8")
        if self.is_world_process_zero() and not by_hand:
            name = self.hub_model_id or model_name or Path(self.args.output_dir).absolute().name
            atomic_write(path, card_of(Path(self.args.output_dir), name))

    def push_to_hub(self, commit_message=None, blocking=True, token=None, revision=None, **kwargs):
        """transformers uploads the whole output_dir; ours the model and what belongs to it. Raises `PushError`."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.save_model()
        return self.push_saved()

    def push_saved(self) -> str | None:
        """Push what output_dir holds, from the main process. Raises `PushError`."""
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        self._finish_current_push()
        return push.push_folder(self.args.output_dir, self._target(self.hub_model_id))

    def push_or_exit(self) -> None:
        """Push what output_dir holds; a failure ends the program with its message and exit code 3."""
        with push.exit_on_failure():
            if address := self.push_saved():
                print(address, flush=True)

    def _push_from_checkpoint(self, checkpoint_folder):
        """transformers uploads output_dir beside the training and drops its errors; ours tells them and goes on."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        folder = Path(checkpoint_folder)
        whole_as = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}
        target = self._target(self.hub_model_id)
        self.push_in_progress = CheckpointPush(folder, target, whole_as.get(self.args.hub_strategy))


class CheckpointPush:
    """A push of a checkpoint beside the training: one commit. A failure is printed, and the training goes on.

    Args:
        checkpoint: Its folder. It is linked first, because training may delete it meanwhile.
        target: Where to.
        whole_as: Folder of the repository that also gets the whole checkpoint, optimizer included.
    """

    def __init__(self, checkpoint: Path, target: push.Target, whole_as: str | None):
        self.links = checkpoint.parent / UPLOADING / checkpoint.name
        shutil.rmtree(self.links, ignore_errors=True)
        shutil.copytree(checkpoint, self.links, copy_function=_link)
        self.parts = [path for path in self.links.rglob("*") if path.is_file()]
        for name in ("config.yaml", PROVENANCE, "versions.json", "README.md"):
            if (checkpoint.parent / name).is_file():
                shutil.copy2(checkpoint.parent / name, self.links / name)
        size = sum(path.stat().st_size for path in self.links.rglob("*") if path.is_file())
        self.deadline = time.monotonic() + push.START_SECONDS + 2 * size / push.LEAST_BYTES_PER_SECOND
        self.name, self.target, self.whole_as = checkpoint.name, target, whole_as
        self.thread = threading.Thread(target=self._run, daemon=True, name="hub-checkpoint")
        self.thread.start()

    def _run(self) -> None:
        try:
            files = push.files_of(self.links, self.target)
            if self.whole_as:
                files |= {f"{self.whole_as}/{path.relative_to(self.links).as_posix()}": path for path in self.parts}
            push.push_files(files, self.target, f"Training in progress, {self.name}", retry="")
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
