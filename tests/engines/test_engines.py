"""The seam to engines: order, limits, ends, and two engines one after the other in one process."""

import subprocess
import sys

import pytest

from gsr_rl.engines.base import Request, Sampling
from gsr_rl.engines.open import open_engine
from tests.support.fixed_engine import FixedEngine

PROMPTS = [[5, 6, 7], [8] * 30, [9, 10]]


def check_engine(engine):
    completions = engine.generate(PROMPTS, Sampling(n=8, temperature=1.0, max_tokens=40))
    assert [len(group) for group in completions] == [8, 8, 8]
    end = engine.tokenizer.eos_token_id
    flat = [completion for group in completions for completion in group]
    for completion in flat:
        assert completion.finished == (completion.token_ids[-1] == end)
        assert completion.finished or len(completion.token_ids) == 40
        assert end not in completion.token_ids[:-1]
        assert completion.text == engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert len({tuple(completion.token_ids) for completion in flat}) > 12, "samples differ"
    greedy = engine.generate(PROMPTS, Sampling(n=2, temperature=0.0, max_tokens=5))
    assert [[a.token_ids == b.token_ids for a, b in [group]] for group in greedy] == [[True]] * 3
    assert engine.generate(PROMPTS[::-1], Sampling(n=1, temperature=0.0, max_tokens=5))[0][0] == greedy[2][0]
    with pytest.raises(ValueError, match=r"prompt 1 has 30 tokens, with max_tokens=500 .* context of 512 tokens"):
        engine.generate(PROMPTS, Sampling(max_tokens=500))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine.generate([[]], Sampling())
    assert engine.generate([], Sampling()) == []
    return [completion.token_ids for completion in flat]


def test_transformers_engine(tiny_model):
    with open_engine("transformers", tiny_model, seed=1) as engine:
        check_engine(engine)


@pytest.mark.vllm
def test_two_vllm_engines_one_after_the_other_and_the_seed_counts(tiny_model):
    streams = []
    for seed in (1, 2, 1):
        with open_engine("vllm", tiny_model, seed=seed, dtype="float32") as engine:
            streams.append(check_engine(engine))
    assert streams[0] != streams[1]
    assert streams[0] == streams[2]


@pytest.mark.vllm
def test_engines_agree_on_the_greedy_completion(tiny_model):
    texts = []
    for kind in ("vllm", "transformers"):
        with open_engine(kind, tiny_model, dtype="float32") as engine:
            texts.append(engine.generate(PROMPTS, Sampling(temperature=0.0, max_tokens=12)))
    assert texts[0] == texts[1]


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(ValueError, match="engine='sglang' is not known: use one of"):
        open_engine("sglang", "model")


def test_importing_the_seam_imports_no_engine():
    code = "import sys, gsr_rl.engines.base; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_stream_reads_requests_only_as_there_is_room_and_gives_each_back_once():
    read = 0

    def requests():
        nonlocal read
        for index in range(50):
            read += 1
            yield Request(index, tokenizer_ids("38+1"), Sampling(n=1 + index % 7))

    engine, seen = FixedEngine(), []
    engine.capacity = 12
    for result in engine.stream(requests()):
        seen.append(result.key)
        assert len(result.completions) == 1 + result.key % 7
        assert engine.load < 12 + 7 and read - len(seen) <= 12 + 1
    assert sorted(seen) == list(range(50)) and engine.counts["requests"] == 50


def tokenizer_ids(problem: str) -> list[int]:
    return FixedEngine().tokenizer.encode(problem)


def test_one_transformers_stream_holds_several_ways_to_sample(tiny_model):
    ways = [Sampling(n=2, max_tokens=4), Sampling(n=1, temperature=0.0, max_tokens=7), Sampling(n=3, max_tokens=2)]
    requests = [Request(index, PROMPTS[index % 3], ways[index % 3]) for index in range(9)]
    with open_engine("transformers", tiny_model) as engine:
        found = {result.key: result.completions for result in engine.stream(requests)}
    for request in requests:
        assert len(found[request.key]) == request.sampling.n
        assert all(len(one.token_ids) <= request.sampling.max_tokens for one in found[request.key])
    assert found[1] == found[4] == found[7], "greedy"
