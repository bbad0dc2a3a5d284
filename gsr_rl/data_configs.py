"""Configuration of problems, of engines and of how candidates are shown: parts of the programs' configurations."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EngineAccess:
    """The engine of a program that samples: in this process, or endpoints that are asked."""

    engine: str = field(
        default="vllm",
        metadata={"help": "vllm (in process), transformers (slow, everywhere), or endpoint (OpenAI-compatible)."},
    )
    engine_dtype: str = field(default="auto", metadata={"help": "Number format: auto, float32, bfloat16, float16."})
    max_model_length: int | None = field(
        default=None, metadata={"help": "The engine's window in tokens, prompt and completion. Default: the model's."}
    )
    max_num_seqs: int | None = field(default=None, metadata={"help": "Sequences decoded at once. Default: engine's."})
    gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of a GPU's memory for the engine."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one copy of a model is cut over."})
    endpoints: list[str] | None = field(
        default=None, metadata={"help": "Addresses of OpenAI-compatible endpoints, such as http://localhost:8000/v1."}
    )
    endpoint_api: str = field(
        default="chat",
        metadata={"help": "chat (messages, any provider) or completions (token ids, exact; vLLM and SGLang)."},
    )
    endpoint_tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer that an endpoint's prompts are counted with. Default: the model's."}
    )
    endpoint_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further keys of a request's body, such as {reasoning_effort: low}."}
    )
    api_key_env: str | None = field(
        default=None, metadata={"help": "Name of the environment variable with the endpoints' key. Default: no key."}
    )
    request_timeout: float = field(default=1800.0, metadata={"help": "Seconds that one try of a request may take."})
    request_retries: int = field(
        default=10,
        metadata={"help": "Further tries of a request, with pauses growing from half a second to a minute."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling and of all that is drawn beside it."})


@dataclass
class EngineConfig(EngineAccess):
    """The engine that distillation and evaluation sample with, and how they sample."""

    data_parallel_size: int | None = field(
        default=None,
        metadata={"help": "Copies of a model, each in its own process. Default: as many as the visible GPUs hold."},
    )
    max_requests_in_flight: int = field(default=256, metadata={"help": "Requests to endpoints at once."})
    requests_per_minute: float | None = field(default=None, metadata={"help": "Rate limit of requests to endpoints."})
    num_generations: int = field(default=8, metadata={"help": "Candidates sampled per problem."})
    num_candidate_sets: int = field(
        default=1, metadata={"help": "M: candidate sets per problem; they share no candidate while M*K <= candidates."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of candidates; 0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of candidates."})
    max_completion_length: int = field(default=4096, metadata={"help": "Limit of a candidate in tokens."})
    refinement_temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of refinements."})
    refinement_top_p: float = field(default=1.0, metadata={"help": "Nucleus of refinements."})
    max_refinement_length: int | None = field(
        default=None, metadata={"help": "Limit of a refinement in tokens. Default: max_completion_length."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything, print the resolved configuration and the amounts, load no weights."},
    )


@dataclass
class TeacherConfig:
    """What the teacher may have of its own; each key defaults to the student's of like name."""

    teacher_engine: str | None = field(default=None, metadata={"help": "As `engine`, for the teacher alone."})
    teacher_tensor_parallel_size: int | None = field(
        default=None, metadata={"help": "As `tensor_parallel_size`, for the teacher alone."}
    )
    teacher_endpoints: list[str] | None = field(
        default=None, metadata={"help": "As `endpoints`, for the teacher alone."}
    )
    teacher_endpoint_api: str | None = field(
        default=None, metadata={"help": "As `endpoint_api`, for the teacher alone."}
    )
    teacher_endpoint_tokenizer: str | None = field(
        default=None, metadata={"help": "As `endpoint_tokenizer`, for the teacher alone."}
    )
    teacher_endpoint_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "As `endpoint_options`, for the teacher alone."}
    )
    teacher_api_key_env: str | None = field(
        default=None, metadata={"help": "As `api_key_env`, for the teacher alone."}
    )
