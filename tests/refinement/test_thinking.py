"""Thinking that the template opens or that special tokens mark: one reading in every program."""

import json
from types import SimpleNamespace

import pytest

import rewards
from gsr_rl.data.config import EvalProblemConfig
from gsr_rl.distillation.config import DistillConfig
from gsr_rl.distillation.distill import distill
from gsr_rl.engines.base import Request, Sampling
from gsr_rl.evaluation.config import EvalConfig
from gsr_rl.evaluation.evaluate import evaluate
from gsr_rl.refinement.prompts import (
    Prompt,
    candidate_text,
    completion_text,
    in_think_tags,
    opened_thinking,
    prompt_token_ids,
)
from gsr_rl.serving.backend import Backend
from gsr_rl.serving.solver import Solver
from gsr_rl.serving.steps import Ask
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.rollout import TwoStageRollout
from tests.support.thinking import KINDS, ThinkingEngine, thinking_tokenizer

CHAT = [{"role": "user", "content": "2+2, no <think>"}]
ROWS = [{"id": "p", "problem": "2+2", "answer": "4", "benchmark": "sums"}]
BOTH = [(kind, closed) for kind in KINDS for closed in (True, False)]


def of_kind(kind: str, closed: bool):
    """The tokenizer, and what the model says."""
    return thinking_tokenizer(kind), KINDS[kind][2 if closed else 3]


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_thinking_stands_between_tags_and_is_no_answer_where_it_never_ends(kind, closed):
    tokenizer, said = of_kind(kind, closed)
    prompt, ids = prompt_token_ids(tokenizer, CHAT), [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]
    opening = opened_thinking(tokenizer, prompt)
    text = completion_text(tokenizer, opening, ids, tokenizer.decode(ids, skip_special_tokens=True))
    assert text.startswith("<think>") and ("</think>" in text) is closed
    assert completion_text(tokenizer, opening, ids, text) == text
    assert candidate_text(text) == ("is \\boxed{4}" if closed else "")
    assert rewards.grade([text], ["4"]) == [float(closed)]


def test_a_prompt_opens_thinking_only_at_its_end():
    tokenizer = thinking_tokenizer("opening")
    assert opened_thinking(tokenizer, prompt_token_ids(tokenizer, CHAT)) == "<think>\n"
    closed = tokenizer("<|im_start|>assistant\n<think>\n\n</think>\n\n")["input_ids"]
    assert opened_thinking(tokenizer, closed) == ""
    ids = tokenizer("is \\boxed{4}")["input_ids"]
    assert completion_text(tokenizer, opened_thinking(tokenizer, closed), ids, "is \\boxed{4}") == "is \\boxed{4}"


def test_the_end_of_another_models_turn_is_no_mark():
    tokenizer = thinking_tokenizer("special")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})  # as in Phi
    ids = tokenizer("4<|end|>")["input_ids"]
    assert completion_text(tokenizer, "", ids, "4") == "4"


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_a_stream_is_read_as_the_text_that_it_adds_up_to(kind, closed):
    tokenizer, said = of_kind(kind, closed)
    opening = opened_thinking(tokenizer, prompt_token_ids(tokenizer, CHAT))
    pieces, text, spoken = [tokenizer.decode(index) for index in tokenizer(said)["input_ids"]], "", ""
    for piece in pieces:
        text += piece
        spoken += in_think_tags(text, opening)[len(spoken) :]
    assert spoken == in_think_tags(said, opening)


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_engines_give_it_so(kind, closed):
    engine = ThinkingEngine(kind, KINDS[kind][2 if closed else 3])
    engine.submit(Request(0, prompt_token_ids(engine.tokenizer, CHAT), Sampling(2, max_tokens=200)))
    texts = [completion.text for completion in engine.step()[0].completions]
    assert [candidate_text(text) for text in texts] == ["is \\boxed{4}" if closed else ""] * 2


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_a_rollout_shows_and_pays_no_thinking(tmp_path, kind, closed):
    tokenizer, said = of_kind(kind, closed)
    ids = [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]
    args = GSRConfig(str(tmp_path), num_generations=2, num_candidates=2, per_device_train_batch_size=4, use_cpu=True)
    trainer = SimpleNamespace(
        args=args,
        processing_class=tokenizer,
        context_length=9000,
        chat_template_kwargs={},
        eos_token_ids=[tokenizer.eos_token_id],
        state=SimpleNamespace(global_step=0),
        stream=lambda: None,
        weights_step=0,
        sample=lambda prompts, n, _: ([ids] * n * len(prompts), None),
    )
    (block,) = TwoStageRollout(trainer).run([{"problem_id": "p", "problem": "2+2", "answer": "4"}], args.plan)
    assert [rollout.correct for rollout in block.candidates] == [float(closed)] * 2
    assert len(block.sets[0].shown) == (2 if closed else 0)
    if closed:
        prompt = tokenizer.decode(block.refinements[0].prompt_ids)
        assert "is \\boxed{4}" in prompt and "\\boxed{7}" not in prompt


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_distillation_trains_on_no_open_thinking(tmp_path, kind, closed):
    (tmp_path / "model").mkdir()
    keys = {"num_candidates": 2, "num_generations": 2, "refinements_per_set": 1, "direct_source": "none"}
    config = DistillConfig(student_model=str(tmp_path / "model"), output_dir=str(tmp_path), **keys)
    engine = ThinkingEngine(kind, KINDS[kind][2 if closed else 3])
    rows, counts = distill(ROWS, EvalProblemConfig("x.jsonl"), config, open_engine=lambda *_, **__: engine)
    assert counts["funnel"]["candidates right"] == (2 if closed else 0)
    assert [row["candidates"] for row in rows] == [["is \\boxed{4}"] * 2] * closed
    assert all(row["completion"][0]["content"].startswith("<think>") for row in rows)


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_evaluation_counts_open_thinking_as_wrong(tmp_path, monkeypatch, kind, closed):
    (tmp_path / "model").mkdir()
    keys = {"num_candidates": 2, "num_generations": 3, "methods": ["selfref"]}
    config = EvalConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path), **keys)
    engine = ThinkingEngine(kind, KINDS[kind][2 if closed else 3])
    monkeypatch.setattr("gsr_rl.engines.open.open_engine", lambda *_, **__: engine)
    samples, _ = evaluate(ROWS, EvalProblemConfig("x.jsonl"), config)
    for grading in ("strict", "lenient"):
        assert {sample[f"correct_{grading}"] for sample in samples} == {float(closed)}
    assert {sample["skipped"] for sample in samples if sample["method"] == "selfref"} == {not closed}


@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_a_solver_answers_nothing_where_thinking_never_ends(tmp_path, kind, closed):
    (tmp_path / "model").mkdir()
    engine = ThinkingEngine(kind, KINDS[kind][2 if closed else 3])
    solution = Solver(str(tmp_path / "model"), engine, num_candidates=2).solve("2+2")
    assert solution.answer == ("4" if closed else None)
    assert solution.degraded == (None if closed else "no_usable_candidate")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("kind", "closed"), BOTH)
def test_gsr_serve_reads_it_so_streamed_or_not(kind, closed, streamed):
    tokenizer, said = of_kind(kind, closed)
    prompt, spoken = prompt_token_ids(tokenizer, CHAT), []
    text, asked = serve(tokenizer, prompt, said, spoken.append if streamed else None)
    assert candidate_text(text) == ("is \\boxed{4}" if closed else "")
    assert "".join(spoken) == (text if streamed else "")
    assert asked.get("skip_special_tokens", True) is (kind == "opening")


def serve(tokenizer, prompt, said, on_text):
    """The text that gsr-serve's backend makes of a server's answer, and the request's further keys."""
    import asyncio

    import httpx
    from openai import AsyncOpenAI

    bodies, choice = [], {"index": 0, "finish_reason": "STOP", "logprobs": None}

    def answer(request):
        bodies.append(json.loads(request.content))
        ids = tokenizer(said)["input_ids"]
        if bodies[0].get("stream"):
            pieces = [tokenizer.decode(index, skip_special_tokens=False) for index in ids]
            chunks = [{"choices": [choice | {"text": piece, "finish_reason": None}]} for piece in pieces]
            chunks += [{"choices": [choice | {"text": "", "token_ids": ids}]}]
            content = "".join(f"data: {json.dumps({'id': 'x'} | chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})
        text = tokenizer.decode(ids, skip_special_tokens=True)  # a server that knows no skip_special_tokens
        return httpx.Response(200, json={"id": "x", "choices": [choice | {"text": text, "token_ids": ids}]})

    async def scenario():
        backend = Backend("http://told/v1", model="m", context_length=4096, tokenizer=tokenizer)
        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        backend._client = AsyncOpenAI(api_key="none", base_url="http://told/v1", http_client=http, max_retries=0)
        ask = Ask("candidate", 0, [Prompt(CHAT, prompt)], Sampling(1, max_tokens=200))
        speak = None if on_text is None else lambda _, text: on_text(text)
        (completion,) = await backend.sample(ask, float("inf"), speak)
        assert completion.finished
        return completion.text

    return asyncio.run(scenario()), bodies[0]
