"""Models in this process: vLLM, transformers' own generation, and a reward model that scores solutions."""

import contextlib
import gc
import os
import shutil
import sys
from collections.abc import Callable
from itertools import count

from gsr_rl.engines.base import Engine, Result, is_finished
from gsr_rl.keys import TRUE_WORDS
from gsr_rl.refinement.prompts import candidate_text


def has_gpu(use_cpu: bool = False) -> bool:
    """Whether there is a CUDA device to use. All of gsr_rl asks here, as this initializes no CUDA before vLLM does.

    There is none to use if the key `use_cpu` says so, or `accelerate launch`, which says it by the environment.
    """
    if use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in TRUE_WORDS:
        return False
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.is_available()


def set_vllm_environment(use_cpu: bool = False) -> bool:
    """Set the environment variables that vLLM needs, where they are not set yet. Call it before vLLM is imported.

    The one place for such rules, of CPUs and of CUDA devices: vLLM reads most of its variables at its import.

    Returns:
        Whether vLLM runs on the CPU: by `use_cpu`, or because there is no CUDA device.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if has_gpu(use_cpu):
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork dies where CUDA has been asked before
        folders = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
        if not shutil.which("nvcc", path=os.pathsep.join(folders)):  # flashinfer compiles its sampler on first use
            os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        return False
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Even in eager mode vLLM compiles its sampler, anew for each batch size: minutes for what takes seconds.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if "torch._dynamo.config" in sys.modules:  # it has read the environment already
        sys.modules["torch._dynamo.config"].disable = os.environ["TORCH_COMPILE_DISABLE"] == "1"
    return True


class VLLMRequests:
    """vLLM in this process, request by request: `add` some, `step`, take what has finished, add more.

    Args:
        engine: vLLM's `LLMEngine`.
    """

    def __init__(self, engine):
        self._engine, self._numbers = engine, count()
        self._on_output: dict[str, Callable | None] = {}  # of the requests in the engine, by name

    def add(self, prompt_ids: list[int], on_output: Callable | None = None, **sampling) -> str:
        """Take a request in; returns its name.

        Args:
            on_output: Is called with what each step adds to the request, text included.
            sampling: Of vLLM's `SamplingParams`.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Token ids alone unless it streams: their text one at a time costs more than a small model's forward.
        streams = on_output is not None
        kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
        parameters = SamplingParams(**({"detokenize": streams, "output_kind": kind} | sampling))
        name = f"gsr-{next(self._numbers)}"
        self._engine.add_request(name, {"prompt_token_ids": prompt_ids}, parameters)
        self._on_output[name] = on_output
        return name

    def step(self) -> list[tuple[str, list]]:
        """Run the engine once: name and vLLM's `CompletionOutput`s of each request that has all its completions."""
        finished = []
        for output in self._engine.step():
            if on_output := self._on_output[output.request_id]:
                on_output(output)
            if output.finished:
                del self._on_output[output.request_id]
                finished.append((output.request_id, sorted(output.outputs, key=lambda row: row.index)))
        return finished

    def abort(self) -> None:
        """Take back the requests that have not finished."""
        if self._on_output:
            self._engine.abort_request(sorted(self._on_output))
            self._on_output.clear()


class VLLMEngine(Engine):
    """vLLM in this process (on a GPU it may start workers of its own)."""

    streams = True

    def __init__(self, model, seed=0, max_model_length=None, dtype="auto", max_num_seqs=None,
                 gpu_memory_utilization=0.9, tensor_parallel_size=1, enforce_eager=None):  # fmt: skip
        super().__init__()
        on_cpu = set_vllm_environment()
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
        self.capacity = 2 * self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self._requests = VLLMRequests(self._llm.llm_engine)
        self._submitted: dict[str, tuple[object, _Streamed | None]] = {}  # key, and text so far, by vLLM's name

    def _submit(self, request):
        sampling, streamed = request.sampling, None if request.on_text is None else _Streamed(request)
        name = self._requests.add(
            request.token_ids,
            streamed and streamed.take,
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
        )
        self._submitted[name] = request.key, streamed

    def _step(self):
        keys, rows = [], []  # rows: token ids of each completion, and whether they ended by themselves
        for name, outputs in self._requests.step():
            key, streamed = self._submitted.pop(name)
            keys.append(key)
            if streamed is not None:
                rows.append(list(zip(streamed.token_ids, streamed.ended, strict=True)))
            else:
                rows.append([(list(row.token_ids), is_finished(row.finish_reason)) for row in outputs])
        flat = [pair for group in rows for pair in group]  # decoded in one call
        completions = iter(self._completions([ids for ids, _ in flat], [ended for _, ended in flat]) if flat else [])
        return [Result(key, [next(completions) for _ in group]) for key, group in zip(keys, rows, strict=True)]

    def close(self) -> None:
        """Free the weights, the cache and the process groups, so that another engine can be opened."""
        if self._llm is None:
            return
        from vllm.distributed import parallel_state

        with contextlib.suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._requests = None
        gc.collect()
        parallel_state.cleanup_dist_env_and_memory()


class _Streamed:
    """What has come of a streamed request: vLLM gives each token once."""

    def __init__(self, request):
        n = request.sampling.n
        self.token_ids, self.ended = [[] for _ in range(n)], [False] * n
        self._on_text = request.on_text

    def take(self, output) -> None:
        for piece in output.outputs:
            self.token_ids[piece.index] += piece.token_ids
            self.ended[piece.index] |= is_finished(piece.finish_reason)
            if piece.text:
                self._on_text(piece.index, piece.text)


class _HoldsModel:
    """Mixin of what holds a model of transformers as `_model`."""

    def close(self) -> None:
        """Free the weights."""
        import torch

        self._model = None
        gc.collect()
        if has_gpu():
            torch.cuda.empty_cache()


class TransformersEngine(_HoldsModel, Engine):
    """transformers' own generation: slower, and everywhere."""

    streams = True

    def __init__(self, model, seed=0, max_model_length=None, dtype="auto", max_num_seqs=None, tokenizer=None):
        super().__init__()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._model.to("cuda" if has_gpu() else "cpu")
        self.max_model_length = max_model_length or self._model.config.max_position_embeddings
        self._rows = max_num_seqs or 64
        self.capacity = 16 * self._rows  # so many to choose prompts of one length from
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
        streamer = _Streamer(batch, self.tokenizer, self._ends) if any(request.on_text for request in batch) else None
        rows = self._sample([request.token_ids for request in batch], sampling, streamer)
        completions = self._completions(rows, [bool(row) and row[-1] in self._ends for row in rows])
        n = sampling.n
        return [Result(request.key, completions[i * n : (i + 1) * n]) for i, request in enumerate(batch)]

    def _sample(self, prompts, sampling, streamer=None) -> list[list[int]]:
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
                streamer=streamer,
            )
        return [_until_end(row, self._ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]


class _Streamer:
    """Gives the text of a batch's rows to its requests as transformers makes it, one token of each row a call."""

    def __init__(self, batch, tokenizer, ends):
        self._targets = [(request.on_text, index) for request in batch for index in range(request.sampling.n)]
        self._rows, self._shown = [[] for _ in self._targets], [""] * len(self._targets)
        self._tokenizer, self._ends, self._prompt = tokenizer, ends, True

    def put(self, tokens) -> None:
        if self._prompt:  # the first call holds the prompts
            self._prompt = False
            return
        for place, token in enumerate(tokens.tolist()):
            row, (on_text, index) = self._rows[place], self._targets[place]
            if on_text is None or (row and row[-1] in self._ends):
                continue
            row.append(token)
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            new = text[len(self._shown[place]) :]
            if new and not text.endswith("\ufffd"):  # a character that is not whole yet
                self._shown[place] = text
                on_text(index, new)

    def end(self) -> None:
        pass


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    """`row` up to and with its first end token."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def open_local(kind: str, model: str, **options) -> Engine:
    """Load `model` into an engine of kind `vllm` or `transformers` in this process."""
    return {"vllm": VLLMEngine, "transformers": TransformersEngine}[kind](model, **options)


def check_reward_model(name: str) -> None:
    """Look at the configuration alone of a model by path or Hub name.

    Raises:
        ValueError: It cannot be read, or is no classifier with one label or two.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"reward_model={name} cannot be read ({error}): name a folder or a model on the Hub"
        ) from None
    for message in reward_model_messages(name, config.to_dict()):
        raise ValueError(message)


class RewardModel(_HoldsModel):
    """Scores solutions.

    Args:
        name: Path or Hub name of an `AutoModelForSequenceClassification` with one label (a score) or two (wrong,
            right): `check_reward_model`.
        batch_size: Solutions scored at once.
    """

    def __init__(self, name: str, batch_size: int = 8):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.batch_size = batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left")
        self._model = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto").eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self._model.config.pad_token_id is None:  # it finds a row's last token by it
            self._model.config.pad_token_id = self.tokenizer.pad_token_id
        self._model.to("cuda" if has_gpu() else "cpu")
        positions = getattr(self._model.config, "max_position_embeddings", None) or 4096
        self.max_length = min(positions, self.tokenizer.model_max_length)  # RoBERTa's first positions are no token's

    def scores(self, problem: str, solutions: list[str]) -> list[float | None]:
        """The score of each solution as a logit; None for one without text after its thinking part.

        A text that is too long for the model loses its front.
        """
        import torch

        texts = [candidate_text(solution) for solution in solutions]
        places = [place for place, text in enumerate(texts) if text]
        scores: list[float | None] = [None] * len(solutions)
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            inputs = self.tokenizer(
                [self._text(problem, texts[place]) for place in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=self.tokenizer.chat_template is None,
            )
            wanted = {"input_ids", "attention_mask"} & set(inputs)
            with torch.inference_mode():
                logits = self._model(**{key: inputs[key].to(self._model.device) for key in wanted}).logits.float()
            values = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            for place, value in zip(part, values.tolist(), strict=True):
                scores[place] = value
        return scores

    def _text(self, problem: str, solution: str) -> str:
        """Problem and solution as the chat that the model was trained on, or one below the other."""
        if self.tokenizer.chat_template is None:
            return f"{problem}\n\n{solution}"
        chat = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        return self.tokenizer.apply_chat_template(chat, tokenize=False)


def reward_model_messages(name: str, config: dict) -> list[str]:
    """What is wrong with a reward model of this config.json: a classifier with one label or two is expected."""
    kinds = config.get("architectures") or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return [
            f"reward_model={name} is a {', '.join(kinds) or 'model of no stated kind'}: a model with a "
            "...ForSequenceClassification head is expected"
        ]
    number = len(config.get("id2label") or {0: 0, 1: 1})
    if number in (1, 2):
        return []
    return [f"reward_model={name} has {number} labels: one (a score) or two (wrong, right) are expected"]
