"""Engines in this process: vLLM, and transformers' own generation."""

import contextlib
import gc

from gsr_rl.generation import Engine, Result, cpu_environment


class VLLMEngine(Engine):
    """vLLM in this process (on a GPU it may start workers of its own)."""

    def __init__(self, model, seed=0, max_model_length=None, dtype="auto", max_num_seqs=None,
                 gpu_memory_utilization=0.9, tensor_parallel_size=1, enforce_eager=None):  # fmt: skip
        super().__init__()
        on_cpu = cpu_environment()
        import vllm

        options = {} if on_cpu else {"gpu_memory_utilization": gpu_memory_utilization}
        if on_cpu or max_num_seqs is not None:
            options["max_num_seqs"] = max_num_seqs or 256
        self._llm = vllm.LLM(
            model=model,
            seed=seed,
            dtype=dtype,
            max_model_len=max_model_length,
            tensor_parallel_size=tensor_parallel_size,
            enforce_eager=on_cpu if enforce_eager is None else enforce_eager,
            **options,
        )
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_length = self._llm.llm_engine.model_config.max_model_len
        self.window = 2 * self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self._keys: dict[str, object] = {}  # vLLM's request id -> ours
        self._number = 0

    def _submit(self, request):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Detokenised here, a step's sequences in one call: one at a time costs more than a small model's forward.
        parameters = SamplingParams(
            n=request.sampling.n,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._number += 1
        self._keys[str(self._number)] = request.key
        prompt = {"prompt_token_ids": request.token_ids}
        self._llm.llm_engine.add_request(str(self._number), prompt, parameters)

    def _step(self):
        done = [output for output in self._llm.llm_engine.step() if output.finished]
        rows = [sorted(output.outputs, key=lambda one: one.index) for output in done]
        flat = [one for row in rows for one in row]
        finished = [one.finish_reason == "stop" for one in flat]
        completions = iter(self._completions([list(one.token_ids) for one in flat], finished) if flat else [])
        return [
            Result(self._keys.pop(output.request_id), [next(completions) for _ in row])
            for output, row in zip(done, rows, strict=True)
        ]

    def close(self) -> None:
        """Free the weights, the cache and the process groups, so that another engine can be opened."""
        if self._llm is None:
            return
        from vllm.distributed import parallel_state

        with contextlib.suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        parallel_state.cleanup_dist_env_and_memory()


class TransformersEngine(Engine):
    """transformers' own generation: slower, and everywhere."""

    def __init__(self, model, seed=0, max_model_length=None, dtype="auto", max_num_seqs=None):
        super().__init__()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_model_length = max_model_length or self._model.config.max_position_embeddings
        self._rows = max_num_seqs or 64
        self.window = 16 * self._rows  # so many to choose prompts of one length from
        self._waiting = []
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        torch.manual_seed(seed)

    def _submit(self, request):
        self._waiting.append(request)

    def _step(self):
        """One batch: prompts sampled in one way, of about one length, so that little is padded."""
        sampling = self._waiting[0].sampling
        alike = sorted((r for r in self._waiting if r.sampling == sampling), key=lambda r: len(r.token_ids))
        batch = alike[: max(1, self._rows // sampling.n)]
        self._waiting = [request for request in self._waiting if request not in batch]
        rows = self._sample([request.token_ids for request in batch], sampling)
        completions = self._completions(rows, [bool(row) and row[-1] in self._ends for row in rows])
        n = sampling.n
        return [Result(request.key, completions[i * n : (i + 1) * n]) for i, request in enumerate(batch)]

    def _sample(self, prompts, sampling) -> list[list[int]]:
        import torch

        how = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left")
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            out = self._model.generate(
                **inputs,
                **how,
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.n,
                eos_token_id=sorted(self._ends - {None}),
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [_until_end(row, self._ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def close(self) -> None:
        """Free the weights."""
        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    """`row` up to and with its first end token."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row
