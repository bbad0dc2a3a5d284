"""DeepSpeed on a CPU without its shared-memory extension."""

import os


def skip_unused_extension() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, which only its inference engine uses.

    Compiling takes a minute on the first run of a machine, in each process, and training never calls it. Does nothing
    unless `accelerate launch` asked for DeepSpeed and there is no GPU. Call it before the training arguments are
    made: they start the process group.
    """
    import torch

    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" and not torch.cuda.is_available():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
