"""Where the repository is, and its accelerate configurations for GPUs made to run without any."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def for_cpu(config: Path, folder: Path) -> Path:
    """A copy of an accelerate configuration for GPUs that runs without any."""
    copy = folder / config.name
    text = config.read_text()
    assert "use_cpu: false" in text
    copy.write_text(text.replace("use_cpu: false", "use_cpu: true"))
    return copy
