"""The rooms of gsr_rl as a picture, drawn from the imports: `python docs/hooks/rooms.py` writes docs/architecture.svg.

A box is a room with its modules; an arrow says "imports". An arrow is left out where a longer way says the same.
tests/test_layers.py reads the imports by these functions, and fails where the picture is older than the code.
"""

import ast
import html
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "gsr_rl"
PICTURE = ROOT / "docs" / "architecture.svg"
# From the top down; what a room is for. `recipes` and `rewards` are folders beside gsr_rl.
FLOORS = [
    {"recipes": "the programs and their YAML"},
    {"cli": "YAML and --key value, checked"},
    {
        "training": "one joint step: rollout, advantages, update",
        "distillation": "candidates, teacher, SFT rows",
        "evaluation": "benchmarks to stored samples",
        "serving": "Solver, gsr-solve, gsr-serve",
    },
    {"hub": "pushes, cards, provenance", "": ""},
    {
        "data": "problems: files, Hub, generated",
        "report": "samples to figures and pages",
        "engines": "prompts in, completions out",
    },
    {"refinement": "the method: prompts, choice of candidates, votes"},
    {
        "ground": "checks of keys, command lines, run folders",
        "rewards": "verified rewards, usable alone; any room may import them",
    },
]
WIDTH, GAP, LINE, PAD = 1000, 28, 17, 12
SHARES = {"training": 1.7, "hub": 2.1}  # of a floor's width, where it is not 1
FILLS = ["#f4f4f6", "#f4f4f6", "#fdf5e2", "#fdf5e2", "#eef2fb", "#e9f6ec", "#f4f4f6"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def modules() -> dict[str, Path]:
    """Every module of gsr_rl by dotted name, a room's own `__init__` included."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of gsr_rl that a file imports anywhere, functions included, by dotted name."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gsr_rl":
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            targets |= inner or {node.module if node.module in known else f"{node.module}.__init__"}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names if alias.name in known}
    return targets - {module_name(path)}


def room(module: str) -> str:
    """`gsr_rl.data.config` -> `data`; a module beside the rooms is one by itself."""
    return module.split(".")[1]


def contents() -> dict[str, list[str]]:
    """The modules in each box, without `__init__`."""
    boxes: dict[str, list[str]] = {name: [] for floor in FLOORS for name in floor if name}
    for module in modules():
        _, first, *rest = module.split(".")
        if module.endswith("__init__") or first in ("cli", "server_worker"):
            continue
        boxes[first if rest else "ground"].append("/".join(rest) or first)
    boxes["recipes"] = [path.stem for path in sorted((ROOT / "recipes").glob("*_gsr.py"))]
    boxes["rewards"] = [path.stem for path in sorted((ROOT / "rewards").glob("[!_]*.py"))]
    return boxes


def arrows() -> set[tuple[str, str]]:
    """Which box imports which, without the arrows that a longer way says already."""
    known, boxes = modules(), contents()
    below: dict[str, set[str]] = {name: set() for name in boxes}
    for module, path in known.items():
        start = room(module) if room(module) in boxes else "ground"
        if room(module) in ("__init__", "server_worker"):
            continue
        below[start] |= {room(target) if room(target) in boxes else "ground" for target in imports_of(path, known)}
    below["recipes"] = {"cli"}
    for name in below:
        below[name].discard(name)

    def reach(name: str) -> set[str]:
        return below[name] | {further for target in below[name] for further in reach(target)}

    return {
        (name, target)
        for name, targets in below.items()
        for target in targets
        if not any(target in reach(other) for other in targets - {target})
    }


def wrapped(names: list[str], width: float) -> list[str]:
    """Names in lines that fit into a box."""
    lines, line = [], ""
    for name in names:
        longer = f"{line}  {name}" if line else name
        if len(longer) * 6.9 > width - 2 * PAD and line:
            lines.append(line)
            longer = name
        line = longer
    return [*lines, line] if line else lines


def draw() -> str:
    """The picture as SVG."""
    boxes, places, parts, top = contents(), {}, [], GAP
    for floor, fill in zip(FLOORS, FILLS, strict=True):
        shares = [SHARES.get(name, 1.0) for name in floor]
        unit = (WIDTH - GAP * (len(floor) + 1)) / sum(shares)
        lines = [wrapped(boxes.get(name, []), unit * share) for name, share in zip(floor, shares, strict=True)]
        height = 2 * PAD + LINE * (2 + max(map(len, lines)))
        left = float(GAP)
        for (name, purpose), share, listed in zip(floor.items(), shares, lines, strict=True):
            width = unit * share
            if name:
                places[name] = (left + width / 2, top, top + height)
                parts.append(_box(left, top, width, height, fill, name, purpose, listed))
            left += width + GAP
        top += height + 2 * GAP
    paths = []
    for start, end in sorted(arrows()):
        (x1, _, y1), (x2, y2, _) = places[start], places[end]
        paths.append(
            f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + GAP:.0f} {x2:.0f} {y2 - GAP:.0f} {x2:.0f} {y2 - 2:.0f}"/>'
        )
    marker = '<marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - GAP}" font-family="sans-serif" '
            'font-size="12" role="img" aria-label="The rooms of gsr_rl and who imports whom">',
            f'<defs>{marker}<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{top - GAP}" rx="8" fill="#fff"/>',
            f'<g stroke="#99a" fill="none" marker-end="url(#a)">{"".join(paths)}</g>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _box(left: float, top: float, width: float, height: float, fill: str, name: str, purpose: str, lines) -> str:
    shown = {"ground": "keys.py, command_line.py, run_folder.py", "cli": "cli.py"}.get(name, f"{name}/")
    texts = [f'<text x="{left + PAD:.0f}" y="{top + PAD + 10}" font-size="14" font-weight="bold">{shown}</text>']
    texts.append(f'<text x="{left + PAD:.0f}" y="{top + PAD + 10 + LINE}" fill="#445">{html.escape(purpose)}</text>')
    for number, line in enumerate(lines, 2):
        texts.append(
            f'<text x="{left + PAD:.0f}" y="{top + PAD + 10 + LINE * number}" fill="#667" '
            f'xml:space="preserve">{html.escape(line)}</text>'
        )
    frame = (
        f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="6" fill="{fill}" stroke="#99a"/>'
    )
    return f'<g fill="#223">{frame}{"".join(texts)}</g>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
