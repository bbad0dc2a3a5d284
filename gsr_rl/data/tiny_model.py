"""The tiny world's tokenizer and network: what `recipes/tiny/make_models.py` trains."""

import re

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gsr_rl.data.tiny_world import IDENTITY, MAPS, STATES, STEPS

PAD, EOS, USER, ASSISTANT, UNKNOWN = "<pad>", "<eos>", "<user>", "<assistant>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + EOS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, in the order of its id: about two tokens per step of a chain, one per value of a guess."""
    words = ["refine ", "\n#", "\n>", "ok\\boxed{", "no\\boxed{", "\\boxed{", "}", "=", "ok", "no"]
    words += [*STATES, *MAPS, IDENTITY]
    words += [*STEPS, *(f"{step}=" for step in STEPS), *(f"{number:02d}" for number in range(100))]
    return [PAD, EOS, USER, ASSISTANT, UNKNOWN, *words]


def build_tokenizer():
    """The tokenizer of every tiny model, with its chat template: a `PreTrainedTokenizerFast`.

    Whole words by regular expression, no merges: decoding gives back every text of the tiny world exactly.
    It pads on the left.
    """
    words = vocabulary()
    longest_first = sorted(words[5:], key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(seed: int, hidden_size: int = 128) -> Qwen2ForCausalLM:
    """An untrained Qwen2 for the tiny tokenizer, of 665 k parameters unless another width is asked for.

    Args:
        hidden_size: A multiple of 32, the size of a head: the smallest that vLLM takes on a CPU.
    """
    if hidden_size < 32 or hidden_size % 32:
        raise ValueError(f"hidden_size={hidden_size} is not a multiple of 32")
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    shape = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size}
    shape |= {"num_hidden_layers": 3, "max_position_embeddings": 512}
    heads = {"num_attention_heads": hidden_size // 32, "num_key_value_heads": hidden_size // 32}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    table = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, "initializer_range": 0.05}
    return Qwen2ForCausalLM(Qwen2Config(**shape, **heads, **ids, **table))


def in_llama_layout(model: Qwen2ForCausalLM) -> LlamaForCausalLM:
    """The same function of the same weights, as a Llama with attention biases (the output projection's is zero).

    AutoTokenizer gives every folder of model type qwen2 Qwen's own tokenizer, whatever tokenizer stands in it.
    """
    shared = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "attention_bias", "transformers_version"}
    values = {name: value for name, value in model.config.to_dict().items() if name in shared}
    llama = LlamaForCausalLM(LlamaConfig(**values, attention_bias=True))
    weights = model.state_dict()
    for name, parameter in llama.state_dict().items():
        if name.endswith("o_proj.bias"):
            weights[name] = torch.zeros_like(parameter)
    llama.load_state_dict(weights)
    llama.generation_config = model.generation_config
    return llama
