"""Pages that MkDocs makes when it builds: each program's keys from the dataclasses, results and changelog.

A hook of mkdocs.yml. The pages are written nowhere, so they cannot be older than the code.
"""

import html
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from gsr_rl import cli  # noqa: E402

PROGRAMS = {
    "distill": "candidates, a teacher's refinements of them, SFT rows",
    "sft": "the warm start",
    "grpo": "joint GRPO",
    "eval": "evaluation",
}
ORIGINS = {
    "RefinementConfig": "How candidates are shown",
    "ProblemConfig": "Problems",
    "DistillProblemConfig": "Problems",
    "EngineConfig": "The engine and how it samples",
    "TeacherConfig": "The teacher's engine",
    "DistillConfig": "Distillation",
    "GSRSFTConfig": "The warm start",
    "GSRConfig": "Joint GRPO",
    "EvalConfig": "Evaluation",
    "HubConfig": "The Hub",
    "DataSetHubConfig": "The Hub",
    "ResultsHubConfig": "The Hub",
}


def on_files(files, config):
    """MkDocs asks which files there are: ours, and those that are made here."""
    pages = {f"keys/{program}.md": keys_page(program) for program in PROGRAMS}
    pages["results.md"] = results_page()
    pages["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".png", ".json") and path.is_file():
            name = f"results/{path.relative_to(ROOT / 'results').as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def keys_page(program: str) -> str:
    """Every key of a program with type, default and meaning: ours by class, then TRL's and transformers'."""
    groups: dict[str, list] = {}
    for key in cli.keys_of(program).values():
        groups.setdefault(ORIGINS.get(key.owner) or _library(key.owner), []).append(key)
    ours = [name for name in dict.fromkeys(ORIGINS.values()) if name in groups]
    others = [name for name in groups if name not in ours]
    lines = [
        f"# Keys of {program}_gsr.py",
        "",
        f"`recipes/{program}_gsr.py`: {PROGRAMS[program]}. A key stands in the YAML file, or on the command line as "
        "`--key value`. Where no default stands, the key is unset. This page is made from the dataclasses.",
    ]
    for name in [*ours, *others]:
        lines += ["", f"## {name}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(key) for key in groups[name]]
    return "\n".join(lines) + "\n"


def _library(owner: str) -> str:
    package = cli.SOURCES.get(owner, cli.SOURCES["gsr_rl.configs"])[0]
    return f"{package}: {owner.removeprefix('_')}"


def _row(key) -> str:
    default = "" if key.default is None else f"`{key.default!r}`"
    cells = [f"`{key.name}`", f"`{key.type}`", default, " ".join(key.help.replace("%%", "%").split())]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Text, with code between backticks, that neither ends a table's cell nor is taken for HTML or emphasis."""
    parts = []
    for number, part in enumerate(text.split("`")):
        part = html.escape(part, quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")
        parts.append(f"<code>{part}</code>" if number % 2 else part)
    return "".join(parts)


def results_page() -> str:
    """results/README.md, with its links to files beside it."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda link: f"](results/{link.group(1)})", text)
