"""DeepSpeed on a CPU without its shared-memory extension."""

import os


def skip_unused_extension() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, which only its inference engine uses.

    Compiling takes a minute on the first run of a machine, in each process, and training never calls it. Does nothing
    unless `accelerate launch` asked for DeepSpeed on a CPU. Call it before the training arguments are made: they
    start the process group.
    """
    flags = [os.environ.get(name, "false").lower() for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU")]
    if flags == ["true", "true"]:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
