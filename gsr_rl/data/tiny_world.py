r"""The tiny world: a small, honest stand-in for maths that one CPU learns in minutes.

Two families of problems share one vocabulary, one tokenizer and one model.

`chain`: arithmetic modulo 100, left to right. Problem ``47+5*3-8*7``: a two-digit start, then steps (``+`` or ``-`` a
    digit 1-9, ``*`` 3, 7 or 9: all of them can be undone, so errors rarely cancel). A solution writes every step:
    ``47+5=52*3=56-8=48*7=36\boxed{36}``. Direct skill can be learned, and grows under RL.

`guess`: guess and check. Ten states in two blocks of five, sixteen fixed maps (permutations that keep the blocks) and
    the identity ``i``. Problem ``acif=D``: which state do the maps, applied from left to right, take to D? A solution
    guesses, writes the values on the way, gives a verdict and boxes its guess: ``GABBDok\boxed{G}``. An honest failed
    guess says ``no``. The block can be read off the target; the rest needs the chain undone before a word is written,
    so checking is far easier than solving. The answer is unique.

Splits. A problem's split is the hash of its canonical form, never a random draw, so the splits cannot overlap,
whatever the seeds and difficulties. The canonical form takes away what changes the text and not the problem: in
`guess` the places of the identity (``aicf=D`` is ``acfi=D``); in `chain` the order of neighbours that commute
(``+5-8`` is ``-8+5``, ``*3*7`` is ``*7*3``). Names cannot be exchanged: digits mean themselves and the maps are the
same in every problem, so ``ac=D`` and ``bd=F`` are different problems, as ``2+3`` and ``4+5`` are. Besides
`validation` and `test` there is one split for each stage that trains: `base`, `teacher`, `sft` and `grpo`; `train` is
the last two together.
"""

import hashlib
import random
import re
from itertools import accumulate

STATES = "ABDFGHJKLM"  # no letter that a maths parser takes for a constant (C, E, I, N, O, Q, S)
BLOCKS = (STATES[:5], STATES[5:])
MAPS = "abcdefghjklmnpqr"  # no "o": a problem must not hold the words "ok" and "no"
IDENTITY = "i"
STEPS = (*(f"{op}{digit}" for op in "+-" for digit in range(1, 10)), "*3", "*7", "*9")

# Shares of 100 hash buckets: [low, high).
SPLITS = {"base": (0, 30), "teacher": (30, 45), "sft": (45, 60), "grpo": (60, 75)}
SPLITS |= {"validation": (75, 85), "test": (85, 100), "train": (45, 75)}
FAMILIES = ("chain", "guess")
DIFFICULTY = {"steps": 8, "operators": "+-*", "slots": 4, "identity": 0.25, "chain_share": 0.5}

PAD, EOS, USER, ASSISTANT, UNKNOWN = "<pad>", "<eos>", "<user>", "<assistant>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + EOS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def _hash(text: str) -> int:
    """A number that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def _table() -> dict[str, dict[str, str]]:
    """{map: {state: state}}: fixed permutations inside each block, by hash, so that no library can change them."""
    table = {IDENTITY: {state: state for state in STATES}} | {name: {} for name in MAPS}
    for name in MAPS:
        for block in BLOCKS:
            images = sorted(block, key=lambda state: _hash(f"map {name} {state}"))
            table[name].update(zip(block, images, strict=True))
    return table


TABLE = _table()


def family_of(problem: str) -> str:
    """`"chain"` or `"guess"`, from the text of a problem; ValueError if it is neither."""
    if re.fullmatch(r"\d\d(?:[+-][1-9]|\*[379])+", problem):
        return "chain"
    if re.fullmatch(f"[{MAPS}{IDENTITY}]+=[{STATES}]", problem):
        return "guess"
    raise ValueError(f"not a problem of the tiny world: {problem!r}; expected text like '47+5*3-8' or 'acif=D'")


def canonical(problem: str) -> str:
    """What is left of a problem when what changes only its text is taken away (see the module's docstring)."""
    if family_of(problem) == "guess":
        return problem.replace(IDENTITY, "")
    return re.sub(r"(?:[+-]\d)+|(?:\*\d)+", lambda run: "".join(sorted(re.findall("..", run[0]))), problem)


def split_bucket(problem: str) -> int:
    """The hash bucket, 0-99, that decides a problem's split (`SPLITS`)."""
    return _hash(canonical(problem)) % 100


def make_row(problem: str, split: str) -> dict:
    """The problem row: its id is a hash of the text, its answer is computed."""
    family = family_of(problem)
    answer = chain_values(problem)[-1] if family == "chain" else _preimage(problem)
    row = {"id": f"{family}-{_hash(problem):012x}", "problem": problem, "answer": answer}
    return row | {"family": family, "split": split}


def generate(family: str, split: str, n: int, seed: int, **difficulty) -> list[dict]:
    """`n` different problems of one split, the same ones for the same arguments.

    Args:
        family: `"chain"`, `"guess"`, or `"mix"` of both in random order.
        split: a key of `SPLITS`.
        seed: another seed draws other problems of the same split (in the small split of `guess` many are the same).
        difficulty: overrides of `DIFFICULTY`: `steps` of a chain, and the `operators` that it has; `slots` of a guess
            problem and the probability that one of them holds the `identity`; `chain_share`, the share of chains in a
            mix, 0-1.

    Returns:
        Rows `{"id", "problem", "answer", "family", "split"}`, no two with the same text.
    """
    settings = _checked(family, split, difficulty)
    if family == "mix":
        chains = round(n * settings["chain_share"])
        rows = generate("chain", split, chains, seed, **difficulty)
        rows += generate("guess", split, n - chains, seed, **difficulty)
        random.Random(f"mix {split} {seed}").shuffle(rows)
        return rows
    rng = random.Random(f"{family} {split} {seed}")
    low, high = SPLITS[split]
    draw = {"chain": _draw_chain, "guess": _draw_guess}[family]
    problems: dict[str, None] = {}
    for _ in range(1000 * (n + 100)):
        if len(problems) == n:
            break
        problem = draw(rng, **settings)
        if low <= split_bucket(problem) < high:
            problems[problem] = None
    if len(problems) < n:
        raise ValueError(
            f"only {len(problems)} different {family} problems of split {split!r} found for n={n}: "
            "lower n, or raise steps or slots"
        )
    return [make_row(problem, split) for problem in problems]


def _checked(family: str, split: str, difficulty: dict) -> dict:
    """The whole difficulty. Raises `ValueError` for what `generate` does not know."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {sorted(SPLITS)}")
    if family not in (*FAMILIES, "mix"):
        raise ValueError(f"tiny/{family}: there are {', '.join(f'tiny/{name}' for name in (*FAMILIES, 'mix'))}")
    if unknown := set(difficulty) - set(DIFFICULTY):
        raise ValueError(f"unknown difficulty {sorted(unknown)}: use {sorted(DIFFICULTY)}")
    settings = {**DIFFICULTY, **difficulty}
    if not settings["operators"] or set(settings["operators"]) - set(DIFFICULTY["operators"]):
        raise ValueError(f"operators={settings['operators']!r}: one or more of {DIFFICULTY['operators']} are expected")
    return settings


def _draw_chain(rng: random.Random, steps: int, operators: str, **_) -> str:
    ops = (rng.choice(operators) for _ in range(steps))
    return f"{rng.randrange(10, 100)}" + "".join(op + rng.choice("379" if op == "*" else "123456789") for op in ops)


def _draw_guess(rng: random.Random, slots: int, identity: float, **_) -> str:
    maps = "".join(IDENTITY if rng.random() < identity else rng.choice(MAPS) for _ in range(slots))
    return f"{maps}={rng.choice(STATES)}"


def boxed(text: str) -> str | None:
    r"""The last ``\boxed{...}`` of a text, or None."""
    contents = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return contents[-1] if contents else None


def apply_step(value: str, step: str) -> str:
    """One step of a chain on a two-digit value: ``apply_step("52", "*3") == "56"``."""
    number, digit = int(value), int(step[1])
    number = {"+": number + digit, "-": number - digit, "*": number * digit}[step[0]]
    return f"{number % 100:02d}"


def chain_values(problem: str) -> list[str]:
    """The true values of a chain, the start first: N + 1 two-digit strings."""
    return list(accumulate(re.findall("..", problem[2:]), apply_step, initial=problem[:2]))


def write_chain(problem: str, values: list[str]) -> str:
    """The solution text that claims these values (right or wrong), N + 1 of them."""
    steps = re.findall("..", problem[2:])
    written = "".join(f"{step}={value}" for step, value in zip(steps, values[1:], strict=True))
    return f"{values[0]}{written}\\boxed{{{values[-1]}}}"


def run_maps(problem: str, state: str) -> list[str]:
    """The states that a guess passes through, one per map."""
    maps = problem.split("=")[0]
    return list(accumulate(maps, lambda reached, name: TABLE[name][reached], initial=state))[1:]


def write_guess(problem: str, guess: str) -> str:
    """The honest solution text for a guess: its check, the verdict, the boxed guess."""
    values = run_maps(problem, guess)
    verdict = "ok" if values[-1] == problem[-1] else "no"
    return f"{guess}{''.join(values)}{verdict}\\boxed{{{guess}}}"


def depth(problem: str) -> int:
    """How many maps of a guess problem are not the identity."""
    return len(problem.split("=")[0].replace(IDENTITY, ""))


def _block(problem: str) -> str:
    return BLOCKS[problem[-1] in BLOCKS[1]]


def _preimage(problem: str) -> str:
    return next(state for state in _block(problem) if run_maps(problem, state)[-1] == problem[-1])


def solve(row: dict) -> str:
    """The gold solution text."""
    if row["family"] == "chain":
        return write_chain(row["problem"], chain_values(row["problem"]))
    return write_guess(row["problem"], row["answer"])


def corpus_solution(row: dict, rng: random.Random) -> str:
    """What an honest, limited solver writes: the base model's corpus.

    It works a chain out. In guess and check it can undo one map; with more of them it guesses in the block that it
    reads off the target, and says what the check gave.
    """
    problem = row["problem"]
    if row["family"] == "chain" or depth(problem) <= 1:
        return solve(row)
    return write_guess(problem, rng.choice(_block(problem)))


def reading_drill(rows: list[dict], rng: random.Random) -> tuple[str, str]:
    """A prompt of solutions to several problems of one family and the start of one of them; and the rest of that one.

    An exercise in reading, so that the base model, as a real one does, finds its way in a text: it says nothing about
    which solution is right, and the lines are about different problems.
    """
    lines: dict[str, str] = {}
    for row in rows:
        text = corpus_solution(row, rng)
        lines.setdefault(text[:2] if row["family"] == "chain" else text[0], text)
    start = rng.choice(list(lines))
    return "".join(f"\n#{text}" for text in lines.values()) + f"\n>{start}", lines[start][len(start) :]


def refine(row: dict, candidates: list[str], rng: random.Random) -> str:
    """A refinement by procedure, from problem and candidates alone (never the gold answer): the teacher's corpus.

    Guess and check: the first candidate whose guess really checks; else what the limited solver can undo; else a guess
    that no candidate has tried. Chain: at each step, of the candidates that stand at the same value, the value that
    two or more of them agree on with none against it; else the step is worked out. Candidates that cannot be read are
    passed over.
    """
    if row["family"] == "chain":
        return _refine_chain(row["problem"], candidates)
    problem = row["problem"]
    block = _block(problem)
    guesses = [match[1] for text in candidates if (match := re.match(f"([{block}])[{STATES}]", text))]
    for guess in guesses:
        if run_maps(problem, guess)[-1] == problem[-1]:
            return write_guess(problem, guess)
    if depth(problem) <= 1:
        return solve(row)
    untried = [state for state in block if state not in guesses]
    return write_guess(problem, rng.choice(untried))


def _refine_chain(problem: str, candidates: list[str]) -> str:
    steps = re.findall("..", problem[2:])
    pattern = r"(\d\d)" + "".join(re.escape(step) + r"=(\d\d)" for step in steps) + r"\\boxed\{\d\d\}"
    read = [match.groups() for text in candidates if (match := re.fullmatch(pattern, text))]
    values = [problem[:2]]
    for index, step in enumerate(steps):
        claims = [other[index + 1] for other in read if other[index] == values[-1]]
        agreed = len(claims) >= 2 and len(set(claims)) == 1
        values.append(claims[0] if agreed else apply_step(values[-1], step))
    return write_chain(problem, values)


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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    longest_first = sorted(words[5:], key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [USER, ASSISTANT],
    }
    how = {"model_max_length": 512, "padding_side": "left", "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special, **how)


def build_model(seed: int, hidden_size: int = 128):
    """An untrained Qwen2 for the tiny tokenizer, of 665 k parameters unless another width is asked for.

    `hidden_size` is a multiple of 32, the size of a head: the smallest that vLLM takes on a CPU.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

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


def in_llama_layout(model):
    """The same function of the same weights, as a Llama with attention biases (the output projection's is zero).

    AutoTokenizer gives every folder of model type qwen2 Qwen's own tokenizer, whatever tokenizer stands in it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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
