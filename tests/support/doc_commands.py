"""The commands that README and docs show: every line of a code block that calls a program."""

import re
import shlex
from pathlib import Path

from tests.support.paths import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "results/README.md", "recipes/**/*.md", "docs/**/*.md")
PROGRAMS = ("python", "accelerate", "make", "vllm", "source", "export", "hf", "gsr-solve", "gsr-serve", "sbatch")
PROGRAMS += (
    "pip",
    "git",
    "mkdocs",
    "pytest",
    "gsr-distill",
    "gsr-sft",
    "gsr-grpo",
    "gsr-eval",
    "gsr-config",
    "gsr-merge",
)
PROGRAMS += ("gsr-watch",)


def pages() -> list[Path]:
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def blocks(text: str) -> list[str]:
    """Fenced blocks of no other language than the shell's, and blocks that are indented."""
    found = []
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for language, content in fence.findall(text):
        if language in ("", "bash", "sh", "shell", "console"):
            found.append(content)
    indented = re.compile(r"(?:^|\n)\n((?:    [^\n]*\n?|\n)+)")
    return found + [re.sub(r"^    ", "", one, flags=re.MULTILINE) for one in indented.findall(fence.sub("", text))]


def commands() -> list[tuple[str, str]]:
    """`(page, command)`, continued lines joined, comments and prompts taken off."""
    found = []
    for page in pages():
        for block in blocks(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                try:
                    words = shlex.split(line, comments=True)
                except ValueError:  # a line of output
                    continue
                rest = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
                if rest and rest[0].rsplit("/", 1)[-1] in PROGRAMS:
                    found.append((str(page.relative_to(ROOT)), shlex.join(words)))
    return found
