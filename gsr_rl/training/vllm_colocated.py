"""TRL's vLLM with five things changed: its seed, its options, its requests, the weight push on CPU, and streaming."""

import math
import os
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from gsr_rl.engines.local import VLLMRequests, set_vllm_environment
from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.vllm_server import ServerVLLM


class ColocatedVLLM(VLLMGeneration):
    """The trainer's engine, put in the place of TRL's `VLLMGeneration`.

    Args:
        seed: The run's seed. TRL seeds the engine with the rank alone, whatever the run's seed is.
        engine_options: Further arguments of `vllm.LLM` (dtype, enforce_eager, ...), which TRL does not pass on.
    """

    def __init__(self, *args, seed: int, engine_options: dict, **kwargs):
        self.seed = seed
        self.engine_options = engine_options
        self.sync_seconds = 0.0  # of all pushes since the last reading
        super().__init__(*args, **kwargs)

    def _init_vllm(self):
        """TRL starts the engine with fixed options; we add ours and mix the run's seed into the engine's."""
        original = vllm_generation.LLM

        def build(**options):
            # Ranks of one tensor-parallel group have the same number here and must sample alike.
            options["seed"] = choice_seed(self.seed, "engine", options["seed"]) % 2**31
            return original(**{**options, **self.engine_options})

        vllm_generation.LLM, threads = build, torch.get_num_threads()
        try:
            super()._init_vllm()
        finally:
            vllm_generation.LLM = original
        if self.accelerator.device.type != "cpu":  # vLLM leaves one, and an offloaded Adam runs on them
            torch.set_num_threads(threads)

    def sync_weights(self):
        """TRL loads tensor by tensor; on CPU vLLM has repacked them, so its own reload path is used instead."""
        start = time.perf_counter()
        if self.mode == "colocate" and self.accelerator.device.type == "cpu":
            self._reload_weights()
        else:
            super().sync_weights()
        self.sync_seconds += time.perf_counter() - start

    def _reload_weights(self):
        from vllm.config import set_current_vllm_config

        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        with set_current_vllm_config(runner.vllm_config), torch.no_grad():
            # Cloned: under ZeRO-3 a tensor is whole only while the iterator stands on it.
            runner.reload_weights(
                weights_iterator=((name, param.detach().clone()) for name, param in self._iter_named_params())
            )
            repack_tied_head(runner)
        self.llm.reset_prefix_cache()

    @contextmanager
    def awake(self):
        """With sleep mode TRL wakes and sleeps at each call, and pushes the weights anew; here once for all inside."""
        if not self.enable_sleep_mode or self.mode != "colocate":
            yield
            return
        if self._llm_weights_sleeping:
            self.sync_weights()
        self.llm.wake_up(tags=["kv_cache"])
        self.enable_sleep_mode = False
        try:
            yield
        finally:
            self.enable_sleep_mode = True
            self.llm.sleep(level=2)
            self._llm_weights_sleeping = True

    def generate(self, prompts, images, num_generations, profiler=None):
        """TRL sends a prompt for each completion; we send it once, with n. Ranks that share an engine do as TRL."""
        if images is not None or self.tensor_parallel_size > 1:
            with same_numbers(self.tp_group) if self.tensor_parallel_size > 1 else nullcontext():
                return super().generate(prompts, images, num_generations, profiler)
        before, self.generation_kwargs = self.generation_kwargs, self.generation_kwargs | {"n": num_generations}
        try:
            _, *completions = super().generate(prompts[::num_generations], images, num_generations, profiler)
        finally:
            self.generation_kwargs = before
        return prompts, *completions

    def stream(self) -> "RequestStream | None":
        """This engine, request by request. None with tensor parallelism, whose ranks must send alike.

        None too with what needs text, or TRL's reading of it: stop strings and structured outputs.
        """
        by_text = self.structured_outputs_regex or {"stop", "structured_outputs"} & self.generation_kwargs.keys()
        return None if self.mode != "colocate" or self.tensor_parallel_size > 1 or by_text else RequestStream(self)


@contextmanager
def same_numbers(group):
    """numpy's global generator seeded alike on all ranks of a group; what each had before comes back.

    vLLM (0.31, `worker/gpu/sample/states.py`) draws each request's seed from it, in every rank of an engine by itself.
    """
    seed = [int(np.random.randint(2**31))]  # on all ranks, so that the next call has another one
    torch.distributed.broadcast_object_list(seed, group=group, group_src=0)
    before = np.random.get_state()
    np.random.seed(seed[0])
    try:
        yield
    finally:
        np.random.set_state(before)


def repack_tied_head(runner) -> None:
    """A tied output head has no weights of its own to reload, but on a CPU vLLM multiplies with a packed copy."""
    if runner.device.type != "cpu" or not runner.vllm_config.model_config.hf_text_config.tie_word_embeddings:
        return
    head = getattr(runner.model, "lm_head", None)
    if head is not None:
        head.quant_method.process_weights_after_loading(head)


class RequestStream:
    """The engine in this process, request by request, with the trainer's sampling: see `VLLMRequests`.

    Inside `with`; requests that are left at its end are taken back.
    """

    def __init__(self, generation: ColocatedVLLM):
        self._generation = generation
        self._requests = VLLMRequests(generation.llm.llm_engine)

    def __enter__(self):
        self._awake = self._generation.awake() if self._generation.enable_sleep_mode else nullcontext()
        self._awake.__enter__()
        return self

    def __exit__(self, *error):
        self._requests.abort()
        self._awake.__exit__(*error)

    def add(self, prompt_ids: list[int], n: int, max_tokens: int) -> str:
        """Ask for n completions of a prompt; returns the request's name."""
        engine = self._generation
        sampling = {
            "n": n,
            "max_tokens": max_tokens,
            "temperature": engine.temperature,
            "top_p": engine.top_p,
            "top_k": engine.top_k,
            "min_p": engine.min_p or 0.0,
            "repetition_penalty": engine.repetition_penalty,
            "logprobs": 0,
        }
        return self._requests.add(prompt_ids, **(sampling | engine.generation_kwargs))

    def wake(self) -> None:
        """A step of this engine returns by itself."""

    def step(self) -> list[tuple[str, list[list[int]], list[list[float | None]]]]:
        """Run the engine once: (name, token ids, log-probabilities) of each request that has all its completions."""
        return [
            (name, [list(row.token_ids) for row in rows], [_logprobs(row) for row in rows])
            for name, rows in self._requests.step()
        ]


def _logprobs(row) -> list[float | None]:
    """Of a completion's tokens; None for NaN, as TRL has it."""
    values = (at[token].logprob for token, at in zip(row.token_ids, row.logprobs, strict=True))
    return [None if math.isnan(value) else value for value in values]


@contextmanager
def engine_in_place(args: GSRConfig):
    """TRL's __init__ names its engine class as a module global; ours stands there while it runs."""
    original = grpo_trainer.VLLMGeneration
    if args.use_vllm and args.vllm_mode == "server":
        grpo_trainer.VLLMGeneration = partial(
            ServerVLLM,
            request_timeout=args.server_request_timeout,
            exchange_folder=os.path.join(args.output_dir, "weights-for-server"),
            longest_request=longest_request(args),
        )
    elif args.use_vllm:
        on_cpu = set_vllm_environment(args.use_cpu)
        if on_cpu and vllm_generation.is_vllm_available():
            from vllm.platforms import current_platform

            if not current_platform.is_cpu():
                fix = "set use_vllm to false, or install its build for CPUs"
                raise ValueError(f"use_cpu=true with use_vllm=true: the installed vLLM is built for GPUs: {fix}")
        eager = on_cpu if args.vllm_enforce_eager is None else args.vllm_enforce_eager
        options = {"dtype": args.vllm_dtype, "enforce_eager": eager}
        grpo_trainer.VLLMGeneration = partial(ColocatedVLLM, seed=args.seed, engine_options=options)
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = original


def longest_request(args: GSRConfig) -> int:
    """Tokens of the longest request: a refinement's prompt and completion, or a candidate after one prompt token."""
    refinement = args.max_refinement_prompt_length + args.max_refinement_length if args.refinement_weight > 0 else 0
    return max(args.max_completion_length + 1, refinement)
