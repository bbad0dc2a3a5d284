"""Tokenizers of words whose chat templates open the thinking, or whose marks of thinking are special tokens."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gsr_rl.engines.base import Completion, Engine, Result

TURNS = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
CHANNELS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
# Of each kind: its template's generation prompt, its special tokens, a finished answer and thinking that never ends.
KINDS = {
    "opening": ("<think>\n", [], "so \\boxed{7}</think>is \\boxed{4}", "so \\boxed{4}"),
    "special": ("", ["[THINK]", "[/THINK]"], "[THINK]so \\boxed{7}[/THINK]is \\boxed{4}", "[THINK]so \\boxed{4}"),
    "opening special": ("[THINK]", ["[THINK]", "[/THINK]"], "so \\boxed{7}[/THINK]is \\boxed{4}", "so \\boxed{4}"),
    "harmony": (
        "",
        CHANNELS,
        "<|channel|>analysis<|message|>so \\boxed{7}<|end|><|start|>assistant<|channel|>final<|message|>is \\boxed{4}",
        "<|channel|>analysis<|message|>so \\boxed{4}",
    ),
}


def thinking_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the template and the special tokens of `KINDS[kind]`."""
    opening, special, *_ = KINDS[kind]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", *special],
        chat_template=TURNS + PROMPT + opening + "{% endif %}",
    )


class ThinkingEngine(Engine):
    """Says the same of every prompt, as an engine does: decoded without special tokens."""

    max_model_length, capacity = 16384, 8

    def __init__(self, kind: str, text: str):
        super().__init__()
        self.tokenizer, self.said, self._waiting = thinking_tokenizer(kind), text, []

    def _submit(self, request):
        self._waiting.append(request)

    def _step(self):
        request = self._waiting.pop(0)
        ids = [*self.tokenizer(self.said)["input_ids"], self.tokenizer.eos_token_id]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return [Result(request.key, [Completion(text, ids, True)] * request.sampling.n)]
