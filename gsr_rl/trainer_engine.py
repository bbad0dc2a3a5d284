"""Which engine a trainer samples from: TRL builds its own, and one of ours stands in its place."""

import os
from contextlib import contextmanager
from functools import partial

import torch
from trl.trainer import grpo_trainer

from gsr_rl.configs import GSRConfig


@contextmanager
def engine_in_place(args: GSRConfig):
    """TRL's __init__ names its engine class as a module global; ours stands there while it runs."""
    original = grpo_trainer.VLLMGeneration
    if args.use_vllm and args.vllm_mode == "server":
        from gsr_rl.server_engine import ServerVLLM

        grpo_trainer.VLLMGeneration = partial(
            ServerVLLM,
            request_timeout=args.server_request_timeout,
            exchange_folder=os.path.join(args.output_dir, "weights-for-server"),
            least_window=least_window(args),
        )
    elif args.use_vllm:
        from gsr_rl.colocated import ColocatedVLLM
        from gsr_rl.engines.base import cpu_environment

        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            cpu_environment()
        eager = on_cpu if args.vllm_enforce_eager is None else args.vllm_enforce_eager
        options = {"dtype": args.vllm_dtype, "enforce_eager": eager}
        grpo_trainer.VLLMGeneration = partial(ColocatedVLLM, seed=args.seed, engine_options=options)
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = original


def least_window(args: GSRConfig) -> int:
    """Tokens of the longest request: a refinement's prompt and answer, or a candidate after one token of a prompt."""
    refinement = args.max_refinement_prompt_length + args.max_refinement_length if args.refinement_weight > 0 else 0
    return max(args.max_completion_length + 1, refinement)
