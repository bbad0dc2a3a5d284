"""vLLM's settings on a CPU: tokens/s and seconds to load of each, over those of the defaults that gsr-rl sets.

    python benchmarks/engine_cpu.py [--rounds 2] [--model runs/SmolLM2-135M-Instruct]

Each setting loads the engine in a process of its own and samples the same prompts three times after a warm-up; the
median counts. Settings and defaults run in turn. A library that is not on the machine is left out. The last line is
JSON:
setting to ratio of tokens/s.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "runs" / "SmolLM2-135M-Instruct"
PROMPTS, COMPLETIONS, TOKENS = 16, 4, 64
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"  # Debian's package libtcmalloc-minimal4
IOMP = str(Path(sys.prefix) / "lib" / "libiomp5.so")
SETTINGS = {
    "one completion a request": {"requests": True},
    "no prefix caching": {"enable_prefix_caching": False},
    "threads not bound": {"env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
    "sampler compiled": {"env": {"TORCH_COMPILE_DISABLE": "0"}},
    "compiled": {"enforce_eager": False, "env": {"TORCH_COMPILE_DISABLE": "0"}},
    "cache of 1 GiB": {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}},
    "cache of 8 GiB": {"env": {"VLLM_CPU_KVCACHE_SPACE": "8"}},
    "libiomp5 preloaded": {"env": {"LD_PRELOAD": IOMP}, "needs": IOMP},
    "tcmalloc preloaded": {"env": {"LD_PRELOAD": TCMALLOC}, "needs": TCMALLOC},
    "float32": {"dtype": "float32"},
}


def sample(model: str, options: dict) -> None:
    """The child: load, sample, print seconds to load and tokens a second."""
    from gsr_rl.engines.local import set_vllm_environment

    set_vllm_environment()
    start = time.perf_counter()
    from vllm import LLM, SamplingParams

    one_by_one = options.pop("requests", False)
    options = {"dtype": "bfloat16", "enforce_eager": True} | options
    llm = LLM(model, max_model_len=256, max_num_seqs=64, seed=0, **options)
    loaded = time.perf_counter() - start
    tokenizer = llm.get_tokenizer()
    words = tokenizer.encode("1 + 2 = 3\n" * 64)[:128]
    prompts = [{"prompt_token_ids": [*words, 5 + number]} for number in range(PROMPTS)]
    prompts = [prompt for prompt in prompts for _ in range(COMPLETIONS)] if one_by_one else prompts
    how = SamplingParams(
        n=1 if one_by_one else COMPLETIONS, max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, detokenize=False
    )
    seconds = []
    for _ in range(4):
        llm.reset_prefix_cache()
        start = time.perf_counter()
        llm.generate(prompts, how, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    print(json.dumps([loaded, PROMPTS * COMPLETIONS * TOKENS / statistics.median(seconds[1:])]))


def measure(model: str, setting: dict) -> tuple[float, float]:
    """Seconds to load and tokens a second of one setting, in a process of its own."""
    options = {key: value for key, value in setting.items() if key not in ("env", "needs")}
    command = [sys.executable, __file__, "--model", model, "--child", json.dumps(options)]
    environment = os.environ | setting.get("env", {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{setting}: {done.stderr[-500:]}")
    loaded, rate = json.loads(done.stdout.strip().splitlines()[-1])
    return loaded, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tiny = ROOT / "recipes" / "tiny" / "models" / "base"
    parser.add_argument("--model", default=str(SMOLLM2 if SMOLLM2.is_dir() else tiny))
    parser.add_argument("--rounds", type=int, default=2, help="processes a setting")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="SETTING", help="some settings alone")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        sample(args.model, args.child)
        return
    print(f"{Path(args.model).name}: {PROMPTS} prompts of 129 tokens, {COMPLETIONS} completions of {TOKENS} each")
    print(f"{'':28}{'load, s':>9}{'tokens/s':>10}{'default':>10}{'ratio':>8}")
    ratios = {}
    for name, setting in SETTINGS.items():
        if (args.only and name not in args.only) or not Path(setting.get("needs", "/")).exists():
            continue
        pairs = []
        try:
            for number in range(args.rounds):
                order = (setting, {}) if number % 2 else ({}, setting)
                found = [measure(args.model, one) for one in order]
                pairs.append(found if order[0] is setting else found[::-1])
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{name:28}  failed: {str(error).splitlines()[-1][:80]}", flush=True)
            continue
        loaded, rate = (statistics.median(one[0][column] for one in pairs) for column in (0, 1))
        default = statistics.median(one[1][1] for one in pairs)
        ratios[name] = round(rate / default, 3)
        print(f"{name:28}{loaded:9.1f}{rate:10.0f}{default:10.0f}{ratios[name]:8.3f}", flush=True)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
