"""What a run shows of itself does not end it."""

from types import SimpleNamespace

from gsr_rl.training.rollout_log import WARN_AGAIN_AFTER, RolloutLog
from tests.support.full_disk import files_up_to


def test_a_full_disk_costs_the_rollout_table_and_is_a_warning_once_in_a_while(tmp_path, caplog):
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)),
        accelerator=SimpleNamespace(process_index=1),
        state=SimpleNamespace(global_step=3),
        processing_class=None,
    )
    log = RolloutLog(trainer)
    with files_up_to(10):
        for _ in range(WARN_AGAIN_AFTER + 1):
            log._write_table([], 3)
            log._generations += 1
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 3"] * 2
    assert f"rollouts are not written to {tmp_path}/rollouts" in caplog.text and "the run goes on" in caplog.text
    assert list((tmp_path / "rollouts").iterdir()) == []
    log._write_table([], 4)
    assert (tmp_path / "rollouts" / "step_000004_rank_1.parquet").is_file()
