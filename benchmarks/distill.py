"""What the distillation pipeline costs beside the engine: its tokens/s over those of bare vLLM on the same prompts.

    python benchmarks/distill.py [--model runs/SmolLM2-135M-Instruct] [--problems 32] [--rounds 2]

A round is the pipeline (sampling, choice of candidate sets, prompts, verification, shards, rows; the model is its own
teacher), then `vllm.LLM.generate` on the very prompts that it sent, stage by stage, then both in the other order. One
engine does all of it; its prefix cache is emptied before each run, and loading is in neither time. Sums from
reasoning-gym with SmolLM2 (`make smollm2`); without that model, the tiny world with its teacher. Ends with a line of
JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def configs(args: argparse.Namespace, folder: str):
    """The pipeline's configuration: problems, distillation."""
    from gsr_rl.data.config import DistillProblemConfig
    from gsr_rl.distillation.config import DistillConfig

    tiny = "tiny" in str(args.model)
    source = "tiny/mix" if tiny else "reasoning_gym/chain_sum"
    problems = DistillProblemConfig(dataset_name=source, dataset_split="sft", max_problems=args.problems)
    config = DistillConfig(
        student_model=str(args.model),
        output_dir=folder,
        prompt_template="tiny" if tiny else "gsr",
        num_generations=6,
        num_candidates=4,
        num_candidate_sets=1,
        refinements_per_set=4,
        max_completion_length=40 if tiny else args.max_tokens,
        max_refinement_prompt_length=200 if tiny else 1024,
        unfinished_candidates="cut",
        direct_source="teacher",
        direct_generations=2,
        max_model_length=256 if tiny else 2048,
        engine_dtype="float32" if tiny else "bfloat16",
        problems_per_chunk=max(1, args.problems // 4),
    )
    return problems, config


class Recorded:
    """The shared engine, remembering what it is sent."""

    def __init__(self, engine):
        self._engine, self.requests = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def stream(self, requests):
        def remembered():
            for request in requests:
                self.requests[-1].append(request)
                yield request

        self.requests.append([])
        return self._engine.stream(remembered())

    def close(self):
        """The engine is used again."""


def run_pipeline(engine, args, number: int) -> tuple[int, float, list]:
    """Completion tokens, seconds, and the requests of each stage."""
    from gsr_rl.data.problems import load_problems
    from gsr_rl.distillation.distill import distill

    with tempfile.TemporaryDirectory() as folder:
        problems, config = configs(args, folder)
        config.seed = number
        rows = load_problems(problems)
        shared, before = Recorded(engine), engine.counts["completion_tokens"]
        engine._llm.reset_prefix_cache()
        start = time.perf_counter()
        sft_rows, _ = distill(rows, problems, config, open_engine=lambda *_, **__: shared)
        text = "".join(json.dumps(row) for row in sft_rows)
        seconds = time.perf_counter() - start
        assert text or not sft_rows
        return engine.counts["completion_tokens"] - before, seconds, shared.requests


def run_bare(engine, stages: list) -> tuple[int, float]:
    """Completion tokens and seconds of vLLM's own `generate` on the same prompts."""
    from vllm import SamplingParams

    def parameters(sampling):
        how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
        return SamplingParams(n=sampling.n, detokenize=False, **how)

    engine._llm.reset_prefix_cache()
    tokens, start = 0, time.perf_counter()
    for requests in stages:
        prompts = [{"prompt_token_ids": request.token_ids} for request in requests]
        outputs = engine._llm.generate(prompts, [parameters(one.sampling) for one in requests], use_tqdm=False)
        tokens += sum(len(one.token_ids) for output in outputs for one in output.outputs)
    return tokens, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    smollm2 = ROOT / "runs" / "SmolLM2-135M-Instruct"
    default = smollm2 if smollm2.is_dir() else ROOT / "recipes" / "tiny" / "models" / "teacher"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    import rewards
    from gsr_rl.engines.open import open_engine

    os.chdir(ROOT)
    rewards.grade([r"\boxed{x+1}"] * 2, ["1+x", "y"])  # the verifier's workers are started
    _, config = configs(args, "unused")
    engine = open_engine("vllm", str(args.model), max_model_length=config.max_model_length, dtype=config.engine_dtype)
    totals = {"pipeline": [0, 0.0], "bare": [0, 0.0]}
    print(f"{'':10} {'tokens':>10} {'seconds':>10} {'tokens/s':>10}")

    def add(name: str, tokens: int, seconds: float) -> None:
        totals[name][0] += tokens
        totals[name][1] += seconds
        print(f"{name:10} {tokens:10,} {seconds:10.1f} {tokens / seconds:10.1f}", flush=True)

    for number in range(args.rounds):
        *figures, stages = run_pipeline(engine, args, 2 * number)
        add("pipeline", *figures)
        for _ in range(2):
            add("bare", *run_bare(engine, stages))
        *figures, _ = run_pipeline(engine, args, 2 * number + 1)
        add("pipeline", *figures)
    rates = {name: tokens / seconds for name, (tokens, seconds) in totals.items()}
    print(f"{args.model.name}, {args.problems} problems: pipeline {rates['pipeline']:.1f}, bare {rates['bare']:.1f}")
    print(json.dumps({"engine_share": round(rates["pipeline"] / rates["bare"], 4)}))


if __name__ == "__main__":
    main()
