"""How a training is shared out over its processes, and that a CPU shards as GPUs do."""

import logging
import os
from functools import wraps

logger = logging.getLogger(__name__)


def shard_on_cpu() -> None:
    """Let `accelerate launch` shard on a CPU as it does on GPUs. Does nothing where there is a GPU.

    DeepSpeed is kept from compiling its shared-memory all-reduce, which only its inference engine uses: that takes a
    minute on the first run of a machine, in each process, and training never calls it. accelerate (1.15,
    `AcceleratorState.__init__`) takes up its FSDP plugin on accelerators alone, and would train plain data parallel
    without a word. Call this before the training arguments are made: they start the process group.
    """
    import torch

    if torch.cuda.is_available():
        return
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
    """A warning where weights of 16 bits are trained as they are. DeepSpeed and mixed FSDP2 keep them in float32."""
    mixed = trainer.is_fsdp_enabled and trainer.accelerator.mixed_precision != "no"
    if trainer.is_deepspeed_enabled or mixed or not trainer.accelerator.is_main_process:
        return
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    if short := [dtype for dtype in trained if dtype.itemsize == 2]:
        logger.warning(
            "the trained weights are %s and nothing keeps them in float32: updates of learning_rate=%g are lost in "
            "rounding where they are less than about 1/256 of a weight. Set dtype to float32 (bf16: true computes "
            "in bfloat16 all the same), or launch with DeepSpeed",
            str(short[0]).removeprefix("torch."), trainer.args.learning_rate,
        )  # fmt: skip
