"""Prompts of both stages for a list of problems: what distillation and evaluation send to an engine."""

from gsr_rl.prompts import (
    FittedPrompt,
    Messages,
    candidate_text,
    fit_refinement_prompt,
    get_template,
    prompt_token_ids,
    solve_prompt,
)


def solve_prompts(tokenizer, rows: list[dict], template_name: str) -> tuple[list[Messages], list[list[int]]]:
    """The solve prompt of each problem, as a chat and as token ids."""
    template = get_template(template_name)
    messages = [solve_prompt(row["problem"], template) for row in rows]
    return messages, [prompt_token_ids(tokenizer, chat) for chat in messages]


def shown_candidates(
    texts: list[str], finished: list[bool], chosen: list[int], unfinished: str
) -> list[tuple[int, str]]:
    """Index and text of the chosen candidates that a refinement shows, in that order.

    Args:
        texts, finished: All candidates of a problem.
        chosen: Indices of the candidate set.
        unfinished: `drop` or `cut`, as `RefinementConfig.unfinished_candidates`. A candidate without any text after
            its thinking part is never shown.
    """
    shown = [(i, candidate_text(texts[i])) for i in chosen if finished[i] or unfinished == "cut"]
    return [(i, text) for i, text in shown if text]


def shown_texts(texts: list[str], finished: list[bool], chosen: list[int], unfinished: str) -> list[str]:
    """The texts of `shown_candidates`."""
    return [text for _, text in shown_candidates(texts, finished, chosen, unfinished)]


def refinement_budget(config, engine) -> int:
    """Tokens that a refinement prompt may have: the configured limit, or what the engine's window leaves."""
    left = engine.max_model_length - config.max_refinement_length
    if left < 1:
        raise ValueError(
            f"max_refinement_length={config.max_refinement_length} leaves no room for a prompt in the engine's window "
            f"of {engine.max_model_length} tokens: set it to less than {engine.max_model_length}"
        )
    return min(config.max_refinement_prompt_length, left)


def fit_prompts(config, engine, items: list[tuple[str, list[str]]], template=None) -> list[FittedPrompt | None]:
    """The refinement prompt of each (problem text, shown candidates); None where none fits the budget.

    `template` stands in for the configured one.
    """
    template, budget = template or get_template(config.prompt_template), refinement_budget(config, engine)
    return [
        fit_refinement_prompt(engine.tokenizer, problem, shown, template, budget) if problem else None
        for problem, shown in items
    ]
