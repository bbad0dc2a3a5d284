"""`make test-all`: every test file by itself, resumable. What passed is not run again until its commit changes.

State and logs go to .test-all/; results.json there keeps the outcome, seconds and commit of each file.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".test-all"


def commit() -> str:
    """The commit, with a mark if the working tree differs from it."""
    run = lambda *words: subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    return run("git", "rev-parse", "--short", "HEAD") + ("+" if run("git", "status", "--porcelain") else "")


def main() -> int:
    STATE.mkdir(exist_ok=True)
    results_file = STATE / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    now = commit()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        known = results.get(name)
        if known and known["passed"] and known["commit"] == now:
            print(f"{name}: passed before, {known['seconds']} s", flush=True)
            continue
        start = time.monotonic()
        log = STATE / (name.replace("/", "_") + ".log")
        with open(log, "w") as file:
            command = [sys.executable, "-m", "pytest", name, "-o", "timeout=1800"]
            code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        passed = code in (0, 5)  # 5: the file has no test
        last = log.read_text().strip().splitlines()[-1]
        results[name] = {"passed": passed, "commit": now, "seconds": round(time.monotonic() - start), "summary": last}
        part = results_file.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        part.replace(results_file)
        print(f"{name}: {'passed' if passed else 'FAILED, see ' + str(log)}: {last}", flush=True)
    failed = [name for name, result in results.items() if not result["passed"] and (ROOT / name).exists()]
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
