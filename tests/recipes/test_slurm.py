"""recipes/slurm/grpo.slurm with stand-ins for Slurm, and for vLLM and the trainer or with real ones: no cluster."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT, for_cpu

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> scontrol.calls; fi',
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "vllm": 'echo "$@" > vllm.calls; exec sleep 60',
    "accelerate": """echo "$@" > trainer.calls
while [ ! -e "$GSR_STOP_FILE" ]; do sleep 0.05; done
if [ "$TRAINER_SAVES" = 1 ]; then sleep 0.3; touch "$GSR_STOP_FILE.saved"; fi
exit 1""",
}
# Two nodes, which are this machine, without a GPU.
LOOPBACK = {
    "scontrol": 'if [ "$1" = show ]; then printf "127.0.0.1\\n127.0.0.1\\n"; else echo "$@" >> scontrol.calls; fi',
    "srun": """while [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${1#*=};; esac; shift; done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & nodes+=($!); done
for node in "${nodes[@]}"; do wait "$node" || code=$?; done
exit ${code:-0}""",
    "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
}


def submit(folder, *keys, programs=PROGRAMS, **environment):
    for name, text in programs.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "activate").touch()
    environment = {"CONFIG": "C.yaml", "MODEL": "M", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "nodes"} | environment
    environment["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(ROOT / "recipes/slurm/grpo.slurm"), "--max_steps", "5", *map(str, keys)],
        cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
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


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_two_nodes_on_one_machine_train_stop_and_go_on(tmp_path):
    """The real launcher, recipe, ZeRO-3 in bfloat16 and vLLM; before its time limit the job is stopped and goes on."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "accelerate_configs").mkdir()
    for_cpu(ROOT / "accelerate_configs" / "zero3_multinode.yaml", tmp_path / "accelerate_configs")
    keys = ["--max_steps", 12, "--output_dir", "run", "--per_device_train_batch_size", 32, "--max_problems", 200]
    keys += ["--bf16", "true", "--dtype", "bfloat16", "--vllm_dtype", "bfloat16", "--num_examples", 0]
    keys += ["--save_strategy", "steps", "--save_steps", 100]
    environment = {"SERVER_NODES": "0", "SLURM_GPUS_ON_NODE": "1", "CONFIG": "recipes/tiny/grpo.yaml"}
    environment |= {"MODEL": "recipes/tiny/models/base", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 600
    job = submit(tmp_path, *keys, programs=LOOPBACK, **environment)
    try:
        while not metrics.exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=120)
        assert (tmp_path / "scontrol.calls").read_text() == "requeue 7\n", errors[-3000:]
        (checkpoint,) = (tmp_path / "run").glob("checkpoint-[0-9]*")
        assert 1 <= int(checkpoint.name[11:]) < 12
        job = submit(tmp_path, *keys, programs=LOOPBACK, **environment)
        _, errors = job.communicate(timeout=deadline - time.monotonic())
        assert job.returncode == 0, errors[-3000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    launch = json.loads((tmp_path / "run" / "versions.json").read_text())["launch"]
    assert launch == {"processes": 2, "sharding": "DeepSpeed ZeRO-3"}
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 13))
    assert (tmp_path / "scontrol.calls").read_text() == "requeue 7\n"  # not once more
