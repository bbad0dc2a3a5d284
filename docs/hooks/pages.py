"""Pages that MkDocs makes when it builds: each program's keys from the dataclasses, results and changelog.

A hook of mkdocs.yml. The pages are written nowhere, so they cannot be older than the code.
"""

import html
import os
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from gsr_rl import cli, command_line  # noqa: E402

RESULTS = ROOT / "results"
SERVED = (".png", ".json", ".md")
PROGRAMS = {
    "distill": "candidates, a teacher's refinements of them, SFT rows",
    "sft": "the warm start",
    "grpo": "joint GRPO",
    "eval": "evaluation",
}
COMMANDS = {  # the class that holds its keys, what it does
    "solve": ("SolveConfig", "one problem or a file of them, answered by candidates and refinement"),
    "serve": ("ServeConfig", "the same behind an OpenAI-compatible address"),
}
ORIGINS = {
    "RefinementConfig": "How candidates are shown",
    "ProblemConfig": "Problems",
    "DistillProblemConfig": "Problems",
    "EvalProblemConfig": "Problems",
    "AnswerConfig": "How a problem is answered",
    "SolveConfig": "The engine",
    "ServeConfig": "The server",
    "EngineAccess": "The engine",
    "EngineConfig": "How it samples",
    "TeacherConfig": "The teacher's engine",
    "DistillConfig": "Distillation",
    "GSRSFTConfig": "The warm start",
    "GSRConfig": "Joint GRPO",
    "EvalConfig": "Evaluation",
    "HubConfig": "The Hub",
    "DataSetHubConfig": "The Hub",
    "ResultsHubConfig": "The Hub",
}


def on_config(config):
    """MkDocs has read mkdocs.yml: a page of docs/ that its nav does not name goes to the guides."""
    named = str(config.nav)
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    guides += [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]
    return config


def on_files(files, config):
    """MkDocs asks which files there are: ours, and those that are made here."""
    pages = {f"keys/{program}.md": program_page(program) for program in PROGRAMS}
    pages |= {f"keys/{command}.md": command_page(command) for command in COMMANDS}
    pages["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path in sorted(RESULTS.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path == RESULTS / "README.md":
            pages["results.md"] = results_page(path, "results.md")
        elif path.suffix == ".md":
            pages[name] = results_page(path, name)
        elif path.suffix in SERVED:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def program_page(program: str) -> str:
    """The keys of one of the four programs."""
    what = f"`recipes/{program}_gsr.py`: {PROGRAMS[program]}. A key stands in the YAML file, or on the command line "
    what += "as `--key value`. Where no default stands, the key is unset."
    return keys_page(f"{program}_gsr.py", what, cli.keys_of(program))


def command_page(command: str) -> str:
    """The keys of `gsr-solve` or `gsr-serve`."""
    owner, does = COMMANDS[command]
    what = f"`gsr-{command}`: {does}. A key stands on the command line as `--key value`."
    return keys_page(f"gsr-{command}", what, command_line.fields_of(owner))


def keys_page(title: str, what: str, keys: dict[str, cli.Key]) -> str:
    """Every key with type, default and meaning: ours by class, then TRL's and transformers'."""
    groups: dict[str, list] = {}
    for key in keys.values():
        groups.setdefault(ORIGINS.get(key.owner) or _library(key.owner), []).append(key)
    ours = [name for name in dict.fromkeys(ORIGINS.values()) if name in groups]
    others = [name for name in groups if name not in ours]
    lines = [f"# Keys of {title}", "", f"{what} This page is made from the dataclasses."]
    for name in [*ours, *others]:
        lines += ["", f"## {name}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(key) for key in groups[name]]
    return "\n".join(lines) + "\n"


def _library(owner: str) -> str:
    return f"{command_line.LIBRARIES[owner][0]}: {owner.removeprefix('_')}"


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


def results_page(source: Path, page: str) -> str:
    """A page of results/; its links to files that the site has not are told in words.

    Args:
        source: The file.
        page: Where in the site it stands.
    """
    here = Path(page).parent

    def relinked(link: re.Match) -> str:
        words, target = link.groups()
        path = (source.parent / target.partition("#")[0]).resolve()
        if RESULTS not in path.parents or path.suffix not in SERVED:
            return f"{words} (`{path.relative_to(ROOT)}`)"
        return f"[{words}]({os.path.relpath(path.relative_to(ROOT), here)})"

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", relinked, source.read_text(encoding="utf-8"))
