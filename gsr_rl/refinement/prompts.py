"""Solve and refinement prompts, a candidate's text, and the token budget of a refinement prompt.

Pure: strings, a tokenizer and integers in, strings and token ids out. No engine and no trainer is imported.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

from rewards.extraction import final_part
from rewards.registry import imported

Messages = list[dict[str, str]]

# A candidate is not cut below this many tokens: a shorter tail says nothing, so the prompt is skipped instead.
MIN_CANDIDATE_TOKENS = 8

# Marks of thinking, and of harmony's channels.
THINKING_TAGS = ("<think>", "</think>", "[THINK]", "[/THINK]")
CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
LONGEST_OPENING = 64  # tokens at the end of a prompt that may open the thinking
_OPENS = re.compile(r"(?:<think>|\[THINK\]|<\|channel\|>\w+<\|message\|>)\s*\Z")
_BEGINS_OPEN = re.compile(r"\s*(?:<think>|\[THINK\]|(?:<\|start\|>\w*)?<\|channel\|>)")
_CHANNEL = re.compile(r"(?:<\|start\|>\w*)?<\|channel\|>(\w*)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>")
_UNFINISHED_HEADER = re.compile(r"(?:<\|start\|>\w*)?(?:<\|channel\|>[^<]*)?(?:<\|constrain\|>[^<]*)?\Z")


@dataclass(frozen=True)
class PromptTemplate:
    """The wording of the two prompts.

    Attributes:
        solve: Text of a solve prompt, with the field `{problem}`.
        refine_head: Start of a refinement prompt, with the field `{problem}`.
        candidate: One candidate's part, with the fields `{index}` (from 1) and `{text}`.
        refine_tail: Closing instruction of a refinement prompt. Never cut.
        select_head, select_tail: Start and closing instruction of a prompt that asks which candidate is right.
        cut_mark: Replaces the front of a candidate that was cut.
        version: Raised when the wording changes, because a model is tied to the wording it was trained on.
    """

    solve: str
    refine_head: str
    candidate: str
    refine_tail: str
    select_head: str
    select_tail: str
    cut_mark: str = "[...] "
    version: int = 1


TEMPLATES: dict[str, PromptTemplate] = {
    "gsr": PromptTemplate(
        solve="{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        refine_head=(
            "Here is a problem and several candidate solutions to it. Some of them, or all of them, may be wrong."
            "\n\n# Problem\n{problem}\n"
        ),
        candidate="\n# Candidate solution {index}\n{text}\n",
        refine_tail=(
            "\n# Task\nRead the candidate solutions critically: check their steps, compare their answers, keep what is"
            " right and correct what is wrong. Then write your own complete solution, which may differ from all of"
            " them, and put your final answer within \\boxed{{}}."
        ),
        select_head=(
            "Here is a problem and several candidate solutions to it. Some of them, or all of them, may be wrong."
            "\n\n# Problem\n{problem}\n"
        ),
        select_tail=(
            "\n# Task\nRead the candidate solutions critically and compare them. Say which one is most likely to be"
            " right: put its number, and nothing else, within \\boxed{{}}."
        ),
    ),
    # A few tokens only: for the tiny world's models, which read no English.
    "tiny": PromptTemplate(
        solve="{problem}",
        refine_head="refine {problem}",
        candidate="\n#{text}",
        refine_tail="\n>",
        select_head="refine {problem}",  # these models have not learned to choose: the prompt differs in its end only
        select_tail="\n#",
        cut_mark="",
    ),
}


SHOWS = {"solve": "{problem}", "refine_head": "{problem}", "candidate": "{text}", "refine_tail": "",
         "select_head": "{problem}", "select_tail": ""}  # fmt: skip


def get_template(name: str) -> PromptTemplate:
    """The template called `name`: one of `TEMPLATES`, or your own `PromptTemplate` as `module:name`.

    Raises:
        ValueError: There is none, or it lacks a field.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        template = imported(name) if ":" in name else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"prompt_template={name!r} cannot be loaded: {error}") from error
    if not isinstance(template, PromptTemplate):
        known = f"use one of {sorted(TEMPLATES)}, or module:name of a PromptTemplate of your own"
        raise ValueError(f"prompt_template={name!r} is not known: {known}")
    for part, field in SHOWS.items():
        try:
            shown = getattr(template, part).format(problem="{problem}", index=1, text="{text}")
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(
                f"prompt_template={name!r}: {part} cannot be filled in ({error}): write the braces of LaTeX twice"
            ) from None
        if field not in shown:
            raise ValueError(f"prompt_template={name!r}: {part} does not show {field}")
    return template


def solve_prompt(problem: str, template: PromptTemplate, history: Messages | None = None) -> Messages:
    """The chat that asks for a direct solution of `problem`, after the turns of `history`."""
    return [*(history or []), {"role": "user", "content": template.solve.format(problem=problem)}]


def refinement_prompt(
    problem: str, candidates: list[str], template: PromptTemplate, history: Messages | None = None
) -> Messages:
    """The chat that shows `candidates` (their texts, in this order) and asks for a better solution.

    With no candidates it is the same instruction over an empty list: the control `selfref_none`. The turns of
    `history` stand before it, as before the solve prompt.
    """
    shown = "".join(template.candidate.format(index=i, text=text) for i, text in enumerate(candidates, 1))
    head = template.refine_head.format(problem=problem)
    return [*(history or []), {"role": "user", "content": head + shown + template.refine_tail.format()}]


def selection_template(template: PromptTemplate) -> PromptTemplate:
    """The same wording for the question which candidate is right, to be used as a refinement prompt's."""
    return replace(template, refine_head=template.select_head, refine_tail=template.select_tail)


def selected_candidate(answer: str | None, number: int) -> int | None:
    """The index, from 0, of the candidate that an answer names, of `number` shown ones; None if it names none.

    Args:
        answer: What `rewards.extract_answer` found in the completion: `2`, `Candidate 2`, `#2`.
    """
    numbers = set(re.findall(r"\d+", answer or ""))
    if len(numbers) != 1:
        return None
    place = int(numbers.pop()) - 1
    return place if 0 <= place < number else None


def candidate_text(completion: str) -> str:
    """The part of a completion that a refinement sees and that is graded; "" if it never stopped thinking.

    A closing tag without an opening one counts (texts of older versions lack the one that the prompt held).
    """
    return (final_part(completion) or "").strip()


def opened_thinking(tokenizer, prompt_ids: list[int]) -> str:
    """The mark by which a prompt's end opens the thinking, as its chat template writes it; "" if it does not."""
    mark = _OPENS.search(tokenizer.decode(prompt_ids[-LONGEST_OPENING:], skip_special_tokens=False))
    return mark[0] if mark else ""


def completion_text(tokenizer, opening: str, completion_ids: list[int], text: str) -> str:
    """The text of a completion as every program grades, shows and stores it: thinking in `<think>` and `</think>`.

    Marks that are special tokens, which decoding skips, are read from the token ids.

    Args:
        opening: The mark by which the prompt opens the thinking (`opened_thinking`), which is put before the text.
        text: The completion decoded without special tokens.
    """
    marks = special_marks(tokenizer)
    if not marks.keys().isdisjoint(completion_ids) and not any(mark in text for mark in marks.values()):
        without = tokenizer.decode(completion_ids, skip_special_tokens=True)
        cut = without[len(text) :] if without.startswith(text) else ""  # behind a stop string
        text = _with_marks(tokenizer, completion_ids, marks).removesuffix(cut)
    return in_think_tags(text, opening)


def in_think_tags(text: str, opening: str = "") -> str:
    """A text with a model's own marks of thinking as `<think>` and `</think>`, after the `opening` that a prompt had.

    Works on streamed text: the result for a prefix of a text is a prefix of the result for the whole text.
    """
    if not _BEGINS_OPEN.match(text):
        text = opening + text
    if "<|channel|>" in text:
        text = _from_channels(text)
    return text.replace("[THINK]", "<think>").replace("[/THINK]", "</think>")


@lru_cache(maxsize=8)
def special_marks(tokenizer) -> dict[int, str]:
    """Marks of thinking that are special tokens, by id, with those of channels if the tokenizer has channels."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {index: token.content for index, token in added.items() if token.special}
    marks = THINKING_TAGS + (CHANNEL_MARKS if "<|channel|>" in special.values() else ())
    return {index: mark for index, mark in special.items() if mark in marks}


def _with_marks(tokenizer, ids: list[int], marks: dict[int, str]) -> str:
    """The tokens decoded without any special token but these."""
    parts = ((mark, list(run)) for mark, run in groupby(ids, key=marks.get))
    return "".join(mark * len(run) if mark else tokenizer.decode(run, skip_special_tokens=True) for mark, run in parts)


def _from_channels(text: str) -> str:
    """A text in harmony's channels: all but `final` are thinking."""
    start, *parts = _CHANNEL.split(_UNFINISHED_HEADER.sub("", text))
    texts = [start]
    for place in range(0, len(parts), 2):
        content, *ended = _CHANNEL_END.split(parts[place + 1], maxsplit=1)
        closed = "</think>" if ended or place + 2 < len(parts) else ""
        texts.append(content if parts[place] == "final" else f"<think>{content}{closed}")
    return "".join(texts)


def prompt_token_ids(tokenizer, messages: Messages, chat_template_kwargs: dict | None = None) -> list[int]:
    """Token ids of `messages` with the generation prompt, exactly as they are sent to the engine."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(chat_template_kwargs or {})
    )


@dataclass(frozen=True)
class Prompt:
    """A prompt within its budget: the chat, its token ids, and how many candidates were cut to fit."""

    messages: Messages
    token_ids: list[int]
    num_cut: int = 0


def fit_refinement_prompt(
    tokenizer,
    problem: str,
    candidates: list[str],
    template: PromptTemplate,
    max_tokens: int,
    chat_template_kwargs: dict | None = None,
    history: Messages | None = None,
) -> Prompt | None:
    """A refinement prompt of at most `max_tokens` tokens, or None if there is none.

    The rule: all candidates share one cap in tokens, the largest with which the prompt fits; a longer candidate
    loses its front (the end holds its conclusion) and gets the template's cut mark. The problem, the turns of
    `history` before it and the closing instruction are never cut. If the cap would fall under `MIN_CANDIDATE_TOKENS`,
    the prompt cannot fit.
    """

    def build(texts: list[str], num_cut: int) -> Prompt:
        messages = refinement_prompt(problem, texts, template, history)
        return Prompt(messages, prompt_token_ids(tokenizer, messages, chat_template_kwargs), num_cut)

    uncut = build(candidates, 0)
    if len(uncut.token_ids) <= max_tokens:
        return uncut
    if not candidates:
        return None
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in candidates]
    low, high, best = MIN_CANDIDATE_TOKENS, max(map(len, ids)), None
    while low <= high:  # the prompt grows with the cap, so bisect for the largest cap that fits
        cap = (low + high) // 2
        texts = [
            text if len(tokens) <= cap else template.cut_mark + tokenizer.decode(tokens[-cap:])
            for text, tokens in zip(candidates, ids, strict=True)
        ]
        fitted = build(texts, sum(len(tokens) > cap for tokens in ids))
        if len(fitted.token_ids) <= max_tokens:
            best, low = fitted, cap + 1
        else:
            high = cap - 1
    return best
