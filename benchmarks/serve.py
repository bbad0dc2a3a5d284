"""What `gsr-solve` and `gsr-serve` cost beside the bare engine and the bare vLLM server.

    python benchmarks/serve.py [--model runs/SmolLM2-135M-Instruct] [--part solve|serve|both] [--repeats 2]

solve: `Solver` solves problems in one engine, first many at once as `gsr-solve --file` does, then one by one with the
live display as in a terminal; then vLLM's own `generate` makes the very same numbers of tokens from the same prompts,
stage by stage. `solve_overhead` is solver's time / bare time - 1, of the worse of both cases. Loading is in neither.

serve: a vLLM server, and `gsr-serve` in front of it, on loopback; 32 clients at once. Bare: each client asks the vLLM
server for K candidates in one request and then for a refinement, with prompts made beforehand. The server's prefix
cache is emptied before each pass, because those prompts have been computed when they were made. `serve_share` is
gsr-serve's tokens/s over the bare server's. Both in turn, the bare one first and last.

SmolLM2 (`make smollm2`) if it is there, else the tiny world's base, whose tokens cost next to nothing: with it every
millisecond of a request shows. Ends with one line of JSON.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
START_SECONDS = 600
K = 4


def problems_for(args: argparse.Namespace, count: int, seed: int) -> list[str]:
    """Problems that the model can read."""
    if args.tiny:
        from gsr_rl.data.tiny_world import generate

        return [row["problem"] for row in generate("mix", "test", count, seed)]
    rng = random.Random(seed)
    return [f"What is {' + '.join(str(rng.randrange(10, 99)) for _ in range(3))}?" for _ in range(count)]


def keys_for(args: argparse.Namespace) -> dict[str, object]:
    """Settings of both programs."""
    return {
        "num_candidates": K,
        "prompt_template": "tiny" if args.tiny else "gsr",
        "max_completion_length": 40 if args.tiny else args.max_tokens,
        "unfinished_candidates": "cut",
        "temperature": 1.0,
        "top_p": 1.0,
    }


# gsr-solve ----------------------------------------------------------------------------------------------------


class Recorded:
    """Notes each request to an engine and how many tokens its completions had."""

    def __init__(self, engine):
        self._step, self._submit, self._sent = engine.step, engine.submit, {}
        self.stages: list[tuple[int, list[int], int]] = []  # (stage, prompt, tokens), one a completion
        engine.step, engine.submit = self.step, self.submit

    def submit(self, request):
        self._sent[request.key] = request
        self._submit(request)

    def step(self):
        results = self._step()
        for result in results:
            request = self._sent.pop(result.key)
            self.stages += [(result.key[1], request.token_ids, len(one.token_ids)) for one in result.completions]
        return results


def bare_seconds(engine, stages: list[tuple[int, list[int], int]]) -> float:
    """vLLM's own `generate` on the same prompts, the same number of tokens each, stage by stage."""
    from vllm import SamplingParams

    engine._llm.reset_prefix_cache()
    start = time.perf_counter()
    for stage in sorted({number for number, _, _ in stages}):
        rows = [(ids, count) for number, ids, count in stages if number == stage]
        how = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in rows]
        engine._llm.generate([{"prompt_token_ids": ids} for ids, _ in rows], how, use_tqdm=False)
    return time.perf_counter() - start


def solver_seconds(solver, problems: list[str], terminal: bool) -> float:
    """Solve all at once, or one by one with the display of a terminal."""
    from rich.console import Console

    from gsr_rl.serving.display import Terminal

    solver.engine._llm.reset_prefix_cache()
    start = time.perf_counter()
    if not terminal:
        solutions = list(solver.solve_many(problems))
        assert all(one.answers for one in solutions)
        return time.perf_counter() - start
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    for problem in problems:
        with Terminal(console, problem) as display:
            display.show(solver.solve(problem, display))
    return time.perf_counter() - start


def solve_overhead(args: argparse.Namespace) -> float:
    """The larger overhead of the two cases; prints their table."""
    from gsr_rl.engines.open import open_engine
    from gsr_rl.serving.solver import Solver
    from rewards import vote

    vote([r"x+1", "1+x"])  # the verifier's workers are started
    dtype, window = ("float32", 256) if args.tiny else ("bfloat16", 2048)
    engine = open_engine("vllm", str(args.model), dtype=dtype, max_model_length=window)
    record = Recorded(engine)
    solver = Solver(str(args.model), engine, **keys_for(args))
    print(f"{'solve':10} {'tokens':>10} {'solver s':>10} {'bare s':>10} {'overhead':>10}")
    found = {}
    for name, count in (("file", args.problems), ("terminal", max(1, args.problems // 4))):
        ours = bare = tokens = 0
        for repeat in range(args.repeats + 1):  # the first warms up and is not counted
            record.stages = []
            seconds = solver_seconds(solver, problems_for(args, count, repeat), name == "terminal")
            groups = [record.stages] if name == "file" else one_by_one(record.stages)
            replayed = sum(bare_seconds(engine, group) for group in groups)
            if repeat:
                ours, bare = ours + seconds, bare + replayed
                tokens += sum(number for _, _, number in record.stages)
        found[name] = ours / bare - 1
        print(f"{name:10} {tokens:10,} {ours:10.1f} {bare:10.1f} {found[name]:10.1%}", flush=True)
    engine.close()
    return max(found.values())


def one_by_one(stages: list[tuple[int, list[int], int]]) -> list[list]:
    """The completions of each problem, from those of problems that were solved one after the other."""
    groups: list[list] = []
    for before, one in zip([(1,), *stages], stages, strict=False):
        if one[0] == 0 and before[0] != 0:
            groups.append([])
        groups[-1].append(one)
    return groups


# gsr-serve ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(command: list[str], ready: str):
    """A server, until the block ends. Raises `SystemExit` with the end of its log if it does not come up."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # lets its prefix cache be emptied
    environment |= {"PYTHONPATH": str(ROOT), **os.environ}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log,
                                 start_new_session=True)  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command[1]} does not come up:\n{log.read()[-3000:]}")
                time.sleep(0.5)
            yield
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def load(jobs: list, at_once: int, work) -> tuple[int, float]:
    """Tokens and seconds of all jobs, so many at once; `work(session, job)` gives a job's tokens."""
    import aiohttp

    waiting, tokens = iter(jobs), 0

    async def client(session):
        nonlocal tokens
        for job in waiting:
            made = await work(session, job)  # apart: `tokens += await ...` would lose what others add meanwhile
            tokens += made

    limits = aiohttp.ClientTimeout(total=START_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(at_once)))
        return tokens, time.perf_counter() - start


async def ask(session, url: str, body: dict) -> dict:
    async with session.post(url, json=body) as answer:
        content = await answer.json()
        assert answer.status == 200, content
        return content


async def empty_cache(url: str) -> None:
    """Forget all prompts that the server has computed."""
    import aiohttp

    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url.removesuffix('/v1')}/reset_prefix_cache") as done,
    ):
        assert done.status == 200, await done.text()


def serve_share(args: argparse.Namespace) -> float:
    """gsr-serve's tokens/s over the bare server's; prints the table."""
    ports = free_port(), free_port()
    dtype, window = ("float32", 256) if args.tiny else ("bfloat16", 2048)
    vllm = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(args.model), "--port", str(ports[0])]
    vllm += ["--host", "127.0.0.1", "--served-model-name", "policy", "--dtype", dtype, "--enforce-eager"]
    vllm += ["--max-model-len", str(window), "--max-num-seqs", "256", "--no-enable-log-requests"]
    keys = [word for name, value in keys_for(args).items() for word in (f"--{name}", str(value))]
    ours = ["-m", "gsr_rl.serving.server", "--model", str(args.model), "--backend", f"http://127.0.0.1:{ports[0]}/v1"]
    ours += ["--port", str(ports[1]), "--served_model_name", "policy", *keys]
    with process(vllm, f"http://127.0.0.1:{ports[0]}/v1/models"), process(ours, f"http://127.0.0.1:{ports[1]}/health"):
        return asyncio.run(compare(args, *(f"http://127.0.0.1:{port}/v1" for port in ports)))


async def compare(args: argparse.Namespace, bare_url: str, our_url: str) -> float:
    """Both servers in turn under the same load."""
    from transformers import AutoTokenizer

    from gsr_rl.refinement.prompts import fit_refinement_prompt, get_template, prompt_token_ids, solve_prompt

    keys, tokenizer = keys_for(args), AutoTokenizer.from_pretrained(str(args.model))
    template = get_template(keys["prompt_template"])
    problems = problems_for(args, args.requests, 99)
    how = {"model": "policy", "temperature": 1.0, "max_tokens": keys["max_completion_length"]}
    prompts: dict[str, tuple[list[int], list[int]]] = {}

    async def ours(session, problem: str, **more) -> dict:
        body = {"model": "policy", "messages": [{"role": "user", "content": problem}], **more}
        return await ask(session, f"{our_url}/chat/completions", body)

    async def prepare(session, problem: str) -> int:
        answer = await ours(session, problem, gsr={"return_candidates": True})
        shown = [one["text"].strip() for one in answer["gsr"]["candidates"] if one["shown"]]
        fitted = fit_refinement_prompt(tokenizer, problem, shown, template, 1500 if not args.tiny else 200)
        prompts[problem] = prompt_token_ids(tokenizer, solve_prompt(problem, template)), fitted.token_ids
        return 0

    async def refined(session, problem: str) -> int:
        return (await ours(session, problem))["usage"]["completion_tokens"]

    async def bare(session, problem: str) -> int:
        tokens = 0
        for prompt, n in zip(prompts[problem], (K, 1), strict=True):
            answer = await ask(session, f"{bare_url}/completions", how | {"prompt": prompt, "n": n})
            tokens += answer["usage"]["completion_tokens"]
        return tokens

    await load(problems, args.at_once, prepare)
    print(f"{'serve':10} {'tokens':>10} {'seconds':>10} {'tokens/s':>10}")
    totals = {"bare": [0, 0.0], "gsr-serve": [0, 0.0]}
    for _ in range(args.repeats):
        for name, work in (("bare", bare), ("gsr-serve", refined), ("gsr-serve", refined), ("bare", bare)):
            await empty_cache(bare_url)
            tokens, seconds = await load(problems, args.at_once, work)
            totals[name][0] += tokens
            totals[name][1] += seconds
            print(f"{name:10} {tokens:10,} {seconds:10.1f} {tokens / seconds:10.1f}", flush=True)
    rates = {name: tokens / seconds for name, (tokens, seconds) in totals.items()}
    return rates["gsr-serve"] / rates["bare"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    smollm2 = ROOT / "runs" / "SmolLM2-135M-Instruct"
    default = smollm2 if smollm2.is_dir() else ROOT / "recipes" / "tiny" / "models" / "base"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--part", choices=("solve", "serve", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--problems", type=int, default=16, help="solve: problems at once; a quarter one by one")
    parser.add_argument("--requests", type=int, default=64, help="serve: requests of a pass")
    parser.add_argument("--at_once", type=int, default=32, help="serve: clients")
    parser.add_argument("--max_tokens", type=int, default=96, help="of a completion, with SmolLM2")
    args = parser.parse_args()
    args.tiny = "tiny" in str(args.model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended too
    found = {}
    if args.part != "serve":
        found["solve_overhead"] = round(solve_overhead(args), 4)
    if args.part != "solve":
        found["serve_share"] = round(serve_share(args), 4)
    print(f"{args.model.name}, K={K}, at most {keys_for(args)['max_completion_length']} tokens a completion")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
