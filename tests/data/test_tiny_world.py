"""The tiny world: its rules, its splits, its tokenizer and its shipped models."""

import importlib.util
import json
import random
import subprocess
import sys
from itertools import combinations

import pytest

from gsr_rl.data import tiny_world as tw
from gsr_rl.data.tiny_world import build_tokenizer, vocabulary
from tests.support.paths import ROOT

RECIPE = ROOT / "recipes" / "tiny"
DISJOINT = ("base", "teacher", "sft", "grpo", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def refine_prompt(problem, candidates):
    return "refine " + problem + "".join(f"\n#{text}" for text in candidates) + "\n>"


def test_the_module_starts_without_torch():
    heavy = "{'torch', 'transformers', 'vllm', 'trl'}"
    code = f"import sys, gsr_rl.data.tiny_world; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_chain_is_worked_out_from_left_to_right_modulo_100():
    row = tw.make_row("47+5*3-8*7", "test")
    assert row["answer"] == "36" and row["family"] == "chain"
    assert tw.solve(row) == r"47+5=52*3=56-8=48*7=36\boxed{36}"
    assert tw.chain_values("10-9-9") == ["10", "01", "92"]


def test_the_maps_are_different_permutations_of_each_block():
    assert len({tuple(tw.TABLE[name].values()) for name in tw.MAPS + tw.IDENTITY}) == len(tw.MAPS) + 1
    for name in tw.MAPS:
        for block in tw.BLOCKS:
            assert sorted(tw.TABLE[name][state] for state in block) == sorted(block)


def test_a_guess_problem_has_one_answer_and_its_gold_solution_checks():
    for row in tw.generate("guess", "test", 300, seed=0):
        reach = [state for state in tw.STATES if tw.run_maps(row["problem"], state)[-1] == row["problem"][-1]]
        assert reach == [row["answer"]]
        assert tw.solve(row)[5:] == rf"ok\boxed{{{row['answer']}}}"


def test_the_maps_are_a_fixed_part_of_the_format():
    """Shipped models know this table: a change of it must be meant."""
    assert [tw.TABLE["a"][state] for state in tw.STATES] == list("GBFDAJKHML")
    assert [tw.TABLE["r"][state] for state in tw.STATES] == list("BGFADJKMLH")


def test_rows_are_reproducible_unique_and_of_their_split():
    for family in ("chain", "guess", "mix"):
        rows = tw.generate(family, "validation", 400, seed=3)
        assert rows == tw.generate(family, "validation", 400, seed=3) != tw.generate(family, "validation", 400, seed=4)
        assert len({row["problem"] for row in rows}) == len({row["id"] for row in rows}) == len(rows) == 400
        low, high = tw.SPLITS["validation"]
        assert all(low <= tw.split_bucket(row["problem"]) < high and row["split"] == "validation" for row in rows)
    mix = tw.generate("mix", "validation", 400, seed=3, chain_share=0.25)
    assert sum(row["family"] == "chain" for row in mix) == 100


def test_difficulty_reaches_the_problems_and_mistakes_are_named():
    assert all(len(row["problem"]) == 2 + 2 * 5 for row in tw.generate("chain", "train", 20, 0, steps=5))
    assert all(len(row["problem"]) == 6 + 2 for row in tw.generate("guess", "train", 20, 0, slots=6))
    assert all(tw.depth(row["problem"]) == 4 for row in tw.generate("guess", "train", 20, 0, identity=0.0))
    with pytest.raises(ValueError, match="split='dev'"):
        tw.generate("mix", "dev", 5, 0)
    with pytest.raises(ValueError, match="tiny/sum: there are tiny/chain"):
        tw.generate("sum", "test", 5, 0)
    with pytest.raises(ValueError, match=r"\['length'\]"):
        tw.generate("mix", "test", 5, 0, length=3)
    with pytest.raises(ValueError, match="raise steps or slots"):
        tw.generate("guess", "test", 1000, 0, slots=1)
    with pytest.raises(ValueError, match="not a problem"):
        tw.family_of("47/5")


def test_splits_share_no_problem_even_up_to_renaming():
    seen = {
        split: {tw.canonical(row["problem"]) for row in tw.generate("mix", split, 3000, seed=0)} for split in DISJOINT
    }
    for one, other in combinations(DISJOINT, 2):
        assert not seen[one] & seen[other]
    assert sorted(tw.SPLITS[split] for split in DISJOINT)[0][0] == 0
    assert sum(high - low for low, high in (tw.SPLITS[split] for split in DISJOINT)) == 100


@pytest.mark.parametrize(
    "same", [("aicf=D", "acfi=D"), ("47+5-8*3", "47-8+5*3"), ("11*3*7-1+2*9", "11*7*3+2-1*9"), ("iiii=A", "ii=A")]
)
def test_problems_that_differ_only_in_their_text_land_in_one_split(same):
    assert tw.canonical(same[0]) == tw.canonical(same[1])
    assert tw.split_bucket(same[0]) == tw.split_bucket(same[1])


def test_problems_that_differ_in_substance_stay_apart():
    for one, other in [("ac=D", "ca=D"), ("ac=D", "ac=F"), ("47+5*3", "47*3+5"), ("47+5+5", "47+5")]:
        assert tw.canonical(one) != tw.canonical(other)


def test_more_than_4000_test_problems_of_each_family_exist():
    for family in tw.FAMILIES:
        assert len(tw.generate(family, "test", 4500, seed=0)) == 4500


def test_the_corpus_is_honest_and_limited():
    rng, right = random.Random(0), 0
    rows = [row for row in tw.generate("guess", "base", 2000, seed=0) if tw.depth(row["problem"]) >= 2]
    for row in rows:
        text = tw.corpus_solution(row, rng)
        assert text == tw.write_guess(row["problem"], tw.boxed(text))
        assert ("ok" in text) == (tw.boxed(text) == row["answer"])
        right += tw.boxed(text) == row["answer"]
    assert 0.15 < right / len(rows) < 0.25
    chain = tw.generate("chain", "base", 1, seed=0)[0]
    assert tw.corpus_solution(chain, rng) == tw.solve(chain)


def test_a_reading_drill_asks_for_the_rest_of_one_of_its_lines():
    rng = random.Random(0)
    for family in tw.FAMILIES:
        rows = tw.generate(family, "base", 4, seed=0)
        for _ in range(20):
            prompt, rest = tw.reading_drill(rows, rng)
            lines, start = prompt.split("\n>")
            lines = lines.split("\n#")[1:]
            assert [line for line in lines if line.startswith(start)] == [start + rest]


def test_refinement_of_guesses_takes_the_one_that_checks_whatever_its_verdict():
    row = tw.generate("guess", "test", 1, seed=0, identity=0.0)[0]
    block = tw.BLOCKS[row["answer"] in tw.BLOCKS[1]]
    wrong = [state for state in block if state != row["answer"]]
    texts = [tw.write_guess(row["problem"], state) for state in wrong]
    lie = tw.solve(row).replace("ok", "no")
    assert tw.refine(row, [texts[0], lie, texts[1]], random.Random(0)) == tw.solve(row)
    assert tw.refine(row, texts, random.Random(0)) == tw.solve(row), "four different failures leave one guess"
    tried = {tw.boxed(tw.refine(row, [*texts[:2], "}=no"], random.Random(seed))) for seed in range(40)}
    assert tried == {row["answer"], *wrong[2:]}


def test_refinement_of_chains_keeps_agreed_steps_and_works_out_the_others():
    row = tw.make_row("47+5*3-8*7", "test")
    early = r"47+5=62*3=86-8=78*7=46\boxed{46}"
    late = r"47+5=52*3=56-8=48*7=38\boxed{38}"
    rng = random.Random(0)
    assert tw.refine(row, [early, late], rng) == tw.solve(row), "all wrong, and right together"
    assert tw.refine(row, [early, early, late], rng) == tw.solve(row), "62 is disputed, so worked out"
    assert tw.refine(row, [late, late, "47+5="], rng) == late, "unanimous: believed"
    assert tw.refine(row, [], rng) == tw.solve(row)


def test_boxed_reads_the_last_box():
    assert tw.boxed(r"47\boxed{1}\boxed{36}") == "36"
    assert tw.boxed("47+5=52") is None


def test_every_text_comes_back_exactly_from_its_tokens(tokenizer):
    rng = random.Random(0)
    for row in tw.generate("mix", "validation", 200, seed=1):
        candidates = [tw.corpus_solution(row, rng) for _ in range(4)]
        texts = [
            row["problem"],
            tw.solve(row),
            refine_prompt(row["problem"], candidates),
            refine_prompt(row["problem"], []),
        ]
        for text in texts:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids


def test_the_tokenizer_carries_no_knights_and_knaves(tokenizer):
    text = "Zoe says that Max is a knave. Max says that Zoe is a knight. Who is who?"
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id in ids and tokenizer.decode(ids) != text


def test_tokens_are_few(tokenizer):
    assert len(tokenizer) == len(vocabulary()) < 200
    assert len(tokenizer.encode("47+5*3-8*7")) == 5
    assert len(tokenizer.encode(r"47+5=52*3=56-8=48*7=36\boxed{36}")) == 1 + 2 * 4 + 3
    assert len(tokenizer.encode(r"GABBDok\boxed{G}")) == 5 + 1 + 2
    assert len(tokenizer.encode("refine 47+5\n#47\n#47\n>")) == 3 + 4 + 1


def test_the_chat_template_ends_a_prompt_with_the_assistant_and_a_completion_with_eos(tokenizer):
    user, assistant = (
        {"role": "user", "content": "refine 47+5\n>"},
        {"role": "assistant", "content": r"47+5=52\boxed{52}"},
    )
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == "<user>refine 47+5\n><assistant>"
    whole = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    assert whole == prompt + assistant["content"] + "<eos>"
    ids = tokenizer.encode(whole)
    assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == user["content"] + assistant["content"]


def test_the_tokenizer_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = refine_prompt("47+5*3", [r"47+5=52*3=56\boxed{56}"] * 4)
    assert loaded.encode(text) == tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<pad>", "<eos>", "left")


@pytest.mark.parametrize("name", ["base", "teacher"])
def test_the_shipped_models_fit_the_tokenizer_and_the_engine(name, tokenizer):
    from transformers import AutoConfig, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(RECIPE / "models" / name)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    text = refine_prompt("47+5*3", [r"47+5=52*3=56\boxed{56}", r"GABBDok\boxed{G}"])
    assert loaded.encode(text) == tokenizer.encode(text), "AutoTokenizer swaps the tokenizer of a Qwen2 folder"
    assert loaded.decode(loaded.encode(text)) == text
    config = AutoConfig.from_pretrained(RECIPE / "models" / name)
    assert config.vocab_size == len(tokenizer) and config.eos_token_id == tokenizer.eos_token_id
    assert config.hidden_size // config.num_attention_heads >= 32, "vLLM's smallest head on a CPU"
    assert config.max_position_embeddings >= 512


def test_the_shipped_models_are_small_and_their_figures_belong_to_this_difficulty():
    assert sum(path.stat().st_size for path in (RECIPE / "models").rglob("*.*")) < 6e6
    report = json.loads((RECIPE / "models" / "metrics.json").read_text())
    assert report["difficulty"] == tw.DIFFICULTY
    figures = report["accuracy"]["mix"]
    assert 0.2 < figures["base_pass@1"] < figures["base_maj@4"] < 0.6 < figures["teacher_refines"]
    assert report["accuracy"]["chain"]["base_refines"] < 0.1, "the base knows no refinement"


def assert_within_noise(measured: dict, written: dict, num_problems: int, margin: float) -> None:
    """Each figure on `num_problems` is one of the shipped report within four deviations of sampling and a `margin`."""
    for family, figures in written.items():
        for name, value in figures.items():
            parts = 1 if family == "mix" else 2
            noise = (value * (1 - value) * parts * (1 / num_problems + 1 / 2000)) ** 0.5
            assert abs(measured[family][name] - value) < 4 * noise + margin, (family, name)


@pytest.mark.slow
def test_the_shipped_models_reproduce_their_figures_within_noise():
    from transformers import AutoModelForCausalLM

    spec = importlib.util.spec_from_file_location("make_models", RECIPE / "make_models.py")
    make_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_models)
    models = {name: AutoModelForCausalLM.from_pretrained(RECIPE / "models" / name) for name in ("base", "teacher")}
    measured = make_models.measure(models, num_problems=1000, seed=12345)
    written = json.loads((RECIPE / "models" / "metrics.json").read_text())["accuracy"]
    assert_within_noise(measured, written, 1000, margin=0.01)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_command_makes_models_like_the_shipped_ones(tmp_path):
    """Other processors round otherwise, and the base is stopped by a sampled figure: a wider margin."""
    command = [sys.executable, str(RECIPE / "make_models.py"), "--output_dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=RECIPE.parents[1])
    made, shipped = (json.loads((at / "metrics.json").read_text()) for at in (tmp_path, RECIPE / "models"))
    assert {key: made[key] for key in ("setting", "difficulty", "parameters")} == {
        key: shipped[key] for key in ("setting", "difficulty", "parameters")
    }
    assert_within_noise(made["accuracy"], shipped["accuracy"], 2000, margin=0.02)
