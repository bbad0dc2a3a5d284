"""Open the engine that a configuration asks for: here, as copies in processes of their own, or as endpoints.

`DataParallelEngine` is several copies of a model, each in a process of its own with GPUs of its own, as one engine. A
copy that dies gives its requests to the others; the job ends when none is left. The processes end with this one,
whatever ends it: their pipe breaks.
"""

import multiprocessing
import os
import queue
import threading
import time
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path

from gsr_rl.engines.base import KINDS, Engine, EngineError, Request
from gsr_rl.engines.endpoints import EndpointEngine, EndpointSettings
from gsr_rl.engines.local import has_gpu, open_local
from gsr_rl.refinement.settings import with_chat_template

SMALL_BYTES = 100_000_000  # of weights: with more, vLLM makes up for its start within some hundred tokens
LOAD_SECONDS = 3600.0  # a large model from a slow disk
SILENT_SECONDS = 3600.0  # no copy has finished anything for so long: something hangs


def automatic_kind(model: str, problems: int | None = None) -> str:
    """`vllm` where it is installed, else `transformers`; for one problem of a small model on a CPU `transformers` too.

    vLLM samples faster, but takes longer to start there than such a problem takes.

    Args:
        model: Path or Hub name. Only a local folder can be small.
        problems: How many there are to solve. None: nobody knows, or many.
    """
    size = sum(path.stat().st_size for path in Path(model).glob("model*.safetensors"))
    quick = problems == 1 and 0 < size <= SMALL_BYTES
    return "transformers" if not find_spec("vllm") or (quick and not has_gpu()) else "vllm"


def open_engine(kind: str, model: str, *, seed: int = 0, max_model_length: int | None = None, dtype: str = "auto",
                gpu_memory_utilization: float = 0.9, tensor_parallel_size: int = 1,
                data_parallel_size: int | None = 1, max_num_seqs: int | None = None,
                enforce_eager: bool | None = None, endpoint=None,
                chat_template: str | None = None) -> Engine:  # fmt: skip
    """Load `model` into an engine of one of `KINDS`, or connect to the endpoints that serve it.

    Args:
        model: Path or Hub name of a causal language model with a tokenizer; the name that endpoints know it by.
        seed: Of the engine. Per-request seeds are not used: they kill vLLM's CPU engine.
        max_model_length: Longest prompt plus completion in tokens. Default: the model's.
        dtype: "auto", "float32", "bfloat16" or "float16".
        data_parallel_size: Copies of the model, a process each if there are several. None: as many as the visible
            GPUs hold.
        max_num_seqs: Sequences decoded at once by a copy. Default: the engine's; 256 on a CPU.
        enforce_eager: vLLM without compilation. Default: on a CPU, where compiling takes minutes.
        endpoint: `gsr_rl.engines.endpoints.EndpointSettings`, for kind `endpoint`.
        chat_template: A file, for a model without one or in place of its own.
    """
    if kind not in KINDS:
        raise ValueError(f"engine={kind!r} is not known: use one of {list(KINDS)}")
    if kind == "endpoint":
        engine = EndpointEngine(model, endpoint, max_model_length)
    else:
        from transformers import AutoTokenizer

        tokenizer = with_chat_template(
            AutoTokenizer.from_pretrained(model), chat_template, model
        )  # before the weights
        options = {"seed": seed, "max_model_length": max_model_length, "dtype": dtype, "max_num_seqs": max_num_seqs}
        if kind == "vllm":
            options |= {"gpu_memory_utilization": gpu_memory_utilization, "enforce_eager": enforce_eager}
            options |= {"tensor_parallel_size": tensor_parallel_size}
        copies = data_parallel_size or copies_that_fit(tensor_parallel_size)
        if copies > 1:
            engine = DataParallelEngine(kind, model, options, copies, tensor_parallel_size)
        else:
            engine = open_local(kind, model, **options | ({} if kind == "vllm" else {"tokenizer": tokenizer}))
    with_chat_template(engine.tokenizer, chat_template, model)
    return engine


def copies_that_fit(tensor_parallel_size: int) -> int:
    """How many copies of a model the visible GPUs hold; 1 on a CPU."""
    import torch

    gpus = torch.cuda.device_count() if has_gpu() else 0
    return max(1, gpus // tensor_parallel_size)


def open_configured(config, model: str, seed: int, *, teacher: bool = False, opener=None) -> Engine:
    """The engine that an `EngineConfig` asks for.

    Args:
        teacher: Whether it is the teacher's: where a `DistillConfig` has a `teacher_` key of a name, that one counts.
        opener: Stands in for `open_engine`.
    """

    def value(name: str):
        teachers = getattr(config, f"teacher_{name}", None) if teacher else None
        return getattr(config, name) if teachers is None else teachers

    kind, endpoint = value("engine"), None
    if kind == "endpoint":
        endpoint = EndpointSettings.from_config(config, value)
    return (opener or open_engine)(
        kind,
        model,
        seed=seed,
        max_model_length=config.max_model_length,
        dtype=config.engine_dtype,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=value("tensor_parallel_size"),
        data_parallel_size=config.data_parallel_size,
        max_num_seqs=config.max_num_seqs,
        endpoint=endpoint,
        chat_template=config.teacher_chat_template if teacher else config.chat_template,
    )


class DataParallelEngine(Engine):
    """`copies` engines of one kind, as one. Requests go to the copy that has the fewest sequences.

    Raises:
        EngineError: No copy is left (the message holds the last one's error), a copy does not load within an hour, or
            nothing is finished for an hour.
    """

    def __init__(self, kind: str, model: str, options: dict, copies: int, gpus_each: int = 1):
        super().__init__()
        context = multiprocessing.get_context("spawn")
        devices, seed = _devices(copies, gpus_each), options.get("seed", 0)
        self._copies: list[_Copy] = []
        for number, visible in enumerate(devices):
            ours, theirs = context.Pipe()
            settings = options | {"seed": (seed + 7919 * number) % 2**31}
            arguments = (theirs, kind, model, settings, visible, copies)
            process = context.Process(target=_serve, args=arguments, name=f"copy {number} of {model}")
            process.start()
            theirs.close()
            self._copies.append(_Copy(process, ours))
        self._last_error = ""
        self._load(model)

    def _load(self, model: str) -> None:
        loading, deadline = list(self._copies), time.monotonic() + LOAD_SECONDS
        while loading:
            ready = wait([copy.pipe for copy in loading], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise EngineError(f"{model}: a copy was still loading after {LOAD_SECONDS:.0f} s")
            for copy in [copy for copy in loading if copy.pipe in ready]:
                loading.remove(copy)
                try:
                    answer = copy.pipe.recv()
                except (EOFError, OSError):
                    answer = {"error": f"its process ended with exit code {copy.exit_code()}"}
                if "error" in answer:
                    self.close()
                    raise EngineError(f"{model}: a copy could not be loaded: {answer['error']}")
                self.max_model_length, copy.capacity = answer["max_model_length"], answer["capacity"]
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.capacity = sum(copy.capacity for copy in self._copies)

    def _submit(self, request: Request) -> None:
        copy = min(self._copies, key=lambda copy: copy.sequences())
        copy.held[request.key] = request
        try:
            copy.pipe.send(request)
        except (BrokenPipeError, OSError):
            self._lost(copy)

    def _step(self):
        ready = wait([copy.pipe for copy in self._copies], timeout=SILENT_SECONDS)
        if not ready:
            raise EngineError(f"no copy has finished anything for {SILENT_SECONDS:.0f} s")
        results = []
        for copy in [copy for copy in self._copies if copy.pipe in ready]:
            try:
                answer = copy.pipe.recv()
            except (EOFError, OSError):
                self._lost(copy)
                continue
            if isinstance(answer, dict):
                self._last_error = answer["error"]
                continue  # its pipe breaks next
            for result in answer:
                del copy.held[result.key]
            results += answer
        return results

    def _lost(self, copy: "_Copy") -> None:
        """Give the requests of a dead copy to the others, once: one of those may turn out to be dead on the way."""
        if copy not in self._copies:
            return
        self._copies.remove(copy)
        copy.pipe.close()
        why = self._last_error or f"exit code {copy.exit_code()}"
        if not self._copies:
            raise EngineError(f"every copy of the engine has died, the last one of: {why}")
        print(f"{copy.process.name} has died ({why}); {len(self._copies)} left take its {len(copy.held)} requests")
        self.capacity = sum(other.capacity for other in self._copies)
        for request in copy.held.values():
            self._submit(request)

    def close(self) -> None:
        """End the processes."""
        for copy in self._copies:
            copy.pipe.close()
        for copy in self._copies:
            copy.process.join(30)
            if copy.process.is_alive():
                copy.process.kill()
                copy.process.join()
        self._copies = []


class _Copy:
    """One process, our end of its pipe, and the requests that it holds."""

    def __init__(self, process, pipe):
        self.process, self.pipe, self.capacity = process, pipe, 0
        self.held: dict = {}

    def sequences(self) -> int:
        return sum(request.sampling.n for request in self.held.values())

    def exit_code(self) -> int | None:
        self.process.join(10)
        return self.process.exitcode


def _devices(copies: int, gpus_each: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each copy; None without GPUs. Raises `ValueError` if there are too few."""
    import torch

    if not has_gpu():
        return [None] * copies
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name for name in visible.split(",") if name] or [str(i) for i in range(torch.cuda.device_count())]
    if copies * gpus_each > len(names):
        raise ValueError(
            f"data_parallel_size={copies} x tensor_parallel_size={gpus_each} needs {copies * gpus_each} GPUs, "
            f"{len(names)} are visible: set data_parallel_size to at most {len(names) // gpus_each}"
        )
    return [",".join(names[i * gpus_each : (i + 1) * gpus_each]) for i in range(copies)]


def _serve(pipe, kind: str, model: str, options: dict, visible: str | None, copies: int) -> None:
    """A copy's process: load, then take requests in and send results back until the pipe breaks."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    else:  # the copies share the cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // copies)))
    waiting: queue.SimpleQueue = queue.SimpleQueue()  # read by a thread, so that neither side waits for the other
    try:
        engine = open_local(kind, model, **options)
        pipe.send({"max_model_length": engine.max_model_length, "capacity": engine.capacity})
        threading.Thread(target=_receive, args=(pipe, waiting), daemon=True).start()
        with engine:
            while True:
                while not (engine.load and waiting.empty()):
                    request = waiting.get()
                    if request is None:
                        return
                    engine.submit(request)
                if results := engine.step():
                    pipe.send(results)
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


def _receive(pipe, waiting: queue.SimpleQueue) -> None:
    """Move requests out of the pipe; None when it breaks."""
    try:
        while True:
            waiting.put(pipe.recv())
    except (EOFError, OSError):
        waiting.put(None)
