"""The two-stage rollout with an engine whose completions are written by hand."""

import math
from types import SimpleNamespace

import pytest

from gsr_rl.configs import GSRConfig
from gsr_rl.rollout import TwoStageRollout
from gsr_rl.rollout_metrics import rollout_rows, rollout_sums
from gsr_rl.tiny_model import build_tokenizer

TOKENIZER = build_tokenizer()
RIGHT, WRONG = "47+5=52\\boxed{52}", "47+5=53\\boxed{53}"


class Trainer:
    """What `TwoStageRollout` asks of a trainer. `answer(prompt, place, stage)` gives a completion's text."""

    def __init__(self, tmp_path, answer, rows=2, context_length=512, **overrides):
        values = dict(
            output_dir=str(tmp_path),
            per_device_train_batch_size=16,
            num_generations=4,
            num_candidates=2,
            prompt_template="tiny",
            max_completion_length=16,
            max_refinement_prompt_length=128,
            use_cpu=True,
            bf16=False,
        )
        self.args = GSRConfig(**(values | overrides))
        self.answer = answer
        self.model = SimpleNamespace(training=True)
        self.state = SimpleNamespace(global_step=0)
        self.processing_class = TOKENIZER
        self.chat_template_kwargs = {}
        self.context_length = context_length
        self.eos_token_ids = [TOKENIZER.eos_token_id]
        self.num_generations_eval = 4
        problems = [{"problem_id": f"p{i}", "problem": "47+5", "answer": "52"} for i in range(rows)]
        self.rollout_rows = [row for row in problems for _ in range(self.args.block_size)]
        self.prompts: list[list[int]] = []

    def sample(self, prompt_ids, n, max_tokens):
        self.prompts += prompt_ids
        completions = []
        for ids in prompt_ids:
            prompt = TOKENIZER.decode(ids)
            stage = "refinement" if "refine" in prompt else "candidate"
            for place in range(n):
                text = self.answer(prompt, place, stage)
                ids = TOKENIZER(text.removesuffix("..."))["input_ids"]
                completions.append(ids if text.endswith("...") else [*ids, TOKENIZER.eos_token_id])
        return completions, [[-0.5] * len(ids) for ids in completions]

    def roll(self):
        rollout = TwoStageRollout()
        return rollout, rollout([None] * len(self.rollout_rows), self)


def half_right(prompt, place, stage):
    return RIGHT if place < 2 or stage == "refinement" else WRONG


def test_a_block_is_g_candidates_then_g_refinements_of_one_prompt(tmp_path):
    rollout, output = Trainer(tmp_path, half_right).roll()
    assert output["stage"] == (["candidate"] * 4 + ["refinement"] * 4) * 2
    for block in range(2):
        rows = output["prompt_ids"][8 * block : 8 * block + 8]
        assert rows[0] == rows[3] != rows[4] == rows[7]
    assert [c.correct for c in rollout.blocks[0].candidates] == [1.0, 1.0, 0.0, 0.0]
    assert all(len(output["logprobs"][i]) == len(output["completion_ids"][i]) for i in range(16))


def test_a_refinement_prompt_shows_exactly_its_chosen_candidates_in_order(tmp_path):
    rollout, output = Trainer(tmp_path, lambda p, place, s: f"47+5=5{place}\\boxed{{5{place}}}").roll()
    for number, block in enumerate(rollout.blocks):
        shown = "".join(f"\n#{block.candidates[i].text}" for i in block.sets[0].shown)
        assert TOKENIZER.decode(output["prompt_ids"][8 * number + 4]).endswith(f"47+5{shown}\n><assistant>")


def test_several_sets_get_their_share_of_the_refinements(tmp_path):
    rollout, output = Trainer(tmp_path, half_right, num_candidate_sets=2).roll()
    block = rollout.blocks[0]
    assert [len(chosen.refinements) for chosen in block.sets] == [2, 2]
    assert sorted(block.sets[0].shown + block.sets[1].shown) == [0, 1, 2, 3]
    assert output["prompt_ids"][4] == output["prompt_ids"][5] and output["prompt_ids"][6] == output["prompt_ids"][7]


def test_a_stage_that_is_off_has_no_rows(tmp_path):
    _, output = Trainer(tmp_path, half_right, candidate_weight=0.0).roll()
    assert output["stage"] == ["refinement"] * 8
    trainer = Trainer(tmp_path, half_right, refinement_weight=0.0)
    _, output = trainer.roll()
    assert output["stage"] == ["candidate"] * 8
    assert not any("refine" in TOKENIZER.decode(ids) for ids in trainer.prompts)


def test_unfinished_candidates_are_dropped_or_shown_by_rule(tmp_path):
    def answer(prompt, place, stage):
        return "47+5=52..." if place == 0 and stage == "candidate" else RIGHT

    for seed in range(4):
        rollout, _ = Trainer(tmp_path, answer, seed=seed).roll()
        assert all(0 not in block.sets[0].shown for block in rollout.blocks)
    shown = [Trainer(tmp_path, answer, seed=s, unfinished_candidates="cut").roll()[0].blocks for s in range(8)]
    assert any(0 in block.sets[0].shown for blocks in shown for block in blocks)


def test_without_a_usable_candidate_the_refinement_rows_stay_but_count_for_nothing(tmp_path):
    rollout, output = Trainer(tmp_path, lambda p, place, stage: "47+5=52...").roll()
    assert len(output["completion_ids"]) == 16
    refinements = rollout.blocks[0].refinements
    assert [len(r.completion_ids) for r in refinements] == [1] * 4
    assert not any(r.usable or r.scored for r in refinements)
    sums = rollout_sums(rollout.blocks, 2)
    assert sums["refinement/accuracy"] == [0.0, 0.0]
    assert sums["refinement/skipped_prompts"] == [2.0, 2.0]
    assert sums["gap/refinement_gap"] == [0.0, 0.0]


def test_a_refinement_prompt_over_the_engines_window_is_cut_and_counted(tmp_path):
    def answer(prompt, place, stage):  # 10 tokens, so that a prompt has 8 + 2 x 10
        return "47+5=52+1=53-1=52\\boxed{52}"

    for window, cut, fits in ((44, 0, True), (42, 2, True), (38, 0, False)):
        trainer = Trainer(tmp_path, answer, context_length=window)
        rollout, output = trainer.roll()
        assert all(len(ids) + trainer.args.max_refinement_length <= window for ids in output["prompt_ids"])
        sets = [chosen for block in rollout.blocks for chosen in block.sets]
        assert [(chosen.num_cut, chosen.fits) for chosen in sets] == [(cut, fits)] * 2
        assert rollout_sums(rollout.blocks, 2)["refinement/cut_prompts"] == [2.0 * (cut > 0), 2.0]


def test_a_problem_over_the_window_keeps_its_rows_and_every_rank_its_calls(tmp_path):
    trainer = Trainer(tmp_path, half_right, context_length=18)
    rollout, output = trainer.roll()
    assert len(output["completion_ids"]) == 16
    assert not any(candidate.usable for block in rollout.blocks for candidate in block.candidates)
    assert len(trainer.prompts) == 4  # two solve prompts and two refinement prompts, as ever


def test_metrics_worked_by_hand(tmp_path):
    # Candidates R R W W; refinements all right. Shown: any two, so the vote is right with 1, 1/2 or 0.
    rollout, _ = Trainer(tmp_path, half_right).roll()
    sums = rollout_sums(rollout.blocks, 2)

    def mean(name):
        return sums[name][0] / sums[name][1]

    assert mean("candidate/accuracy") == 0.5
    assert mean("refinement/accuracy") == 1.0
    assert mean("gap/pass@2") == pytest.approx(1 - 1 / 6)  # C(2, 2) / C(4, 2) of the pairs are both wrong
    votes = [sum(b.candidates[i].correct for i in b.sets[0].shown) / 2 for b in rollout.blocks]
    assert mean("gap/maj@2") == pytest.approx(sum(votes) / 2)
    assert mean("gap/refinement_gap") == pytest.approx(1 - sum(votes) / 2)
    if sum(votes) < 2:
        assert mean("gap/fix_rate") == 1.0
    assert sums["gap/break_rate"][0] == 0.0


def test_the_rollout_table_says_none_where_there_is_no_reward(tmp_path):
    rollout, _ = Trainer(tmp_path, half_right).roll()
    rows = rollout_rows(rollout.blocks, 3, TOKENIZER)
    assert len(rows) == 16 and {row["step"] for row in rows} == {3}
    assert all(row["reward"] is None for row in rows)  # rewards are the trainer's business
    assert math.isnan(rollout.blocks[0].candidates[0].reward)
    assert rows[4]["prompt"].startswith("<user>refine 47+5")
