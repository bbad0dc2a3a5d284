"""What a GPU must show, in ten minutes a part: `a`, the trainer alone, and `b`, the whole with vLLM.

    python benchmarks/gpu_check.py [a] [b] [--out results/gpu/NAME]
    python benchmarks/gpu_check.py a --wheels DIR                  # a bare machine without a network
    python benchmarks/gpu_check.py --make_wheels DIR --python 3.12 # that folder, made where there is a network

Each check is a process of its own with a time limit, so that one that crashes, hangs or runs out of memory ends alone;
what it had measured by then is kept. What cannot be imported is told as not run. Models have random weights or are the
tiny world's: nothing is downloaded. `--small` makes each check small enough for a CPU, where speed and memory are
printed but no goal is judged. Prints a table (Markdown) and a last line of JSON, and with `--out` writes both. The
exit status is 1 if a check failed or a result was wrong; a goal of speed or memory that is not met is only told.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import operator
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # gsr_rl, where it is not installed
PARTS = {"a": ("gpu_check_attention", "gpu_check_trainer"), "b": ("gpu_check_whole",)}  # each module has CHECKS
MARK = "GSR_GPU_CHECK"  # in the environment of what a check starts
ROW = "GPU-CHECK-ROW "  # what a check prints before a result's JSON
LACKS = 77  # exit code of a check that lacks the package which it names at last
WHEELS_LIMIT = 60 * 2**20  # bytes
# What a machine with torch, transformers and peft may lack for part A; pins are of requirements/cpu.txt.
WHEELS = (
    *(
        "trl",
        "accelerate",
        "datasets",
        "pyarrow",
        "pandas",
        "python-dateutil",
        "six",
        "tzdata",
        "dill",
        "multiprocess",
    ),
    *("xxhash", "einops", "hjson", "msgpack", "ninja", "py-cpuinfo", "pydantic", "pydantic_core"),
    *("annotated-types", "typing-inspection", "psutil", "aiohttp", "aiohappyeyeballs", "aiosignal", "attrs"),
    *("frozenlist", "multidict", "propcache", "yarl", "idna"),
)
NOT_NEEDED = re.compile(  # two thirds of pyarrow: its RPC, headers, tests and copies of libraries under other names
    r"pyarrow/(include|tests)/|pandas/tests/|pyarrow/.*flight|pyarrow/libarrow_python\w*\.so(\.\d+\.\d+\.\d+)?$"
)
COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Check:
    """A function without arguments but `small`, that tells its results by `tell`, and what it needs."""

    name: str
    run: object
    seconds: int  # at most, on a GPU
    needs: tuple[str, ...] = ()  # modules
    gpus: int = 0  # of a machine that has some
    on_cpu: bool = True  # whether `small` runs without one


@dataclass
class Outcome:
    part: str
    name: str
    state: str  # passed, FAILED, not run
    seconds: float = 0.0
    reason: str = ""
    rows: list[dict] = field(default_factory=list)


def tell(what: str, value, goal: tuple[str, float] | None = None, judged: bool = True, must: bool = False) -> None:
    """A result of a check.

    Args:
        value: A number, or a text.
        goal: `>=` or `<=`, and a number.
        judged: Whether this machine is one that the goal is for.
        must: Whether the check has failed where the goal is not met.
    """
    row = {"what": what, "value": float(f"{value:.4g}") if isinstance(value, float) else value}
    if goal is not None:
        row |= {"goal": f"{goal[0]} {goal[1]:g}", "must": must}
        row["met"] = bool(COMPARE[goal[0]](value, goal[1])) if judged else None
    print(ROW + json.dumps(row), flush=True)


def checks_of(part: str) -> list[Check]:
    return [check for name in PARTS[part] for check in importlib.import_module(name).CHECKS]


def run_here(part: str, name: str, small: bool) -> int:
    """The child: one check in this process."""
    check = next(check for check in checks_of(part) if check.name == name)
    try:
        check.run(small)
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        if (ROOT / name).exists() or (HERE / f"{name}.py").exists():
            raise
        print(f"needs {name}")
        return LACKS
    return 0


def missing(check: Check, small: bool) -> str:
    """Why a check cannot run here, or nothing."""
    absent = [name for name in check.needs if importlib.util.find_spec(name) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    gpus = gpu_count()
    if not gpus and not (small and check.on_cpu):
        return "needs a GPU" + (", or --small" if check.on_cpu else "")
    return f"needs {check.gpus} GPUs, {gpus} found" if 0 < gpus < check.gpus else ""


def gpu_count() -> int:
    """Asked without initializing CUDA in this process."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count()


def command_of(part: str, check: Check, small: bool) -> list[str]:
    return [sys.executable, __file__, part, "--check", check.name, *(["--small"] if small else [])]


def run_check(part: str, check: Check, small: bool, limit: float, environment: dict) -> Outcome:
    """A check in a process of its own, which is killed with all that it started after so many seconds."""
    start, mark = time.monotonic(), uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            command_of(part, check, small),
            cwd=ROOT,
            env=environment | {MARK: mark},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_marked(mark)
            child.wait()
        log.seek(0)
        lines = log.read().splitlines()
    rows = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
    text = [line for line in lines if not line.startswith(ROW)]
    outcome = Outcome(part, check.name, "passed", time.monotonic() - start, rows=rows)
    wrong = [row["what"] for row in rows if row.get("must") and row["met"] is False]
    if code is None:
        after = f", after `{rows[-1]['what']}`" if rows else ", before its first result"
        outcome.state, outcome.reason = "FAILED", f"not done within its {limit:.0f} s{after}: {_last(text)}"
    elif code == LACKS:
        outcome.state, outcome.reason = "not run", _last(text)
    elif code:
        outcome.state, outcome.reason = "FAILED", f"exit code {code}: {_last(text)}"
    elif wrong:
        outcome.state, outcome.reason = "FAILED", f"wrong: {', '.join(wrong)}"
    if outcome.state == "FAILED":
        print("\n".join(text[-40:]), flush=True)
    return outcome


def _last(lines: list[str]) -> str:
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no output")


def end_marked(mark: str) -> None:
    """End all processes with this mark in their environment: launchers give ranks sessions of their own."""
    for number in [path.parent.name for path in Path("/proc").glob("[0-9]*/environ")]:
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in Path(f"/proc/{number}/environ").read_bytes():
                os.kill(int(number), signal.SIGKILL)


def run_python(*words, **environment: str) -> str:
    """Output of `python WORDS` in the repository, printed as it comes, so that a limit shows what it ended.

    Raises:
        SystemExit: An exit code other than 0.
    """
    child = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = []
    for line in child.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if child.wait():
        raise SystemExit(f"{' '.join(map(str, words[:4]))} ended with exit code {child.returncode}")
    return "".join(lines)


def table(outcomes: list[Outcome]) -> str:
    """All results in Markdown."""
    lines = ["| part | check | what | value | goal | |", "|---|---|---|---|---|---|"]
    met = {True: "met", False: "**not met**", None: "not judged here"}
    for outcome in outcomes:
        head = f"| {outcome.part} | {outcome.name} |"
        lines.append(f"{head} {outcome.state} | {outcome.seconds:.0f} s | | {outcome.reason.replace('|', '/')} |")
        for row in outcome.rows:
            word = met[row["met"]] if "goal" in row else ""
            lines.append(f"{head} {row['what']} | {row['value']} | {row.get('goal', '')} | {word} |")
    return "\n".join(lines)


def summary(outcomes: list[Outcome], small: bool) -> dict:
    goals = [row["met"] for outcome in outcomes for row in outcome.rows if row.get("met") is not None]
    states = [outcome.state for outcome in outcomes]
    return {
        "machine": platform.node(),
        "small": small,
        "passed": states.count("passed"),
        "failed": states.count("FAILED"),
        "not_run": states.count("not run"),
        "goals_met": sum(goals),
        "goals_judged": len(goals),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "checks": [asdict(outcome) for outcome in outcomes],
    }


def make_wheels(folder: Path, python: str) -> None:
    """Download and trim what `--wheels` takes: DeepSpeed is built here, without operators of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower(): line for line in lines if "==" in line}
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for minor in (28, 27, 24, 17, 12) for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    options += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux2010_x86_64"]
    names = [pins[name.lower()] for name in WHEELS]
    subprocess.run([*pip, "download", "-q", "--no-deps", *options, "-d", str(folder), *names], check=True)
    build = [*pip, "wheel", "-q", "--no-deps", "-w", str(folder), pins["deepspeed"]]
    subprocess.run(build, check=True, env=os.environ | {"DS_BUILD_OPS": "0"})
    for wheel in folder.glob("*.whl"):
        trim(wheel)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.1f} MiB")
    if size > WHEELS_LIMIT:
        raise SystemExit(f"{folder} is larger than {WHEELS_LIMIT >> 20} MiB: remove what the machine has already")


def trim(wheel: Path) -> None:
    """Leave out of a wheel what no check needs."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as source:
        if not any(NOT_NEEDED.search(name) for name in source.namelist()):
            return
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
            for entry in source.infolist():
                if not NOT_NEEDED.search(entry.filename):
                    target.writestr(entry, source.read(entry), zipfile.ZIP_DEFLATED, 9)
    part.replace(wheel)


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def unpack(folder: Path | None, target: Path) -> list[str]:
    """Unpack the wheels of what this machine lacks; returns their names. A clone that is not installed gets a version.

    The target is to be named `site-packages`: dill, and with it `datasets`, takes modules elsewhere for a user's own
    and would pickle them whole.
    """
    target.mkdir()
    if not installed("gsr-rl"):
        (target / "gsr_rl-0.dist-info").mkdir()
        text = "Metadata-Version: 2.1\nName: gsr-rl\nVersion: 0\n"
        (target / "gsr_rl-0.dist-info" / "METADATA").write_text(text)
    names = []
    for wheel in sorted(folder.glob("*.whl")) if folder else []:
        name = wheel.name.split("-")[0]
        if not installed(name.replace("_", "-")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            names.append(name)
    return names


def run_all(options, environment: dict) -> list[Outcome]:
    """Every check of the parts, in turn, until a part's minutes are used up."""
    outcomes = []
    for part in options.parts:
        end = time.monotonic() + 60 * options.minutes
        for check in checks_of(part):
            left = end - time.monotonic()
            outcome = Outcome(part, check.name, "not run", reason=missing(check, options.small))
            if not outcome.reason and left < 5:
                outcome.state, outcome.reason = "FAILED", f"not run: the {options.minutes:g} minutes are used up"
            elif not outcome.reason:
                print(f"{part} {check.name} ...", flush=True)
                limit = min(left, check.seconds * options.patience)
                outcome = run_check(part, check, options.small, limit, environment)
            print(f"{part} {check.name}: {outcome.state}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
            outcomes.append(outcome)
    return outcomes


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="a: trainer alone, b: whole; default: both")
    parser.add_argument("--small", action="store_true", help="small enough for a CPU; no goal of speed is judged")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each part (default %(default)g)")
    parser.add_argument("--patience", type=float, default=1.0, help="times each check's own limit (slow machines)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take what is not installed from these wheels")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write PATH.json and PATH.md")
    parser.add_argument("--make_wheels", type=Path, metavar="DIR", help="download the wheels for --wheels and end")
    parser.add_argument(
        "--python", default="3.12", help="of the machine that the wheels are for (default %(default)s)"
    )
    parser.add_argument("--check", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if options.wheels and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels {options.wheels}: no wheels there; --make_wheels makes such a folder")
    return options


def main() -> int:
    options = parse()
    if options.make_wheels:
        make_wheels(options.make_wheels, options.python)
        return 0
    if options.check:
        return run_here(options.parts[0], options.check, options.small)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        site = Path(scratch) / "site-packages"
        if names := unpack(options.wheels, site):
            print("from wheels:", ", ".join(names), flush=True)
        paths = [str(ROOT), str(site)]
        sys.path.append(str(site))
        before = os.environ.get("PYTHONPATH")
        variables = {"PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]), "TMPDIR": scratch}
        variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        outcomes = run_all(options, os.environ | variables)
    text, figures = table(outcomes), summary(outcomes, options.small)
    print(f"\n{text}\n")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(f"# {figures['machine']}\n\n{text}\n")
    print(json.dumps({key: value for key, value in figures.items() if key != "checks"}))
    return int(figures["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
