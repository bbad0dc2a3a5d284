"""TRL's colocated vLLM with three things changed: its seed, the engine's options, and the weight push on CPU."""

import time

import torch
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from gsr_rl.candidates import choice_seed


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

        vllm_generation.LLM = build
        try:
            super()._init_vllm()
        finally:
            vllm_generation.LLM = original

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
            # A tied output head has no weights of its own to reload, but on CPU it multiplies with a packed copy.
            head = getattr(runner.model, "lm_head", None)
            if head is not None and runner.vllm_config.model_config.hf_text_config.tie_word_embeddings:
                head.quant_method.process_weights_after_loading(head)
        self.llm.reset_prefix_cache()
