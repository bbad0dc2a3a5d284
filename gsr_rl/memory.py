"""The memory a joint GRPO step needs, of each GPU or on a CPU: reckoned from the configuration, not measured."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

GIB = 2**30
ADAM_BYTES = 12  # a trained parameter: float32 master copy and two moments
LAYER_BYTES = 34  # a token and hidden unit in one layer that is being recomputed, bfloat16 (Korthikanti et al. 2022)
LOGIT_BYTES = 10  # a position and vocabulary entry: logits in bfloat16, in float32, and their gradient


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama or Qwen type model, by the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    tie_word_embeddings: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters, biases and norms left out."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        attention = 2 * self.hidden_size * head * (self.num_attention_heads + self._kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + tables

    @property
    def _kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token, bfloat16."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        return 2 * 2 * self.num_hidden_layers * self._kv_heads * head


@dataclass(frozen=True)
class Launch:
    """How a run is started: processes, ZeRO stage (0: none), optimizer on the CPU, or all of it."""

    processes: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    on_cpu: bool = False


def read_shape(model: str | None, said: dict | str | None) -> ModelShape | None:
    """The shape from a local model folder, else from the key `model_shape`; None where neither tells."""
    path = Path(str(model)) / "config.json"
    values = json.loads(path.read_text()) if path.is_file() else said
    values = json.loads(values) if isinstance(values, str) else values
    if not values:
        return None
    names = {field.name for field in fields(ModelShape)}
    return ModelShape(**{name: value for name, value in values.items() if name in names and value is not None})


def read_launch(path: str | None, processes: int) -> Launch:
    """What an accelerate configuration file says; without one, `processes` without sharding."""
    if not path:
        return Launch(processes)
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    deepspeed = values.get("deepspeed_config") or {}
    return Launch(
        int(values.get("num_processes", processes)),
        int(deepspeed.get("zero_stage", 0)),
        str(deepspeed.get("offload_optimizer_device", "none")) == "cpu",
        bool(values.get("use_cpu", False)),
    )


def memory_arithmetic(shape: ModelShape, launch: Launch, args, trained: int | None = None) -> dict[str, str]:
    """GiB a GPU for each part of a joint step; on a CPU, GiB a process, and no word on whether they fit.

    Args:
        args: A `GSRConfig`.
        trained: Trained parameters, if not all of them (LoRA).

    Returns:
        Name to text, in the order in which `--dry_run true` prints them.
    """
    n, stage = launch.processes, launch.zero_stage
    width = 4 if str(getattr(args, "bf16", True)) == "False" else 2
    trained = shape.parameters if trained is None else trained
    weights = shape.parameters * width / (n if stage == 3 else 1)
    gradients = trained * width / (n if stage >= 2 else 1)
    optimizer = trained * ADAM_BYTES / (n if stage >= 1 else 1)
    longest = args.max_refinement_prompt_length + args.max_refinement_length
    rows = args.per_device_train_batch_size
    tokens = rows * longest
    saved = tokens * shape.hidden_size * shape.num_hidden_layers * width
    one_layer = tokens * shape.hidden_size * LAYER_BYTES
    layers = saved + one_layer if args.gradient_checkpointing else one_layer * shape.num_hidden_layers
    logits = rows * max(args.max_completion_length, args.max_refinement_length) * shape.vocab_size * LOGIT_BYTES
    offloaded = launch.offload_optimizer and not launch.on_cpu
    found = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 0.0 if offloaded else optimizer,
        "activations of a micro-batch, at most": layers + logits,
    }
    total = sum(found.values())
    kind, each = ("CPU", "GiB a process") if launch.on_cpu else ("GPU", "GiB")
    text = {"model parameters": f"{shape.parameters / 1e9:.2f} billion"}
    text |= {f"{kind} memory: {name}": f"{value / GIB:.1f} {each}" for name, value in found.items()}
    text[f"{kind} memory: training together"] = f"{total / GIB:.1f} {each} (ZeRO stage {stage}, {n} processes)"
    if launch.on_cpu:
        if args.use_vllm and args.vllm_mode == "colocate":
            text["CPU memory: vLLM"] = "the weights again and VLLM_CPU_KVCACHE_SPACE (2 GiB unless set), a process"
        return text | {"GPU memory": "none is used: use_cpu is true"}
    if offloaded:
        text["CPU memory: optimizer"] = f"{optimizer / GIB:.1f} GiB a process"
    if args.use_vllm and args.vllm_mode == "colocate":
        engine = args.vllm_gpu_memory_utilization * args.gpu_memory_gib * GIB
        own = shape.parameters * 2 / args.vllm_tensor_parallel_size
        cache = max(0.0, engine - own)
        tokens = cache * args.vllm_tensor_parallel_size / shape.cache_bytes
        text["GPU memory: vLLM"] = f"{engine / GIB:.1f} GiB, of it {own / GIB:.1f} weights"
        text["vLLM cache"] = f"{tokens:,.0f} tokens, {tokens / longest:,.0f} longest sequences at once"
        asleep = args.vllm_enable_sleep_mode
        most = max(total, engine + weights) if asleep else total + engine
        fits = "fits" if most < 0.95 * args.gpu_memory_gib * GIB else "DOES NOT FIT"
        when = "vLLM asleep during the update" if asleep else "vLLM awake during the update"
        text["GPU memory: peak"] = f"{most / GIB:.1f} of {args.gpu_memory_gib:g} GiB ({when}): {fits}"
    return text
