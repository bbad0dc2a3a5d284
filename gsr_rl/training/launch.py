"""How a training is launched: processes and sharding, and the sizes of model and LoRA that a dry run estimates from.

`shard_on_cpu`, `launched_as` and `warn_of_lost_updates` are a run's own; what is above them is read, not run.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path

import yaml

from gsr_rl.engines.local import has_gpu
from gsr_rl.hub.config import is_repo_name

logger = logging.getLogger(__name__)

PEFT_TARGETS = ("q_proj", "v_proj")  # PEFT's own for the types llama, qwen2 and qwen3: peft/utils/constants.py
LEAST_LORA_RATE = 5e-6  # docs/training.md, LoRA


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
    def query_width(self) -> int:
        """Numbers of a token's queries in one layer, over all heads."""
        return self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def key_width(self) -> int:
        """Numbers of a token's keys in one layer, over all heads; of its values as many."""
        return self.query_width // self.num_attention_heads * (self.num_key_value_heads or self.num_attention_heads)

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules, by their names in it."""
        hidden, inner, query, key = self.hidden_size, self.intermediate_size, self.query_width, self.key_width
        return {
            "self_attn.q_proj": (hidden, query),
            "self_attn.k_proj": (hidden, key),
            "self_attn.v_proj": (hidden, key),
            "self_attn.o_proj": (query, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Number of a layer's parameters, biases and norms left out."""
        return sum(inputs * outputs for inputs, outputs in self.linear.values())

    @property
    def table_parameters(self) -> int:
        """Number of parameters of the embedding and of the output head, once if they are tied."""
        return (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Number of parameters, biases and norms left out."""
        return self.num_hidden_layers * self.layer_parameters + self.table_parameters

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token, bfloat16."""
        return 2 * 2 * self.num_hidden_layers * self.key_width


@dataclass(frozen=True)
class Launch:
    """How a run is started: processes, what they share out, and what is in CPU memory.

    `zero_stage` is DeepSpeed's (0: nothing is shared out); FSDP2 counts as stage 3, and as 2 without resharding.
    """

    processes: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    on_cpu: bool = False
    offload_weights: bool = False
    fsdp: bool = False

    @property
    def name(self) -> str:
        """What shares out, as it is printed."""
        return "FSDP2" if self.fsdp else f"ZeRO stage {self.zero_stage}"

    @property
    def offloaded(self) -> set[str]:
        """What a GPU run keeps in CPU memory: ZeRO-2 and 3 put gradients beside the optimizer (`self.device`)."""
        if self.on_cpu:
            return set()
        beside = {"gradients"} if self.zero_stage >= 2 else set()
        return ({"optimizer"} | beside if self.offload_optimizer else set()) | (
            {"weights", "reference model"} if self.offload_weights else set()
        )


def read_shape(model: str | None, stated: dict | str | None) -> ModelShape | None:
    """The shape from a local model folder or the Hub's cache, else from the key `model_shape`; None where none tells.

    Raises:
        ValueError: Sizes that are missing or no whole numbers above 0.
    """
    path = config_of(model)
    needed = [size.name for size in fields(ModelShape) if size.default is MISSING]
    if path.is_file():
        name, fix = f"model_name_or_path={model}", "set model_shape to the sizes by Llama's names"
        values = _mapping(lambda: json.loads(path.read_text("utf-8")), f"{name}: its config.json is no JSON: {fix}")
        values = values.get("text_config") or values
        if stated and not values.keys() >= set(needed):
            return read_shape(None, stated)
    elif stated:
        name, fix = f"model_shape={stated}", "give them by config.json's names"
        problem = f"{name}: a mapping of sizes by config.json's names is expected, such as {{hidden_size: 3584, ...}}"
        values = _mapping(lambda: yaml.safe_load(stated) if isinstance(stated, str) else stated, problem)
    else:
        return None
    if missing := [size for size in needed if values.get(size) is None]:
        raise ValueError(f"{name}: {', '.join(missing)} missing: {fix}")
    given = [size.name for size in fields(ModelShape) if values.get(size.name) is not None]
    tied = bool(values.get("tie_word_embeddings", False))
    sizes = {size: _whole(values[size], f"{name}: {size}", 1) for size in given if size != "tie_word_embeddings"}
    return ModelShape(**sizes, tie_word_embeddings=tied)


def config_of(model: str | None) -> Path:
    """Where the config.json of a model is, if it is here: in its folder, or of a Hub name in the cache."""
    path = Path(str(model)) / "config.json"
    if path.is_file() or not model or not is_repo_name(model):
        return path
    from huggingface_hub import try_to_load_from_cache

    return Path(str(try_to_load_from_cache(model, "config.json") or path))


def check_named_size(model: str | None, shape: ModelShape) -> None:
    """`model_shape` is that of the model, as far as a name such as Qwen2.5-7B tells. Raises `ValueError`."""
    named = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])(?![a-z])", Path(str(model)).name, re.IGNORECASE)
    if not named or config_of(model).is_file():
        return
    stated = float(named[1]) * (1e9 if named[2].upper() == "B" else 1e6)
    if not 0.6 * stated < shape.parameters < 1.6 * stated:
        raise ValueError(
            f"model_shape has {shape.parameters / 1e9:.2f} billion parameters, which is another model than "
            f"model_name_or_path={model}: set model_shape to its sizes, or to null to leave the memory out"
        )


def read_launch(path: str | None, processes: int) -> Launch:
    """What `accelerate launch` has told this process, else its file at `path`, else `processes` without sharding.

    Raises:
        ValueError: Another file, or a number in it that cannot be.
    """
    launched, started = _of_launcher(), os.environ.get("WORLD_SIZE")
    if not (path or launched):
        return Launch(int(started or processes))
    name = "accelerate launch" if launched else f"launch_config={path}"
    problem = f"{name}: not an accelerate configuration, give one of accelerate_configs/"
    values = launched or _mapping(lambda: yaml.safe_load(Path(path).read_text("utf-8")), problem)
    deepspeed, fsdp = values.get("deepspeed_config") or {}, values.get("fsdp_config") or {}
    if "distributed_type" not in values or not isinstance(deepspeed, dict) or not isinstance(fsdp, dict):
        raise ValueError(problem)
    if "deepspeed_config_file" in deepspeed:
        raise ValueError(f"{name}: deepspeed_config_file is not read for a dry run: state zero_stage in its place")
    stage = _whole(deepspeed.get("zero_stage", 0), f"{name}: zero_stage", 0, 3)
    if is_fsdp := values["distributed_type"] == "FSDP":
        stage = 3 if fsdp.get("fsdp_reshard_after_forward", True) else 2
    all_offloaded = is_fsdp and bool(fsdp.get("fsdp_offload_params", False))
    return Launch(
        _whole(started or values.get("num_processes", processes), f"{name}: num_processes", 1),
        stage,
        all_offloaded or str(deepspeed.get("offload_optimizer_device", "none")) == "cpu",
        bool(values.get("use_cpu", False)),
        all_offloaded or (stage == 3 and str(deepspeed.get("offload_param_device", "none")) == "cpu"),
        is_fsdp,
    )


def _of_launcher() -> dict | None:
    """The environment that `accelerate launch` makes, by the names of its configuration file; None without it."""
    env = {name.removeprefix("ACCELERATE_"): value.lower() for name, value in os.environ.items()}
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    kind = next((kind for kind in ("DEEPSPEED", "FSDP") if env.get(f"USE_{kind}") == "true"), "NO")
    deepspeed = {"zero_stage": "2"} if kind == "DEEPSPEED" else {}  # accelerate's own default
    for name in ("zero_stage", "offload_optimizer_device", "offload_param_device", "deepspeed_config_file"):
        if value := env.get(f"DEEPSPEED_{name.removeprefix('deepspeed_').upper()}"):
            deepspeed[name] = value
    fsdp = {"fsdp_reshard_after_forward": env.get("FSDP_RESHARD_AFTER_FORWARD") != "false"}
    fsdp["fsdp_offload_params"] = env.get("FSDP_OFFLOAD_PARAMS") == "true"
    values = {"distributed_type": kind, "deepspeed_config": deepspeed, "fsdp_config": fsdp}
    return values | {"num_processes": 1, "use_cpu": env.get("USE_CPU") == "true"}  # of several, WORLD_SIZE counts


def adapter_parameters(shape: ModelShape, model) -> int:
    """Number of parameters that LoRA trains: PEFT's choice of modules (`check_target_module_exists`).

    Args:
        model: TRL's `ModelConfig`.

    Raises:
        ValueError: No module is chosen.
    """
    targets, copied = model.lora_target_modules or PEFT_TARGETS, model.lora_modules_to_save or []
    modules = {"model.embed_tokens": (shape.vocab_size, shape.hidden_size)}
    modules["lm_head"] = (shape.hidden_size, shape.vocab_size)
    for layer in range(shape.num_hidden_layers):
        modules |= {f"model.layers.{layer}.{name}": size for name, size in shape.linear.items()}
    if str(targets).lower() == "all-linear":
        targets = r"model\.layers\..*"
    trained = [size for name, size in modules.items() if _named(name, copied)]  # as they are, beside the adapter
    try:
        adapted = [size for name, size in modules.items() if _named(name, targets) and not _named(name, copied)]
    except re.error:
        adapted = []
    if not adapted:
        raise ValueError(
            f"lora_target_modules={targets!r} is no module of the model: give all-linear, several names such as "
            "q_proj v_proj, or a regular expression of a module's whole name such as .*q_proj"
        )
    return sum(model.lora_r * sum(size) for size in adapted) + sum(inputs * outputs for inputs, outputs in trained)


def _named(module: str, targets) -> bool:
    """Whether a module's whole name fits a regular expression, or ends in one of several names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in targets)


def check_numbers(args, model) -> None:
    """What the figures divide by or multiply with. Raises `ValueError` with the key, its value and the fix."""
    if args.use_vllm:
        _whole(args.vllm_tensor_parallel_size, "vllm_tensor_parallel_size", 1)
    if model is not None and model.use_peft:
        _whole(model.lora_r, "lora_r", 1)
    if args.gpu_memory_gib <= 0:
        raise ValueError(f"gpu_memory_gib={args.gpu_memory_gib:g}: give the memory of one GPU in GiB, above 0")


def _mapping(read: Callable[[], object], problem: str) -> dict:
    """What `read` returns; `ValueError` with this message if that is no mapping or cannot be read."""
    try:
        values = read()
    except (ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(problem)
    return values


def _whole(value: object, name: str, lowest: int, highest: int | None = None) -> int:
    """A whole number in these bounds, or `ValueError` that says so."""
    text = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    if not re.fullmatch(r"\d+", str(value)) or not lowest <= int(str(value)) <= (highest or int(str(value))):
        raise ValueError(f"{name}={value}: give a whole number, {text}")
    return int(str(value))


def shard_on_cpu(use_cpu: bool = False) -> None:
    """Let `accelerate launch` shard on a CPU as it does on GPUs. Does nothing where a GPU is used.

    With `use_cpu` the GPUs are hidden from this process: DeepSpeed would take one whatever the configuration says.

    DeepSpeed is kept from compiling its shared-memory all-reduce, which only its inference engine uses: that takes a
    minute on the first run of a machine, in each process, and training never calls it. accelerate (1.15,
    `AcceleratorState.__init__`) takes up its FSDP plugin on accelerators alone, and would train plain data parallel
    without a word. Call this before the training arguments are made: they start the process group.
    """
    if has_gpu(use_cpu):
        return
    if use_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        from accelerate.state import AcceleratorState

        if not hasattr(AcceleratorState.__init__, "__wrapped__"):
            AcceleratorState.__init__ = _with_fsdp(AcceleratorState.__init__)


def launched_as(accelerator) -> dict[str, object]:
    """The number of processes, and what shards weights or optimizer over them, as launched."""
    deepspeed, fsdp = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("deepspeed", "fsdp"))
    if deepspeed is not None:
        sharding = f"DeepSpeed ZeRO-{deepspeed.zero_stage}"
    elif fsdp is not None:
        sharding = f"FSDP{fsdp.fsdp_version}"
    else:
        sharding = "plain data parallel" if accelerator.num_processes > 1 else "none"
    return {"processes": accelerator.num_processes, "sharding": sharding}


def _with_fsdp(start):
    """`AcceleratorState.__init__` that takes up the FSDP plugin of several processes on a CPU too."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    @wraps(start)
    def start_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    return start_with_fsdp


def warn_of_lost_updates(trainer) -> None:
    """A warning where LoRA has a full fine-tune's learning rate, and where 16-bit weights are trained as they are.

    DeepSpeed and mixed FSDP2 keep trained weights in float32, but the engine gets adapters merged into 16 bits.
    """
    from accelerate.utils import is_peft_model

    if not trainer.accelerator.is_main_process:
        return
    if is_peft_model(trainer.model) and 0 < trainer.args.learning_rate < LEAST_LORA_RATE:
        logger.warning(
            "learning_rate=%g is a full fine-tune's, LoRA learns little by it: ten times that is usual, such as 1e-5 "
            "for GRPO and 2e-4 for SFT, with lora_target_modules all-linear", trainer.args.learning_rate,
        )  # fmt: skip
    if trainer.is_deepspeed_enabled or (trainer.is_fsdp_enabled and trainer.accelerator.mixed_precision != "no"):
        return
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    if short := [dtype for dtype in trained if dtype.itemsize == 2]:
        logger.warning(
            "the trained weights are %s and nothing keeps them in float32: updates of learning_rate=%g are lost in "
            "rounding where they are less than about 1/256 of a weight. Set dtype to float32 (bf16: true computes "
            "in bfloat16 all the same), or launch with DeepSpeed",
            str(short[0]).removeprefix("torch."), trainer.args.learning_rate,
        )  # fmt: skip
