"""Checkpoints that are written atomically, what is pushed of them, and runs that save and end when told to stop.

A checkpoint is written into `checkpoint-saving/` and moved to `checkpoint-N` in one step when all ranks have written
their part, so a run that is cut off at any moment leaves only complete ones. transformers writes in place, and takes
the highest number for the newest, complete or not.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, get_last_checkpoint

from gsr_rl.hub import push
from gsr_rl.hub.__main__ import merge_adapter
from gsr_rl.hub.model_card import MARK, card_of
from gsr_rl.refinement.settings import write_refinement_settings
from gsr_rl.run_folder import atomic_write

SAVING = "checkpoint-saving"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 143  # exit code of a run that has been told to stop, its state saved: the same command goes on
STOP_FILE = "GSR_STOP_FILE"  # environment variable: a file that, once it is there, stops the run as a signal does
REPEATED = 10.0  # seconds in which a second signal is the first one, passed on by a launcher
ROOM = 1.1  # free space that is required, as a multiple of what a checkpoint is expected to take


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

    After `train()`, `stopped` says whether it was told to stop; its state is in a checkpoint then.
    """

    stopped = False
    first_step = 0  # the step that this run goes on from

    def add_stop_signals(self) -> None:
        """From now on SIGTERM, SIGUSR1 and the file GSR_STOP_FILE save a checkpoint after the step, and end it all."""
        self.add_callback(StopInOrder(self))

    def can_save_here(self) -> bool:
        """Whether a checkpoint between this optimizer step and the next one holds all there is to continue from."""
        return True

    def save_extra_state(self, folder: str) -> None:
        """What a checkpoint holds beyond transformers' own; called on the main process."""

    def _run_epoch(self, **kwargs):
        """transformers makes one more step where the checkpoint that it goes on from is of the last."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def log(self, logs, *args, **kwargs):
        """transformers' rates at the end are those of all steps; here, of the steps that this run has made."""
        share = (self.state.global_step - self.first_step) / max(1, self.state.max_steps)
        for rate in {"train_samples_per_second", "train_steps_per_second"} & set(logs):
            logs[rate] = round(logs[rate] * share, 3)
        super().log(logs, *args, **kwargs)

    def _get_output_dir(self, trial):
        """transformers saves in the output folder; while a checkpoint is being written it is a folder inside."""
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, SAVING) if getattr(self, "_saving", False) else folder

    def _save_checkpoint(self, model, trial):
        """transformers writes in place and deletes old ones; we move a complete one into place, then delete."""
        folder, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        temporary, name = folder / SAVING, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self._check_room(folder)
        if self.state.best_global_step:
            best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.is_dir() or best.name == name:
                self.state.best_model_checkpoint = str(best)
        best_checkpoint = self.state.best_model_checkpoint  # transformers would look into the temporary folder
        self.accelerator.wait_for_everyone()
        self._write_checkpoint(model, trial, temporary / name, best_checkpoint)
        self.state.best_model_checkpoint = best_checkpoint
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _remove(folder / name, temporary)
            os.replace(temporary / name, folder / name)
            self._rotate(folder, limit, temporary)
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / name))

    def _write_checkpoint(self, model, trial, path: Path, best_checkpoint: str | None) -> None:
        """transformers' own checkpoint and ours at `path`, in the temporary folder; nothing is deleted or pushed."""
        limit, push = self.args.save_total_limit, self.args.push_to_hub
        self._saving, self.args.save_total_limit, self.args.push_to_hub = True, None, False
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self.save_extra_state(str(path))
                self.state.best_model_checkpoint = best_checkpoint
                self.state.save_to_json(str(path / "trainer_state.json"))
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is each of them, by who was writing
            with suppress(OSError):
                shutil.rmtree(path.parent)
            raise RuntimeError(
                f"checkpoint {path.name} could not be written to {path.parent.parent}: {error}. The checkpoints "
                "before it are whole; if the disk is full make room, and start the same command with "
                "resume_from_checkpoint true"
            ) from error
        finally:
            self._saving, self.args.save_total_limit, self.args.push_to_hub = False, limit, push

    def _rotate(self, folder: Path, limit: int | None, temporary: Path) -> None:
        """Delete the oldest checkpoints beyond `limit`, never the one just written and never the best."""
        if not limit or limit < 1:
            return
        paths = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))
        newest = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        needed = {newest, Path(self.state.best_model_checkpoint or "").name}
        spare = [path for path in paths if path.name not in needed]
        for path in spare[: max(0, len(paths) - limit)]:
            _remove(path, temporary)

    def _check_room(self, folder: Path) -> None:
        """Raise on all ranks alike, before anything is written, if the disk has no room for a checkpoint."""
        deepspeed = self.accelerator.state.deepspeed_plugin
        zero_stage = deepspeed.zero_stage if deepspeed else None
        needed = ROOM * expected_size(self.model, self.args.save_only_model, zero_stage)
        free = shutil.disk_usage(folder).free if folder.exists() else needed
        short = torch.tensor([float(self.args.should_save and free < needed)], device=self.accelerator.device)
        if self.accelerator.reduce(short, reduction="sum").item() > 0:
            raise RuntimeError(
                f"{folder} has {free / 2**30:.2f} GiB free, a checkpoint takes about {needed / 2**30:.2f} GiB: "
                "nothing was written, the checkpoints before it are whole. Make room, or lower save_total_limit, "
                "and start the same command with resume_from_checkpoint true"
            )

    def _finalize_training(self, trial, num_train_samples, start_time):
        """transformers loads the best checkpoint and may delete the others; a stopped run goes on from its newest."""
        best = self.state.best_model_checkpoint
        if self.stopped:
            self.state.best_model_checkpoint = None
        output = super()._finalize_training(trial, num_train_samples, start_time)
        self.state.best_model_checkpoint = best
        return output


class PushesToHub:
    """Mixin for a transformers `Trainer` with a `RefinementConfig` among its arguments.

    TRL's keys, our files and card; a failure is told and never costs a checkpoint.
    """

    def init_hf_repo(self, token=None):
        """transformers makes the repository and fails with a traceback; ours says what is wrong and ends with 2."""
        if not self.is_world_process_zero():
            return
        shutil.rmtree(Path(self.args.output_dir) / push.UPLOADING, ignore_errors=True)
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

    def merge_or_not(self) -> None:
        """With `merge_adapter` the output folder's adapter becomes a whole model, on the main process."""
        if self.args.merge_adapter and self.is_world_process_zero():
            merge_adapter(self.args.output_dir)
        self.accelerator.wait_for_everyone()

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
        self.push_in_progress = push.CheckpointPush(folder, target, whole_as.get(self.args.hub_strategy))


def expected_size(model, weights_only: bool, zero_stage: int | None = None) -> int:
    """Bytes of a checkpoint: weights, and for each trained parameter two moments. Of a PEFT model the trained part.

    DeepSpeed (with `zero_stage`) holds a master copy and the moments in float32. Below stage 3 it writes the weights
    a second time, and from stage 2 on the frozen ones once more.
    """
    adapters, size = is_peft_model(model), 0
    for parameter in model.parameters():
        trained = parameter.requires_grad
        if adapters and not trained:
            continue
        number = getattr(parameter, "ds_numel", parameter.numel())
        weight = number * parameter.element_size()
        size += weight
        if weights_only:
            continue
        if zero_stage is not None:
            size += weight * ((zero_stage < 3) + (zero_stage > 1 and not trained)) + number * 12 * trained
        else:
            size += weight * 2 * trained
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

    A signal to any rank counts for all of them, and so does the file that GSR_STOP_FILE names. Beside it `.saved` says
    that the run has stopped and its state is saved: a launcher has an exit code of its own. A signal that comes again
    at once has been passed on by a launcher; one that comes later has its default action.
    """

    def __init__(self, trainer):
        self.trainer, self.stopping, self.save_due = trainer, False, False
        self.signalled_at: float | None = None  # monotonic seconds
        self.stop_file = Path(os.environ[STOP_FILE]) if os.environ.get(STOP_FILE) else None
        self.previous: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.first_step = state.global_step
        for number in STOP_SIGNALS:
            with suppress(ValueError):  # not in the main thread: the program's own affair
                self.previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        if self.signalled_at is None:
            self.signalled_at = time.monotonic()
            print(f"signal {number}: saving a checkpoint at the end of this step, then stopping", flush=True)
        elif time.monotonic() - self.signalled_at > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _told_here(self, state) -> bool:
        by_file = self.stop_file is not None and state.is_world_process_zero and self.stop_file.exists()
        return by_file or self.signalled_at is not None

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        ranks_told = torch.tensor([float(self._told_here(state))], device=accelerator.device)
        self.stopping = accelerator.reduce(ranks_told, reduction="sum").item() > 0
        self.save_due = self.save_due or self.stopping or control.should_save
        control.should_save = self.save_due and self.trainer.can_save_here()
        if self.stopping and control.should_save:
            control.should_evaluate = False  # it comes before the save, takes its time, and may call it off
        return control

    def on_save(self, args, state, control, **kwargs):
        self.save_due = False
        if self.stopping:
            if self.stop_file is not None and state.is_world_process_zero:
                Path(f"{self.stop_file}.saved").touch()
                self.stop_file.unlink(missing_ok=True)
            self.trainer.accelerator.wait_for_everyone()  # the first rank to leave makes a launcher end the others
            self.trainer.stopped = control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
