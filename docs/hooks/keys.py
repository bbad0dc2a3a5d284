"""Every key of ours on one page, from the configuration classes: `python docs/hooks/keys.py` writes docs/keys.md.

tests/test_docs.py fails where the page is older than the code. TRL's and transformers' keys: `--help all`.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "keys.md"
sys.path.insert(0, str(ROOT))

from gsr_rl import cli, command_line  # noqa: E402

COMMANDS = {"solve": "SolveConfig", "serve": "ServeConfig"}  # gsr-solve and gsr-serve: the class that holds their keys
GROUPS = {
    "RefinementConfig": "How candidates are shown",
    "ChatTemplateConfig": "How candidates are shown",
    "GSRConfig": "Joint GRPO",
    "GSRSFTConfig": "The warm start",
    "AdapterConfig": "LoRA",
    "DistillConfig": "Distillation",
    "TeacherConfig": "Distillation: the teacher's engine",
    "EvalConfig": "Evaluation",
    "AnswerConfig": "Use: how a problem is answered",
    "SolveConfig": "Use: `gsr-solve`",
    "ServeConfig": "Use: `gsr-serve`",
    "EngineAccess": "The engine and its sampling",
    "EngineConfig": "The engine and its sampling",
    "ProblemConfig": "Problems",
    "DistillProblemConfig": "Problems",
    "EvalProblemConfig": "Problems",
    "HubConfig": "The Hub",
    "DataSetHubConfig": "The Hub",
    "ResultsHubConfig": "The Hub",
}
HEAD = """# Every key of ours

Made by `python docs/hooks/keys.py` from the configuration classes. A key stands in the YAML file or on the command
line (`--key value`; `--key null` unsets it). Where no default stands, the key is unset. TRL's and transformers' keys
keep their meaning: `--help all` lists them. *of*: distill, sft, grpo and eval are the four programs
(`recipes/*_gsr.py`, `gsr-*`), solve and serve are `gsr-solve` and `gsr-serve`.
"""


def our_keys() -> dict[str, dict[tuple, list[str]]]:
    """Of each group the keys in the order of their classes, and which programs have them."""
    by_program = {program: cli.keys_of(program) for program in cli.PROGRAMS}
    by_program |= {command: command_line.fields_of(owner) for command, owner in COMMANDS.items()}
    groups: dict[str, dict[tuple, list[str]]] = {title: {} for title in GROUPS.values()}
    for program, keys in by_program.items():
        for key in keys.values():
            if key.owner not in command_line.LIBRARIES:
                row = (key.name, key.type, repr(key.default), " ".join(key.help.replace("%%", "%").split()))
                groups[GROUPS[key.owner]].setdefault(row, []).append(program)
    return groups


def page() -> str:
    """The content of docs/keys.md."""
    lines = [HEAD.rstrip("\n")]
    for title, rows in our_keys().items():
        lines += ["", f"## {title}", "", "| key | of | type | default | meaning |", "|---|---|---|---|---|"]
        for (name, kind, default, meaning), programs in rows.items():
            kinds = " or ".join(f"`{part}`" for part in kind.split(" | ") if part != "None")
            shown = "" if default == "None" else f"`{default}`"
            lines.append(f"| `{name}` | {', '.join(programs)} | {kinds} | {shown} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text, with code between backticks, that neither ends a table's cell nor is taken for HTML or emphasis."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
