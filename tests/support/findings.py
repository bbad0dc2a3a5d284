"""A sound configuration of the joint recipe, and what the checks of one with other values say."""

import pytest

from gsr_rl import cli

TINY = "recipes/tiny/models/base"
GRPO = {"dataset_name": "tiny/mix", "per_device_train_batch_size": 16, "num_generations": 8}
GRPO |= {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}


def findings(program: str = "grpo", **values) -> str:
    with pytest.raises(ValueError) as caught:
        cli.check_values(program, GRPO | values)
    return str(caught.value)
