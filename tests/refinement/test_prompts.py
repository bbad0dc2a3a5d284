import hashlib
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsr_rl.data.tiny_world import build_tokenizer
from gsr_rl.refinement.prompts import (
    MIN_CANDIDATE_TOKENS,
    TEMPLATES,
    candidate_text,
    fit_refinement_prompt,
    get_template,
    prompt_token_ids,
    refinement_prompt,
    solve_prompt,
)

TINY = get_template("tiny")
TOKENIZER = build_tokenizer()


@pytest.mark.parametrize(("name", "version", "digest"), [("gsr", 1, "8c5f92105845"), ("tiny", 1, "6dca0ed46598")])
def test_a_templates_version_belongs_to_its_wording(name, version, digest):
    """Who changes the wording raises the version, and puts the new digest here."""
    one = TEMPLATES[name]
    wording = "\0".join([one.solve, one.refine_head, one.candidate, one.refine_tail, one.cut_mark])
    assert (one.version, hashlib.sha256(wording.encode()).hexdigest()[:12]) == (version, digest)


def test_thinking_is_stripped_from_a_candidate():
    assert candidate_text("<think>maybe \\boxed{1}</think>\nIt is \\boxed{2}.") == "It is \\boxed{2}."
    assert candidate_text("no opening tag</think> answer") == "answer"
    assert candidate_text("<think>never ends \\boxed{1}") == ""
    assert candidate_text(" plain ") == "plain"


def test_the_gsr_prompt_shows_problem_candidates_and_instruction_in_this_order():
    text = refinement_prompt("P{1}", ["first {x}", "second"], TEMPLATES["gsr"])[0]["content"]
    parts = ["P{1}", "# Candidate solution 1\nfirst {x}", "# Candidate solution 2\nsecond", "\\boxed{}."]
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and text.endswith("\\boxed{}.")
    assert solve_prompt("P", TEMPLATES["gsr"])[0]["content"].endswith("\\boxed{}.")


def test_an_unknown_template_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"prompt_template='x' is not known: use one of \['gsr', 'tiny'\]"):
        get_template("x")


def test_a_template_of_one_s_own_is_a_file_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    text = "from dataclasses import replace\nfrom gsr_rl.refinement.prompts import TEMPLATES\n"
    text += "short = replace(TEMPLATES['gsr'], solve='{problem} Box it: \\\\boxed{{}}')\n"
    text += "latex = replace(short, solve='{problem} \\\\boxed{}')\nhidden = replace(short, refine_head='Read.')\n"
    Path("wording_of_a_test.py").write_text(text)
    assert solve_prompt("1+1", get_template("wording_of_a_test:short"))[0]["content"] == "1+1 Box it: \\boxed{}"
    for name, message in (
        ("latex", "solve cannot be filled in .*: write the braces of LaTeX twice"),
        ("hidden", r"refine_head does not show \{problem\}"),
        ("replace", "is not known: use one of"),
        ("missing", "cannot be loaded: module 'wording_of_a_test' has no attribute"),
    ):
        with pytest.raises(ValueError, match=message):
            get_template(f"wording_of_a_test:{name}")


candidates = st.lists(
    st.lists(st.sampled_from(["47+5=", "52", "*3=", "56", "\\boxed{", "}"]), min_size=1, max_size=40).map("".join),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(candidates, st.integers(20, 140))
def test_a_fitted_prompt_never_exceeds_its_budget_and_keeps_the_instruction(texts, budget):
    fitted = fit_refinement_prompt(TOKENIZER, "47+5*3", texts, TINY, budget)
    whole = prompt_token_ids(TOKENIZER, refinement_prompt("47+5*3", texts, TINY))
    if fitted is None:
        overhead = len(prompt_token_ids(TOKENIZER, refinement_prompt("47+5*3", [""] * len(texts), TINY)))
        shortest = sum(min(len(TOKENIZER(text)["input_ids"]), MIN_CANDIDATE_TOKENS) for text in texts)
        assert overhead + shortest > budget  # not even the shortest tails would fit
        return
    assert len(fitted.token_ids) <= budget
    assert fitted.messages[0]["content"].startswith("refine 47+5*3")
    assert fitted.messages[0]["content"].endswith("\n>")
    assert (fitted.num_cut == 0) == (len(whole) <= budget)


def test_a_cut_candidate_keeps_its_end():
    text = "47+5=52*3=56-8=48*7=36+2=38*9=42\\boxed{42}"
    room = len(prompt_token_ids(TOKENIZER, refinement_prompt("1", [""], TINY))) + MIN_CANDIDATE_TOKENS
    fitted = fit_refinement_prompt(TOKENIZER, "1", [text], TINY, room)
    assert fitted.num_cut == 1
    assert fitted.messages[0]["content"].endswith("*9=42\\boxed{42}\n>")


def test_a_prompt_that_cannot_fit_is_none():
    assert fit_refinement_prompt(TOKENIZER, "47+5*3", ["47+5=52" * 20] * 4, TINY, 16) is None
    assert fit_refinement_prompt(TOKENIZER, "47+5*3", [], TINY, 2) is None
