"""A tokenizer of single letters, for what is quick to test without a model: a token is a letter, its id the code."""

from itertools import pairwise

from jinja2 import TemplateError


class LetterTokenizer:
    """As much of a tokenizer as prompts need. A chat is written `role:text|` a turn, and `assistant:` at the end."""

    eos_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(one) for one in ids if one)

    def batch_decode(self, rows, skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row) for row in rows]

    def apply_chat_template(self, messages, add_generation_prompt=True, tokenize=True, return_dict=False, **_):
        if any(one["role"] == two["role"] == "assistant" for one, two in pairwise(messages)):  # as strict templates do
            raise TemplateError("two answers in a row")
        text = "".join(f"{one['role']}:{one['content']}|" for one in messages)
        return [ord(letter) for letter in text + "assistant:" * add_generation_prompt]
