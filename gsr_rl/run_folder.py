"""What every run folder holds: its owner, resolved configuration, versions, metrics; all written atomically."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

import yaml

logger = logging.getLogger(__name__)

LAUNCHED = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")  # environment variables that a launcher sets
WATCH_SECONDS = 2.0
FLOCK = "hhqqi4x"  # Linux, 64 bits: kind, from where, start, length, process
_locks: list = []  # files that are locked until this process ends
PACKAGES = ("torch", "transformers", "trl", "vllm", "deepspeed", "accelerate", "datasets", "math-verify", "numpy")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, and a run that is killed, sees the old content or the new one, never a part."""
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: str | Path):
    """A temporary path beside `path` that takes `path`'s place, synced to disk, when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def is_first_rank() -> bool:
    """Whether this is the first process of a launch, or the only one; by the environment, before ranks have met."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def take_folder(folder: str | Path) -> None:
    """Make this process the owner of a run's folder until it ends, in whatever way. Only rank 0 of a launch does.

    The lock is the operating system's (`lockf` on `.lock`), so none is left behind. It works on a network disk if that
    has locks; a warning says if not.

    Raises:
        ValueError: Another process is the owner.
    """
    if not is_first_rank():
        return
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115 - held until this process ends
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(
            f"output_dir={folder} is in use by {owner_of(path)}: wait for it or end it, or give another output_dir"
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that no second run uses this folder", path, error)
    sign(file)
    _locks.append(file)


def sign(file) -> None:
    """Write into a locked file who holds the lock, for `owner_of`."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
    file.flush()


def owner_of(path: Path) -> str:
    """Who holds the lock of a file: process, host and since when."""
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"


def in_use(folder: str | Path) -> bool:
    """Whether another process holds a run's folder (`take_folder`). Only looks at the lock, so it is in nobody's way.

    False where the lock is not there or cannot be looked at.
    """
    with contextlib.suppress(OSError), open(Path(folder) / ".lock", "rb") as file:
        held = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return struct.unpack(FLOCK, held)[0] != fcntl.F_UNLCK
    return False


def end_with_launcher() -> None:
    """Let this process end within seconds after the launcher that started it, which a `kill -9` leaves no time to."""
    if not any(name in os.environ for name in LAUNCHED):
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(WATCH_SECONDS)
        print(f"process {os.getpid()}: its launcher, process {launcher}, is gone, so it ends too", file=sys.stderr)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def append_json_line(path: str | Path, record: dict) -> None:
    """Append one record to a file of JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that figures depend on. Imports none of them."""
    by_name = {"python": platform.python_version(), "gsr-rl": metadata.version("gsr-rl")}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                by_name[name] = metadata.version(distribution)
                break
    return by_name


def hardware() -> dict[str, object]:
    """The machine in words: processor, usable cores, accelerator."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        stated = re.search(r"^model name[^:\n]*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = stated[1].strip() if stated else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor, "cores": cores, "accelerators": _accelerators()}


def _accelerators() -> list[str]:
    """Names of the visible GPUs. torch would initialize CUDA to tell them, so it is asked only where that is done."""
    cuda, visible = getattr(sys.modules.get("torch"), "cuda", None), os.environ.get("CUDA_VISIBLE_DEVICES")
    if cuda and cuda.is_initialized():
        return [cuda.get_device_name(i) for i in range(cuda.device_count())]
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", *([f"--id={visible}"] if visible else [])]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if visible != "":
            return subprocess.check_output(words, text=True, timeout=60, stderr=subprocess.DEVNULL).splitlines()
    return []


def machine(hardware: dict) -> str:
    """What `hardware` found, in a line: the accelerators, or the processor where there is none."""
    processor = f"{hardware.get('processor', 'unknown processor')}, no accelerator"
    return ", ".join(map(str, hardware.get("accelerators") or [processor]))


def plain(config: object) -> dict:
    """A configuration (a dataclass or a mapping) as a mapping of plain values, secrets left out."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)
    return json.loads(json.dumps(without_secrets(values), default=str))


def resolved_yaml(configs: dict[str, object]) -> str:
    """The resolved configurations as YAML text, one section per name."""
    return yaml.safe_dump({name: plain(config) for name, config in configs.items()}, sort_keys=False, width=119)


def write_run_info(folder: str | Path, configs: dict[str, object], launch: dict[str, object] | None = None) -> None:
    """Write `config.yaml` (every resolved value, by section), `versions.json` and `command.txt`, without secrets.

    `launch`: what a training was launched as, for `versions.json`.
    """
    folder = Path(folder)
    atomic_write(folder / "config.yaml", resolved_yaml(configs))
    made_with = versions() | {"hardware": hardware()} | ({"launch": launch} if launch else {})
    atomic_write(folder / "versions.json", json.dumps(made_with, indent=1) + "\n")
    atomic_write(folder / "command.txt", masked_command(sys.argv) + "\n")


def print_dry_run(configs: dict[str, object], arithmetic: dict[str, object]) -> None:
    """What `--dry_run true` shows: the resolved configuration, then one line per figure; of several processes once."""
    if not is_first_rank():
        return
    print(resolved_yaml(configs))
    width = max(map(len, arithmetic))
    for name, value in arithmetic.items():
        print(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}")


def json_lines_callback(folder: str | Path):
    """A transformers callback that appends every log record to `folder/metrics.jsonl`, from the main process alone."""
    from transformers import TrainerCallback

    class JsonLines(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            """Later steps are made again, or anew, and so is the summary of a run at its end: both are taken out."""
            path, ended = Path(folder) / "metrics.jsonl", state.global_step >= state.max_steps
            if state.is_world_process_zero and path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                records = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
                stays = lambda log: log["step"] <= state.global_step and not (ended and "train_runtime" in log)  # noqa: E731
                atomic_write(path, "".join(line for line, log in records if stays(log)))

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.is_world_process_zero:
                append_json_line(Path(folder) / "metrics.jsonl", {"step": state.global_step} | (logs or {}))

    return JsonLines()


MASK = "..."
_NAME = r"[\w.-]*(?:(?<!eos_)(?<!pad_)(?<!bos_)(?<!unk_)token|secret|password|api[_-]?key|authorization)s?(?<!tokens)"
_KEY = re.compile(_NAME, re.IGNORECASE)
_OPTION = re.compile(f"--{_NAME}", re.IGNORECASE)
_PAIR = re.compile(
    rf"""({_NAME}["']?\s*[:=]\s*)("[^"]*"|'[^']*'|(?:(?:Bearer|Basic)\s+)?[^\s,;&}}\]"']+)""", re.IGNORECASE
)
_LOOKS = re.compile(r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,})|(?<=Bearer )\S+|(?<=://)[^/\s@]+(?=@)")


def without_secrets(value: object) -> object:
    """The same at any depth without what stands under a secret's key, numbers apart, and with tokens masked."""
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if not _KEY.fullmatch(str(k)) or isinstance(v, int | float | None)}
        return {key: without_secrets(entry) for key, entry in shown.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry) for entry in value]
    return masked(value) if isinstance(value, str) else value


def masked(text: str) -> str:
    """A text without tokens, and without the values of pairs such as `token: x` or `api_key=x`."""
    return _LOOKS.sub(MASK, _PAIR.sub(rf"\g<1>{MASK}", text))


def masked_command(words: list[str]) -> str:
    """A command line as text, without the words after options that are secrets' keys."""
    shown, hide = [], False
    for word in words:
        shown.append(MASK if hide and not word.startswith("--") else masked(word))
        hide = bool(_OPTION.fullmatch(word))
    return " ".join(shown)
