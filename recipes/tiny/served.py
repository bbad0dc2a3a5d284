"""A training of the tiny world whose engine is a vLLM server of its model: the server starts before it, ends with it.

    python recipes/tiny/served.py recipes/grpo_gsr.py --config recipes/tiny/grpo.yaml --model_name_or_path MODEL \\
        --output_dir OUT --vllm_mode server --rollout_ahead 1

The command is started as `python COMMAND --vllm_server_base_url ADDRESS`; the server's log is OUT.server.log.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextlib.contextmanager
def serve(model: str, log: Path, core: int | None = None) -> Iterator[str]:
    """The address of a vLLM server that computes with one thread, on `core` alone if that is given.

    SIGTERM ends this process by an exception from now on, so that the server ends too.

    Raises:
        SystemExit: It has not started; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bound = "nobind" if core is None else str(core)
    more = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": bound}
    command = [] if core is None else ["taskset", "-c", str(core)]
    command += [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "256", "--logprobs-mode", "processed_logprobs"]
    command += ["--worker-extension-cls", "gsr_rl.server_worker.ReloadFromDisk", "--disable-uvicorn-access-log"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with log.open("w") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT | more, **streams)
    try:
        deadline = time.monotonic() + 900
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{log.read_text()[-3000:]}\nthe server has not started")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def main() -> None:
    command = [sys.executable, *sys.argv[1:]]
    model, out = (command[command.index(f"--{key}") + 1] for key in ("model_name_or_path", "output_dir"))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with serve(model, Path(f"{out}.server.log")) as url:
        process = subprocess.Popen([*command, "--vllm_server_base_url", url], env=os.environ | ENVIRONMENT)
        try:
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
    sys.exit(code)


if __name__ == "__main__":
    main()
