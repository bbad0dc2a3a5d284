"""Checkpoints that are whole or not there, and runs that save and end in order when they are told to stop.

A checkpoint is written into `checkpoint-saving/` and moved to `checkpoint-N` in one step when all ranks have written
their part, so a run that is cut off at any moment leaves only whole ones. transformers writes in place, and takes the
highest number for the newest, complete or not.
"""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

SAVING = "checkpoint-saving"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 143  # exit code of a run that a signal has ended, its state saved: the same command goes on
ROOM = 1.1  # free space that is asked for, as a multiple of what a checkpoint is expected to take


def resume_point(args) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means. `true`: the newest in output_dir, none on a first start.

    Raises:
        ValueError: A path that is no checkpoint.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        return None
    if wanted.lower() == "true":
        return get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint={wanted}: there is no checkpoint (a folder with trainer_state.json), give one, "
            "or true for the newest in output_dir"
        )
    return wanted


class WholeCheckpoints:
    """Mixin for a transformers `Trainer`: `class MyTrainer(WholeCheckpoints, SFTTrainer)`.

    After `train()`, `stopped` says whether a signal ended it; its state is in a checkpoint then.
    """

    stopped = False

    def add_stop_signals(self) -> None:
        """From now on SIGTERM and SIGUSR1 save a checkpoint at the end of the step, and end the training."""
        self.add_callback(StopInOrder(self))

    def can_save_here(self) -> bool:
        """Whether a checkpoint between this optimizer step and the next one holds all there is to continue from."""
        return True

    def save_extra_state(self, folder: str) -> None:
        """What a checkpoint holds beyond transformers' own; called on the main process."""

    def _get_output_dir(self, trial):
        """transformers saves in the output folder; while a checkpoint is being written it is a folder inside."""
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, SAVING) if getattr(self, "_saving", False) else folder

    def _save_checkpoint(self, model, trial):
        """transformers writes in place and deletes old ones; we move a whole one into place, then delete."""
        final_folder = Path(self._get_output_dir(trial))
        temporary = final_folder / SAVING
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self._check_room(final_folder)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, push = self.args.save_total_limit, self.args.push_to_hub
        self._saving, self.args.save_total_limit, self.args.push_to_hub = True, None, False
        if self.state.best_global_step:
            best = final_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.is_dir() or best.name == name:
                self.state.best_model_checkpoint = str(best)
        best_checkpoint = self.state.best_model_checkpoint
        try:
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self.save_extra_state(str(temporary / name))
                self.state.best_model_checkpoint = best_checkpoint  # transformers looked into the temporary folder
                self.state.save_to_json(str(temporary / name / "trainer_state.json"))
        except OSError as error:
            with suppress(OSError):
                shutil.rmtree(temporary)
            raise RuntimeError(
                f"checkpoint {name} could not be written to {final_folder}: {error}. The checkpoints before it are "
                "whole; make room and start the same command with resume_from_checkpoint true"
            ) from error
        finally:
            self._saving, self.args.save_total_limit, self.args.push_to_hub = False, limit, push
        self.state.best_model_checkpoint = best_checkpoint
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _remove(final_folder / name, temporary)
            os.replace(temporary / name, final_folder / name)
            self._rotate(final_folder, limit, temporary)
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if push:
            self._push_from_checkpoint(str(final_folder / name))

    def _rotate(self, folder: Path, limit: int | None, temporary: Path) -> None:
        """Delete the oldest checkpoints beyond `limit`, never the newest and never the best."""
        if not limit or limit < 1:
            return
        found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))
        kept = {found[-1].name, Path(self.state.best_model_checkpoint or "").name}
        spare = [path for path in found if path.name not in kept]
        for path in spare[: max(0, len(found) - limit)]:
            _remove(path, temporary)

    def _check_room(self, folder: Path) -> None:
        """Raise on all ranks alike, before anything is written, if the disk has no room for a checkpoint."""
        needed = ROOM * expected_size(self.model, self.args.save_only_model)
        free = shutil.disk_usage(folder).free if folder.exists() else needed
        short = torch.tensor([float(self.args.should_save and free < needed)], device=self.accelerator.device)
        if self.accelerator.reduce(short, reduction="sum").item() > 0:
            raise RuntimeError(
                f"{folder} has {free / 2**30:.2f} GiB free, a checkpoint takes about {needed / 2**30:.2f} GiB: "
                "nothing was written, the checkpoints before it are whole. Make room, or lower save_total_limit, "
                "and start the same command with resume_from_checkpoint true"
            )


def expected_size(model, weights_only: bool) -> int:
    """Bytes of a checkpoint: weights, and for each trained parameter two moments and under DeepSpeed a master copy."""
    size = 0
    for parameter in model.parameters():
        number = getattr(parameter, "ds_numel", parameter.numel())
        size += number * parameter.element_size()
        if parameter.requires_grad and not weights_only:
            size += number * (12 if hasattr(parameter, "ds_numel") or parameter.element_size() < 4 else 8)
    return size


def _remove(path: Path, temporary: Path) -> None:
    """Delete a checkpoint so that a part of it never stands under its name."""
    if path.exists():
        temporary.mkdir(exist_ok=True)
        gone = temporary / f"old-{path.name}"
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


class StopInOrder(TrainerCallback):
    """Saves and stops where a generation batch has been used up: inside one, its rollouts would be lost.

    A signal to any rank counts for all of them. A second signal is left to its default action.
    """

    def __init__(self, trainer):
        self.trainer, self.asked, self.save_due = trainer, False, False
        self.previous: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for number in STOP_SIGNALS:
            with suppress(ValueError):  # not in the main thread: the program's own affair
                self.previous[number] = signal.signal(number, self._ask)

    def _ask(self, number, frame):
        self.asked = True
        print(f"signal {number}: saving a checkpoint at the end of this step, then stopping", flush=True)
        signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        asked = torch.tensor([float(self.asked)], device=accelerator.device)
        asked = accelerator.reduce(asked, reduction="sum").item() > 0
        self.save_due = self.save_due or asked or control.should_save
        whole = self.trainer.can_save_here()
        control.should_save = self.save_due and whole
        if control.should_save:
            self.save_due = False
            if asked:
                self.trainer.stopped = control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
