"""recipes/slurm/grpo.slurm with stand-ins for Slurm, and for vLLM and the trainer or with real ones: no cluster."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT, for_cpu

PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> scontrol.calls; fi',
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "vllm": 'echo "$@" >> vllm.calls; echo $$ >> vllm.pids; exec sleep 60',
    "curl": 'sleep 0.1; [ "$HEALTHY" != no ] && [ -e vllm.calls ]',
    "accelerate": """echo "$@" > trainer.calls; echo $$ > trainer.pid
while [ ! -e "$GSR_STOP_FILE" ]; do sleep 0.05; done
if [ "$TRAINER_SAVES" = 1 ]; then sleep 0.3; touch "$GSR_STOP_FILE.saved"; fi
exit 1""",
}
# Nodes that are this machine, without a GPU. As srun does, the stand-in hands on SIGTERM.
LOOPBACK = {
    "scontrol": 'if [ "$1" = show ]; then printf "127.0.0.1\\n127.0.0.1\\n"; else echo "$@" >> scontrol.calls; fi',
    "srun": """trap 'kill "${nodes[@]}" 2>/dev/null' TERM
while [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${1#*=};; esac; shift; done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & nodes+=($!); done
for node in "${nodes[@]}"; do
  wait "$node" || code=$?
  while kill -0 "$node" 2>/dev/null; do wait "$node"; done # the trap ends a wait
done
exit ${code:-0}""",
    # `vllm serve MODEL`; the CPU build's own command does not find its version
    "vllm": f"""echo $$ > vllm.pids
exec setsid {sys.executable} -m vllm.entrypoints.openai.api_server --model "${{@:2}}" > server.log 2>&1""",
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


def wait_for(condition, job, seconds: float = 20):
    """What `condition` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[1][-3000:]
        time.sleep(0.02)
    return value


def text(path) -> str:
    return path.read_text() if path.exists() else ""


def alive(pid: str) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def everything_has_ended(folder) -> bool:
    pids = [pid for name in ("vllm.pids", "trainer.pid") for pid in text(folder / name).split()]
    return bool(pids) and not any(map(alive, pids))


@pytest.mark.parametrize("saves", [True, False])
def test_a_job_is_queued_again_only_if_the_run_has_saved_its_state(tmp_path, saves):
    job = submit(tmp_path, TRAINER_SAVES=str(int(saves)))
    wait_for((tmp_path / "trainer.pid").exists, job)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 1, errors
    assert text(tmp_path / "scontrol.calls") == ("requeue 7\n" if saves else "")
    trainer, server = ((tmp_path / f"{name}.calls").read_text() for name in ("trainer", "vllm"))
    assert "--num_machines 2 --num_processes 16 --machine_rank 0" in trainer and "--max_steps 5" in trainer
    assert "--vllm_server_base_url http://n1:8000" in trainer
    assert '--data-parallel-size 8 --weight-transfer-config {"backend":"nccl"}' in server
    assert everything_has_ended(tmp_path)


def test_a_job_without_a_node_to_train_is_refused(tmp_path):
    job = submit(tmp_path, SERVER_NODES="3")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 2 and "no node is left to train: --nodes 3 with SERVER_NODES=3" in errors


def test_the_trainers_start_when_all_servers_are_healthy_and_end_with_the_last_of_them(tmp_path):
    """Of two servers one dies, and nothing happens; then the other, and the trainers have a second to end."""
    job = submit(tmp_path, SERVER_NODES="2", END_SECONDS="1", SERVER_KEYS="--max-model-len 9")
    wait_for((tmp_path / "trainer.pid").exists, job)
    assert "--vllm_server_base_url http://n1:8000 http://n2:8000" in text(tmp_path / "trainer.calls")
    assert "--num_machines 1" in text(tmp_path / "trainer.calls")
    servers = text(tmp_path / "vllm.pids").split()
    assert len(servers) == 2 and text(tmp_path / "vllm.calls").count("--max-model-len 9") == 2
    os.kill(int(servers[0]), signal.SIGKILL)
    time.sleep(2.5)
    assert job.poll() is None and alive(text(tmp_path / "trainer.pid").strip())
    os.kill(int(servers[1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=20)
    assert job.returncode and "1 of 2 are gone" in errors and "2 of 2 are gone" in errors
    assert text(tmp_path / "scontrol.calls") == "requeue 7\n" and everything_has_ended(tmp_path)


def test_a_job_whose_servers_have_died_too_often_is_not_queued_again(tmp_path):
    job = submit(tmp_path, END_SECONDS="0", SLURM_RESTART_COUNT="3")
    wait_for((tmp_path / "trainer.pid").exists, job)
    os.kill(int(text(tmp_path / "vllm.pids")), signal.SIGKILL)
    job.communicate(timeout=20)
    assert job.returncode and not (tmp_path / "scontrol.calls").exists() and everything_has_ended(tmp_path)


@pytest.mark.parametrize("dies", [True, False])
def test_a_server_that_does_not_get_healthy_ends_the_job_before_a_trainer_starts(tmp_path, dies):
    programs = PROGRAMS | ({"vllm": "echo $$ >> vllm.pids; exit 1"} if dies else {})
    job = submit(tmp_path, programs=programs, HEALTHY="no", START_SECONDS="60" if dies else "1")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 3 and "the server http://n1:8000 has ended, or is not healthy after" in errors
    assert not (tmp_path / "trainer.pid").exists() and everything_has_ended(tmp_path)


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


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_a_server_node_and_a_trainer_node_end_together_and_go_on(tmp_path):
    """The real launcher, recipe and vLLM server, sampling a step ahead: the server dies, the job ends, and goes on."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "accelerate_configs").mkdir()
    for_cpu(ROOT / "accelerate_configs" / "zero3_multinode.yaml", tmp_path / "accelerate_configs")
    keys = ["--max_steps", 8, "--output_dir", "run", "--per_device_train_batch_size", 32, "--max_problems", 200]
    keys += ["--bf16", "true", "--dtype", "bfloat16", "--num_examples", 0]
    keys += ["--save_strategy", "steps", "--save_steps", 2, "--rollout_ahead", 1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"SLURM_GPUS_ON_NODE": "1", "CONFIG": "recipes/tiny/grpo.yaml", "SERVER_PORT": str(port)}
    environment |= {"MODEL": "recipes/tiny/models/base", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment["SERVER_KEYS"] = "--worker-extension-cls gsr_rl.server_worker.ReloadFromDisk --dtype bfloat16 "
    environment["SERVER_KEYS"] += "--enforce-eager --max-model-len 256 --max-num-seqs 32"
    metrics = tmp_path / "run" / "metrics.jsonl"
    steps = lambda: [json.loads(line)["step"] for line in text(metrics).splitlines() if '"loss"' in line]  # noqa: E731
    job = submit(tmp_path, *keys, programs=LOOPBACK, **environment)
    try:
        wait_for(lambda: len(steps()) >= 3, job, 900)
        start = time.monotonic()
        os.killpg(int(text(tmp_path / "vllm.pids")), signal.SIGKILL)
        _, errors = job.communicate(timeout=150)
        assert job.returncode and time.monotonic() - start < 60, errors[-3000:]
        assert text(tmp_path / "scontrol.calls") == "requeue 7\n" and "no vLLM server is left" in errors
        assert not alive(text(tmp_path / "vllm.pids").strip())
        job = submit(tmp_path, *keys, programs=LOOPBACK, **environment)
        _, errors = job.communicate(timeout=900)
        assert job.returncode == 0, errors[-3000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(text(tmp_path / "vllm.pids")), signal.SIGKILL)
    assert sorted(set(steps())) == list(range(1, 9)) and len(list((tmp_path / "run").glob("checkpoint-*"))) >= 1
    assert text(tmp_path / "scontrol.calls") == "requeue 7\n"  # not once more
