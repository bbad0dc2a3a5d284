"""Stopping and saving around transformers' own training loop, with real writers and a model of one layer."""

import signal

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from gsr_rl.training.checkpoints import REPEATED, StopInOrder, WholeCheckpoints
from tests.support.full_disk import files_up_to


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x, labels):
        return {"loss": (self.layer(x) - labels).square().mean()}


class SmallTrainer(WholeCheckpoints, Trainer):
    """Four steps, a checkpoint each, and the first is the best. `at_step` is called at the beginning of steps."""

    def __init__(self, folder, at_step=lambda step: None, **more):
        values = {"max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 2, "logging_steps": 10}
        args = TrainingArguments(
            str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **(values | more), save_strategy="steps"
        )
        rows = [{"x": torch.randn(64), "labels": torch.randn(64)} for _ in range(8)]

        class AtStep(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                at_step(state.global_step + 1)

        super().__init__(Layer(), args, train_dataset=rows, eval_dataset=rows, callbacks=[AtStep()])
        self.add_stop_signals()

    def evaluate(self, *_, **__):
        return {"eval_loss": float(self.state.global_step)}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_stopped_run_keeps_its_newest_checkpoint_beside_the_best(tmp_path):
    trainer = SmallTrainer(
        tmp_path,
        lambda step: signal.raise_signal(signal.SIGTERM) if step == 3 else None,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert trainer.stopped and names(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def test_a_file_stops_a_run_and_another_says_that_its_state_is_saved(tmp_path, monkeypatch):
    wish, saved = tmp_path / "wish", tmp_path / "wish.saved"
    monkeypatch.setenv("GSR_STOP_FILE", str(wish))
    trainer = SmallTrainer(tmp_path, lambda step: wish.touch() if step == 2 else None, save_steps=100)
    trainer.train()
    assert trainer.stopped and names(tmp_path) == ["checkpoint-2"]
    assert saved.exists() and not wish.exists()
    saved.unlink()
    trainer = SmallTrainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert not trainer.stopped and not saved.exists() and trainer.state.global_step == 4


def test_a_signal_passed_on_is_the_same_signal_and_a_later_one_kills(tmp_path, monkeypatch):
    stop = StopInOrder(None)
    died = []
    monkeypatch.setattr(signal, "raise_signal", lambda number: died.append(signal.getsignal(number)))
    before = signal.signal(signal.SIGUSR1, stop._on_signal)
    try:
        stop._on_signal(signal.SIGUSR1, None)
        stop._on_signal(signal.SIGUSR1, None)
        assert stop.signalled_at is not None and not died
        stop.signalled_at -= REPEATED
        stop._on_signal(signal.SIGUSR1, None)
        assert died == [signal.SIG_DFL]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("size", [10_000, 25_000], ids=["weights", "optimizer"])
def test_a_disk_that_fills_while_a_checkpoint_is_written_is_a_clear_error(tmp_path, size):
    trainer = SmallTrainer(tmp_path)  # 17 kB of weights, 33 kB of moments
    with files_up_to(size), pytest.raises(RuntimeError, match=r"checkpoint-1 could not be written.*full make room"):
        trainer.train()
    assert names(tmp_path) == []


def test_an_older_runs_higher_numbers_do_not_cost_the_checkpoint_just_written(tmp_path):
    for number in (100, 200):
        (tmp_path / f"checkpoint-{number}").mkdir()
    SmallTrainer(tmp_path, max_steps=2, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-200"]
