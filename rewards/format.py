"""Reward 1 for a completion that ends with exactly one boxed answer."""

import re

from rewards.accuracy import completion_text
from rewards.extraction import boxes, final_part

_TAIL = re.compile(r"(?:[\s$.,;!*]|\\[)\]]|</answer>|<\|[a-z_]+\|>)*")


class FormatReward:
    """TRL reward function: 1.0 if the final part has one box and ends with it but for punctuation, else 0.0."""

    __name__ = "format"

    def __call__(self, prompts=None, completions=None, completion_ids=None, **columns):
        return [float(self.well_formed(completion_text(completion))) for completion in completions]

    @staticmethod
    def well_formed(text: str) -> bool:
        text = final_part(text)
        if text is None:
            return False
        spans = boxes(text)
        return len(spans) == 1 and bool(_TAIL.fullmatch(text, spans[0][1]))
