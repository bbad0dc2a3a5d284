"""Part B of gpu_check.py: engines, joint runs and the programs, with vLLM, each as a user starts it."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
from gpu_check import ROOT, Check, run_python, tell

GPUS = torch.cuda.device_count()
ON_GPU = GPUS > 0
BASE = "recipes/tiny/models/base"
DRIFT = "sampling_logp_difference/mean"
NEAR = 0.05 if ON_GPU else 1e-3  # of log-probabilities in bfloat16, in float32
ENGINE = {"vllm_dtype": "bfloat16", "vllm_gpu_memory_utilization": 0.3, "vllm_enforce_eager": True}  # on a GPU
COMPILED = {"vllm_enforce_eager": False, "vllm_enable_sleep_mode": True} if ON_GPU else {}
SCRIPT = """
import json, sys, time
from gsr_rl.engines.base import Sampling
from gsr_rl.engines.open import open_engine

if __name__ == "__main__":
    keys = json.loads(sys.argv[1])
    for turn in range(keys.pop("turns")):
        start = time.monotonic()
        with open_engine("vllm", "recipes/tiny/models/base", max_model_length=256, **keys) as engine:
            opened = time.monotonic()
            sampling = Sampling(n=4, temperature=1.0, top_p=0.8, max_tokens=16)
            rows = engine.generate([engine.tokenizer("1+2").input_ids] * 32, sampling)
            assert len(rows) == 32 and all(len(row) == 4 for row in rows)
            print("ENGINE", json.dumps([opened - start, time.monotonic() - opened]), flush=True)
"""


def engines(what: str, turns: int = 1, environment: dict | None = None, **keys) -> None:
    """Open engines from a script of a user's own, sample with top_p < 1, close, and open again."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "own_script.py"
        script.write_text(SCRIPT)
        keys |= {"turns": turns} | ({"gpu_memory_utilization": 0.3} if ON_GPU else {})
        output = run_python(script, json.dumps(keys), **(environment or {}))
    found = re.findall(r"^ENGINE (.*)$", output, re.MULTILINE)
    tell(f"{what}: engines that sampled", len(found), (">=", turns), must=True)
    for number, line in enumerate(found, 1):
        opening, sampling = json.loads(line)
        tell(f"{what}, {number}: s to open", opening)
        tell(f"{what}, {number}: s to sample", sampling)


def twice(small: bool) -> None:
    engines("from a script", turns=2)


def copies(small: bool) -> None:
    engines("two copies", data_parallel_size=2)


def without_nvcc(small: bool) -> None:
    """vLLM's sampler for top_p < 1 is not to be compiled where nvcc is not found."""
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not (Path(folder) / "nvcc").exists())
    engines("nvcc hidden", enforce_eager=True, environment={"PATH": path, "CUDA_HOME": "/nonexistent"})


def half_billion(folder: str) -> str:
    """A random model with the layers of Qwen2.5-0.5B and the tiny world's tokenizer: its path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from gsr_rl.data.tiny_world import build_tokenizer

    tokenizer = build_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=896, intermediate_size=4864, num_hidden_layers=24, attention_bias=True,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, **ids,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def launcher() -> list[str]:
    """`accelerate launch` for the devices there are, under ZeRO-2."""
    from end_to_end import launch_options

    return ["-m", "accelerate.commands.launch", "--main_process_port", "0", *launch_options("zero2", GPUS)]


def pushed(model: str, name: str, **keys) -> None:
    """One joint step, then the engine's log-probabilities against the trainer's, before and after a push."""
    on_gpu = {"use_cpu": False, "bf16": True, **ENGINE}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        run_python(
            *launcher(), "tests/programs/joint_step.py", out, model, json.dumps((on_gpu if ON_GPU else {}) | keys)
        )
        found = json.loads(out.read_text())
    tell(f"{name}: log-probability difference before a push, mean", found["stale"][0])
    tell(f"{name}: after it, mean", found["synced"][0], ("<=", NEAR), must=True)
    tell(f"{name}: after over before", found["synced"][0] / found["stale"][0], ("<=", 0.9), must=True)
    tell(f"{name}: s of a push", found["push_seconds"])


def push_tiny(small: bool) -> None:
    pushed(BASE, "tiny")


def push_half_billion(small: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pushed(half_billion(folder), "0.5B", learning_rate=1e-4)


def joint(folder: Path, name: str, steps: int = 3, **keys) -> list[dict]:
    """The joint recipe in the tiny world; tells how near its engine is to the trainer. Logs of its steps."""
    from end_to_end import recipe_options

    values = {
        "config": "recipes/tiny/grpo.yaml", "model_name_or_path": BASE, "output_dir": folder, "max_steps": steps,
        "num_generations": 4, "per_device_train_batch_size": 32, "max_problems": 100, "num_examples": 0,
        "learning_rate": 0.003, "warmup_steps": 0, "unfinished_candidates": "cut",
    }  # fmt: skip
    values |= ENGINE if ON_GPU else {}
    words = [word for key, value in (values | keys).items() for word in (f"--{key}", str(value))]
    words += recipe_options(ON_GPU, with_vllm=True)
    program = launcher() if keys.get("vllm_mode") != "server" else []
    output = run_python(*program, "recipes/grpo_gsr.py", *words, VLLM_LOGGING_LEVEL="INFO", OMP_NUM_THREADS="1")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "loss" in line]
    names = [f"{stage}/{DRIFT}" for stage in ("candidate", "refinement")]
    worst = max(log[name] for log in logs for name in names if name in log)
    tell(f"{name}: steps", len(logs), (">=", steps), must=True)
    tell(f"{name}: worst log-probability difference of a step, mean", worst, ("<=", NEAR), must=not ON_GPU)
    tell(f"{name}: s of a push", logs[-1]["time/sync"])
    tell(f"{name}: s of a step", logs[-1]["step_time"])
    for what, pattern in {  # as vLLM logs it
        "GiB in use asleep": r"([\d.]+) GiB memory is still in use",
        "s to wake up": r"took ([\d.]+) seconds to wake up",
        "s to fall asleep": r"took ([\d.]+) seconds to fall asleep",
    }.items():
        if values := re.findall(pattern, output):
            tell(f"{name}: {what}", float(values[-1]))
    return logs


def asleep(small: bool) -> None:
    """With sleep mode, which a CPU's vLLM lacks."""
    with tempfile.TemporaryDirectory() as folder:
        joint(Path(folder), "tiny, sleep mode" if ON_GPU else "tiny", **COMPILED)


def asleep_half_billion(small: bool) -> None:
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as folder:
        keys = COMPILED | {"gradient_checkpointing": True, "learning_rate": 1e-5}
        joint(Path(folder), "0.5B, sleep mode", model_name_or_path=half_billion(model), dtype="bfloat16", **keys)


def lora(small: bool) -> None:
    keys = {"use_peft": True, "lora_r": 8, "lora_target_modules": "all-linear", "learning_rate": 0.01}
    with tempfile.TemporaryDirectory() as folder:
        joint(Path(folder), "LoRA", **keys)


def resume(small: bool) -> None:
    """Two steps and a checkpoint, then the same command for one more."""
    keys = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        joint(folder, "before", steps=2, **keys)
        logs = joint(folder, "resumed", steps=3, **keys)
        tell("steps in the log of both runs", ", ".join(str(log["step"]) for log in logs))
        tell("steps computed again", len(logs) - 3, ("<=", 0), must=True)


def solve(small: bool) -> None:
    program = "from gsr_rl.serving.solve_cli import main; main()"
    start = time.monotonic()
    output = run_python("-c", program, "--model", BASE, "--prompt_template", "tiny", "--engine", "vllm", "47+5*3-8")
    tell("gsr-solve: answers", len(re.findall(r"^\s*Answer: ", output, re.MULTILINE)), (">=", 1), must=True)
    tell("gsr-solve: s", time.monotonic() - start)


def server(small: bool) -> None:
    """vLLM as a server on the second GPU, its weights by NCCL from the trainer on the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", BASE, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", "256", "--logprobs-mode", "processed_logprobs"]
    command += ["--gpu-memory-utilization", "0.3", "--weight-transfer-config", '{"backend":"nccl"}']
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "1", "VLLM_SERVER_DEV_MODE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _answers(f"{address}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the vLLM server did not answer within 120 s")
            time.sleep(0.5)
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        with tempfile.TemporaryDirectory() as folder:
            joint(Path(folder), "server, NCCL", vllm_mode="server", vllm_server_base_url=address)
    finally:
        process.kill()  # its own processes end with the check
        process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2)
    except OSError:
        return False
    return True


NEEDS = ("vllm", "trl", "deepspeed")
CHECKS = [
    Check("engines", twice, 150, NEEDS),
    Check("top_p without nvcc", without_nvcc, 100, NEEDS),
    Check("copies", copies, 120, NEEDS, gpus=2),
    Check("push, tiny", push_tiny, 120, NEEDS),
    Check("push, 0.5B", push_half_billion, 150, NEEDS, on_cpu=False),
    Check("joint run", asleep, 120, NEEDS),
    Check("joint run, 0.5B", asleep_half_billion, 150, NEEDS, on_cpu=False),
    Check("LoRA", lora, 120, NEEDS),
    Check("resume", resume, 200, NEEDS),
    Check("gsr-solve", solve, 100, NEEDS),
    Check("server", server, 240, NEEDS, gpus=2, on_cpu=False),
]
