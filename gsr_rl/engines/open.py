"""Open the engine that a configuration asks for: here, as copies in processes of their own, or as endpoints."""

from importlib.util import find_spec
from pathlib import Path

from gsr_rl.engines.base import KINDS, Engine
from gsr_rl.engines.data_parallel import DataParallelEngine
from gsr_rl.engines.endpoints import EndpointEngine, EndpointSettings
from gsr_rl.engines.local import has_gpu, open_local
from gsr_rl.refinement.settings import with_chat_template

SMALL_BYTES = 100_000_000  # of weights: with more, vLLM makes up for its start within some hundred tokens


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
