"""What every run folder holds: resolved configuration, versions, metrics as JSON lines. Files are written whole."""

import contextlib
import dataclasses
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import yaml

from gsr_rl.masking import masked_command, without_secrets

PACKAGES = ("torch", "transformers", "trl", "vllm", "deepspeed", "accelerate", "datasets", "math-verify", "numpy")


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, and a run that is killed, sees the old content or the new one, never a part."""
    with atomic_path(path) as temporary:
        data = content.encode() if isinstance(content, str) else content
        Path(temporary).write_bytes(data)


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
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def append_json_line(path: str | Path, record: dict) -> None:
    """Append one record to a file of JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that figures depend on. Imports none of them."""
    from gsr_rl import __version__

    found = {"python": platform.python_version(), "gsr-rl": __version__}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(distribution)
                break
    return found


def hardware() -> dict[str, object]:
    """The machine in words: processor, usable cores, accelerator."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerators: list[str] = []
    if "torch" in sys.modules:
        cuda = sys.modules["torch"].cuda
        accelerators = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return {"processor": processor, "cores": cores, "accelerators": accelerators}


def machine(hardware: dict) -> str:
    """What `hardware` found, in a line: the accelerators, or the processor where there is none."""
    processor = f"{hardware.get('processor', 'unknown processor')}, no accelerator"
    return ", ".join(map(str, hardware.get("accelerators") or [processor]))


def plain(config: object) -> dict:
    """A configuration (a dataclass or a mapping) as a mapping of plain values, secrets left out."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)
    return json.loads(json.dumps(without_secrets(values), default=str))


def resolved_yaml(configs: dict[str, object]) -> str:
    """The resolved configurations as YAML text, one section a name."""
    return yaml.safe_dump({name: plain(config) for name, config in configs.items()}, sort_keys=False, width=119)


def write_run_info(folder: str | Path, configs: dict[str, object], launch: dict[str, object] | None = None) -> None:
    """Write `config.yaml` (every resolved value, by section), `versions.json` and `command.txt` into `folder`.

    Secrets are left out of them. `launch`: what a training was launched as, for `versions.json`.
    """
    folder = Path(folder)
    atomic_write(folder / "config.yaml", resolved_yaml(configs))
    found = versions() | {"hardware": hardware()} | ({"launch": launch} if launch else {})
    atomic_write(folder / "versions.json", json.dumps(found, indent=1) + "\n")
    atomic_write(folder / "command.txt", masked_command(sys.argv) + "\n")


def write_refinement_settings(folder: str | Path, config: object) -> None:
    """Write `gsr_config.json` beside a model: how candidates must be shown to it.

    It holds the fields of `RefinementConfig`, `prompt_template_version`, `min_num_candidates` where the number of
    candidates was drawn, and the lengths that completions had in training where the program samples.
    """
    from gsr_rl.data_configs import COMPLETION_LENGTHS, RefinementConfig
    from gsr_rl.prompts import get_template

    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(RefinementConfig)}
    optional = ("min_num_candidates", *COMPLETION_LENGTHS)
    settings |= {name: getattr(config, name) for name in optional if getattr(config, name, None)}
    settings["prompt_template_version"] = get_template(settings["prompt_template"]).version
    atomic_write(Path(folder) / "gsr_config.json", json.dumps(settings, indent=1) + "\n")


def read_refinement_settings(folder: str | Path) -> dict:
    """The content of a model's `gsr_config.json`; empty if the model has none.

    Raises:
        ValueError: It is no JSON object, or its prompt template has another wording in this version of gsr-rl.
    """
    from gsr_rl.prompts import TEMPLATES

    path = Path(folder) / "gsr_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        name, version = str(settings.get("prompt_template", "gsr")), settings.get("prompt_template_version", 1)
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no JSON object ({error}): restore it, or train or download the model anew"
        ) from None
    known = TEMPLATES[name].version if name in TEMPLATES else None
    if version != known:
        here = f"has version {known}" if known else f"has only {sorted(TEMPLATES)}"
        raise ValueError(
            f"{path}: the model was trained on prompt_template {name}, version {version}; this gsr-rl {here}: use "
            "the gsr-rl that versions.json names, or train anew"
        )
    return settings


def print_dry_run(configs: dict[str, object], arithmetic: dict[str, object]) -> None:
    """What `--dry_run true` shows: the resolved configuration, then one line a figure; of several processes once."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
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
            """Steps after this one are made again, or anew: what stands there of them is taken out."""
            path = Path(folder) / "metrics.jsonl"
            if state.is_world_process_zero and path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [
                    line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step
                ]
                atomic_write(path, "".join(kept))

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.is_world_process_zero:
                append_json_line(Path(folder) / "metrics.jsonl", {"step": state.global_step} | (logs or {}))

    return JsonLines()
