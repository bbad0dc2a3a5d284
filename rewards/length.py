"""A soft penalty for completions that come close to the length limit (DAPO, arXiv 2503.14476, eq. 13)."""


class LengthReward:
    """TRL reward function: 0 up to `max_length - buffer` tokens, then falling linearly to -1 at `max_length`.

    Args:
        max_length: tokens at which the penalty is whole.
        buffer: tokens over which it grows.
    """

    __name__ = "length"

    def __init__(self, max_length: int, buffer: int):
        for name, value in (("max_length", max_length), ("buffer", buffer)):
            if type(value) is not int:
                raise ValueError(f"length: {name}={value!r}: a whole number is expected, without quotes")
        if not 0 < buffer <= max_length:
            raise ValueError(
                f"buffer={buffer} is not between 1 and max_length={max_length}: set it to about a fifth of max_length"
            )
        self.max_length, self.buffer = max_length, buffer

    def __call__(self, prompts=None, completions=None, completion_ids=None, **columns):
        if completion_ids is None:
            raise ValueError("the length reward needs completion_ids: call it from a trainer that passes them")
        free = self.max_length - self.buffer
        return [-min(1.0, max(0.0, (len(ids) - free) / self.buffer)) for ids in completion_ids]
