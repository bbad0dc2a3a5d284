"""What MkDocs makes of pages that are read on a code-hosting page too: results/ and the changelog become pages here.

A hook of mkdocs.yml. Links are relative paths of files in the repository; what the site has not is told in words.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "results"
SERVED = (".png", ".json", ".jsonl", ".md")
OTHERS = {RESULTS / "README.md": "results.md", ROOT / "CHANGELOG.md": "changelog.md"}


def on_config(config):
    """MkDocs has read mkdocs.yml: a page of docs/ that its nav does not name goes to the guides."""
    named = str(config.nav)
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    guides += [path.name for path in sorted(DOCS.glob("*.md")) if f"'{path.name}'" not in named]
    return config


def on_files(files, config):
    """MkDocs asks which files there are: those of docs/, and those that stand elsewhere."""
    for path in [*OTHERS, *sorted(RESULTS.rglob("*"))]:
        page = place(path)
        if page and path.suffix == ".md" and not files.get_file_from_path(page):
            files.append(File.generated(config, page, content=relinked(path.read_text(encoding="utf-8"), path)))
        elif page and path.suffix != ".md":
            files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """MkDocs has read a page: its links out of docs/ go to where the site has the file."""
    path = DOCS / page.file.src_uri
    return relinked(markdown, path) if path.is_file() else markdown


def place(path: Path) -> str | None:
    """Where the site has a file of the repository, None if nowhere."""
    if path in OTHERS:
        return OTHERS[path]
    if RESULTS in path.parents and path.suffix in SERVED:
        return path.relative_to(ROOT).as_posix()
    return path.relative_to(DOCS).as_posix() if DOCS in path.parents and path.is_file() else None


def relinked(text: str, source: Path) -> str:
    """A page's text with the site's links, in place of those of the repository."""
    here = Path(place(source)).parent

    def link(words_and_target: re.Match) -> str:
        words, target, anchor = words_and_target.groups()
        path = Path(os.path.normpath(source.parent / target))
        page = place(path)
        return f"[{words}]({os.path.relpath(page, here)}{anchor or ''})" if page else f"{words} (`{shown(path)}`)"

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", link, text)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
