"""The one seam to engines for distillation and evaluation: token ids in, completions out. Engines are imported inside.

engine = open_engine("vllm", "path/or/hub-name", seed=0)
completions = engine.generate([[1, 2, 3]], Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=64))
engine.close()
"""

import contextlib
import gc
import os
import sys
from dataclasses import dataclass, replace

KINDS = ("vllm", "transformers")


@dataclass(frozen=True)
class Sampling:
    """How to sample: `n` completions a prompt, `temperature` (0: greedy), `top_p` in (0, 1], `max_tokens` each."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256


@dataclass(frozen=True)
class Completion:
    """One completion: its text without special tokens, its token ids, and whether it ended by itself."""

    text: str
    token_ids: list[int]
    finished: bool


def cpu_environment() -> bool:
    """Without a CUDA device, set the environment that vLLM needs on a CPU, where it is not set yet.

    Returns:
        True if there is no CUDA device. Call it before vLLM is imported.
    """
    import torch

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if torch.cuda.is_available():
        return False
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Even in eager mode vLLM compiles its sampler, anew for each batch size: minutes for what takes seconds.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if "torch._dynamo.config" in sys.modules:  # it has read the environment already
        sys.modules["torch._dynamo.config"].disable = os.environ["TORCH_COMPILE_DISABLE"] == "1"
    return True


def open_engine(kind: str, model: str, *, seed: int = 0, max_model_length: int | None = None, dtype: str = "auto",
                gpu_memory_utilization: float = 0.9, tensor_parallel_size: int = 1,
                max_num_seqs: int | None = None, enforce_eager: bool | None = None):  # fmt: skip
    """Load `model` into an engine of one of `KINDS`.

    Args:
        model: Path or Hub name of a causal language model with a tokenizer.
        seed: Of the engine. Per-request seeds are not used: they kill vLLM's CPU engine.
        max_model_length: Longest prompt plus completion in tokens. Default: the model's.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_num_seqs: Sequences decoded at once. Default: the engine's; 256 on a CPU.
        enforce_eager: vLLM without compilation. Default: on a CPU, where compiling takes minutes.

    Returns:
        An engine with `tokenizer`, `max_model_length`, `generate(prompt_token_ids, sampling)` and `close()`.
    """
    if kind == "vllm":
        return VLLMEngine(model, seed, max_model_length, dtype, gpu_memory_utilization, tensor_parallel_size,
                          max_num_seqs, enforce_eager)  # fmt: skip
    if kind == "transformers":
        return TransformersEngine(model, seed, max_model_length, dtype, max_num_seqs)
    raise ValueError(f"engine={kind!r} is not known: use one of {list(KINDS)}")


class _Engine:
    """What the engines share: prompts are checked before any is sent, completions come back in order."""

    tokenizer = None
    max_model_length: int

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """Sample `sampling.n` completions of each prompt, in the order of the prompts.

        Raises:
            ValueError: A prompt is empty, or leaves no room for `max_tokens` in the engine's window.
        """
        for index, ids in enumerate(prompt_token_ids):
            if not ids:
                raise ValueError(f"prompt {index} is empty: a prompt needs at least one token")
            if len(ids) + sampling.max_tokens > self.max_model_length:
                raise ValueError(
                    f"prompt {index} has {len(ids)} tokens, with max_tokens={sampling.max_tokens} more than the "
                    f"engine's window of {self.max_model_length}: shorten one or raise max_model_length"
                )
        if not prompt_token_ids:
            return []
        if sampling.temperature == 0 and sampling.n > 1:  # n copies of one completion
            return [group * sampling.n for group in self._generate(prompt_token_ids, replace(sampling, n=1))]
        return self._generate(prompt_token_ids, sampling)

    def _completions(self, token_ids: list[list[int]], finished: list[bool], n: int) -> list[list[Completion]]:
        """Decode flat rows in one call and cut them into groups of `n`."""
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        flat = [Completion(*row) for row in zip(texts, token_ids, finished, strict=True)]
        return [flat[start : start + n] for start in range(0, len(flat), n)]


class VLLMEngine(_Engine):
    """vLLM in this process (on a GPU it may start workers of its own)."""

    def __init__(self, model, seed, max_model_length, dtype, gpu_memory_utilization, tensor_parallel_size,
                 max_num_seqs, enforce_eager):  # fmt: skip
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

    def _generate(self, prompt_token_ids, sampling):
        from vllm import SamplingParams

        # Detokenised at the end, in one call: one sequence at a time costs more than a small model's forward.
        parameters = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": ids} for ids in prompt_token_ids]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=True)
        rows = [output for request in outputs for output in sorted(request.outputs, key=lambda o: o.index)]
        token_ids = [list(row.token_ids) for row in rows]
        return self._completions(token_ids, [row.finish_reason == "stop" for row in rows], sampling.n)

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


class TransformersEngine(_Engine):
    """transformers' own generation: slower, and everywhere."""

    def __init__(self, model, seed, max_model_length, dtype, max_num_seqs):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_model_length = max_model_length or self._model.config.max_position_embeddings
        self._rows = max_num_seqs or 64
        torch.manual_seed(seed)

    def _generate(self, prompt_token_ids, sampling):
        import torch
        from tqdm import tqdm

        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        # Prompts of about one length go together, so that little is padded.
        order = sorted(range(len(prompt_token_ids)), key=lambda i: len(prompt_token_ids[i]))
        step = max(1, self._rows // sampling.n)
        found: dict[int, list[list[int]]] = {}
        sample = {"do_sample": False}
        if sampling.temperature > 0:
            sample = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        for start in tqdm(range(0, len(order), step), desc="Prompts", unit="batch"):
            indices = order[start : start + step]
            batch = self.tokenizer.pad(
                {"input_ids": [prompt_token_ids[i] for i in indices]}, return_tensors="pt", padding_side="left"
            ).to(self._model.device)
            with torch.inference_mode():
                out = self._model.generate(
                    **batch,
                    **sample,
                    max_new_tokens=sampling.max_tokens,
                    num_return_sequences=sampling.n,
                    eos_token_id=sorted(ends - {None}),
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            rows = [_until_end(row, ends) for row in out[:, batch["input_ids"].shape[1] :].tolist()]
            for place, index in enumerate(indices):
                found[index] = rows[place * sampling.n : (place + 1) * sampling.n]
        flat = [row for index in range(len(prompt_token_ids)) for row in found[index]]
        return self._completions(flat, [bool(row) and row[-1] in ends for row in flat], sampling.n)

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
