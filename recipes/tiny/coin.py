"""A reward without meaning, for the control that must learn nothing: `reward_funcs: tiny.coin:coin`."""

import os
import random

_stream = random.Random(f"coin {os.environ.get('RANK', 0)}")


def coin(completions, **_) -> list[float]:
    """0 or 1 for each completion, whatever it says."""
    return [float(_stream.random() < 0.5) for _ in completions]
