"""recipes/slurm/grpo.slurm with stand-ins for Slurm, vLLM and the trainer: it has never seen a cluster."""

import os
import signal
import subprocess
import time

import pytest
from conftest import ROOT

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> scontrol.calls; fi',
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "vllm": 'echo "$@" > vllm.calls; exec sleep 60',
    "accelerate": """echo "$@" > trainer.calls
while [ ! -e "$GSR_STOP_FILE" ]; do sleep 0.05; done
if [ "$TRAINER_SAVES" = 1 ]; then sleep 0.3; touch "$GSR_STOP_FILE.saved"; fi
exit 1""",
}


def submit(folder, **environment):
    for name, text in PROGRAMS.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    environment |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "CONFIG": "C.yaml", "MODEL": "M"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}
    return subprocess.Popen(
        ["bash", str(ROOT / "recipes/slurm/grpo.slurm"), "--max_steps", "5"],
        cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("saves", [True, False])
def test_a_job_is_queued_again_only_if_the_run_has_saved_its_state(tmp_path, saves):
    job = submit(tmp_path, TRAINER_SAVES=str(int(saves)))
    deadline = time.monotonic() + 20
    while not (tmp_path / "trainer.calls").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 1, errors
    queued = tmp_path / "scontrol.calls"
    assert (queued.read_text() if queued.exists() else "") == ("requeue 7\n" if saves else "")
    trainer, server = ((tmp_path / f"{name}.calls").read_text() for name in ("trainer", "vllm"))
    assert "--num_machines 2 --num_processes 16 --machine_rank 0" in trainer and "--max_steps 5" in trainer
    assert "--vllm_server_base_url http://n1:8000" in trainer
    assert '--weight-transfer-config {"backend":"nccl"}' in server


def test_more_servers_than_the_trainer_talks_to_are_refused(tmp_path):
    job = submit(tmp_path, SERVER_NODES="2")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 2 and "SERVER_NODES=2" in errors and "set it to 1, or to 0" in errors
