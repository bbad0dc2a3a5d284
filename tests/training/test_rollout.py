"""The two-stage rollout with an engine whose completions are written by hand, in two waves and streamed."""

import dataclasses
import io
import math
import random
from types import SimpleNamespace

import pytest

from gsr_rl.data.tiny_world import build_tokenizer
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.rollout import TwoStageRollout
from gsr_rl.training.rollout_log import print_examples, rollout_rows, rollout_sums, warnings_of

TOKENIZER = build_tokenizer()
RIGHT, WRONG = "47+5=52\\boxed{52}", "47+5=53\\boxed{53}"


class Stream:
    """An engine that takes requests one by one and finishes them in random order, one a step."""

    def __init__(self, trainer, seed):
        self.trainer, self.rng, self.open, self.order = trainer, random.Random(seed), {}, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not self.open

    def add(self, prompt_ids, n, max_tokens):
        name = str(len(self.trainer.prompts))
        self.open[name] = self.trainer.sample([prompt_ids], n, max_tokens)
        return name

    def wake(self):
        pass

    def step(self):
        name = self.rng.choice(sorted(self.open))
        self.order.append(name)
        return [(name, *self.open.pop(name))]


class Trainer:
    """What `TwoStageRollout` asks of a trainer. `answer(prompt, place, stage)` gives a completion's text."""

    def __init__(self, tmp_path, answer, rows=2, context_length=512, streamed=None, **overrides):
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
        self.streamed = streamed
        self.state = SimpleNamespace(global_step=0)
        self.processing_class = TOKENIZER
        self.chat_template_kwargs = {}
        self.context_length = context_length
        self.eos_token_ids = [TOKENIZER.eos_token_id]
        self.problems = [{"problem_id": f"p{i}", "problem": "47+5", "answer": "52"} for i in range(rows)]
        self.prompts: list[list[int]] = []
        self.weights_step = 0

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

    def stream(self):
        return None if self.streamed is None else Stream(self, self.streamed)

    def roll(self):
        """The blocks and the rows of the batch."""
        blocks = TwoStageRollout(self).run(self.problems, self.args.plan)
        return blocks, [row for block in blocks for row in block.rows(self.args.stages)]


def half_right(prompt, place, stage):
    return RIGHT if place < 2 or stage == "refinement" else WRONG


def test_a_block_is_g_candidates_then_g_refinements_of_one_prompt(tmp_path):
    blocks, rows = Trainer(tmp_path, half_right).roll()
    assert [stage for _, stage in rows] == (["candidate"] * 4 + ["refinement"] * 4) * 2
    for block in range(2):
        prompts = [rollout.prompt_ids for rollout, _ in rows[8 * block : 8 * block + 8]]
        assert prompts[0] == prompts[3] != prompts[4] == prompts[7]
    assert [c.correct for c in blocks[0].candidates] == [1.0, 1.0, 0.0, 0.0]
    assert all(len(rollout.logprobs) == len(rollout.completion_ids) for rollout, _ in rows)


def differing(prompt, place, stage):
    """Answers that differ by problem, place and stage, some cut off, some right."""
    value = (7 * place + len(prompt) + 13 * ("refine" in prompt)) % 50 + 10
    end = "..." if place == 1 and stage == "candidate" else ""
    return f"47+5={value}\\boxed{{{52 if place % 3 == 0 else value}}}{end}"


@pytest.mark.parametrize("overrides", [{}, {"num_candidate_sets": 2, "candidate_choice": "balanced"}])
def test_streamed_and_in_two_waves_make_the_same_blocks(tmp_path, overrides):
    expected = [dataclasses.asdict(b) for b in Trainer(tmp_path, differing, rows=5, **overrides).roll()[0]]
    assert any(r["vote_class"] is not None for r in expected[0]["sets"][0]["refinements"])
    for order in range(4):
        blocks, _ = Trainer(tmp_path, differing, rows=5, streamed=order, **overrides).roll()
        assert [dataclasses.asdict(b) for b in blocks] == expected


def test_a_streamed_problem_is_refined_before_other_candidates_are_done(tmp_path):
    trainer = Trainer(tmp_path, half_right, rows=6, streamed=3)
    made = []
    trainer.stream = lambda: made.append(Stream(trainer, 3)) or made[-1]
    trainer.roll()
    stages = ["refine" in TOKENIZER.decode(trainer.prompts[int(name)]) for name in made[0].order]
    assert stages.count(True) == stages.count(False) == 6
    assert True in stages[:6]


def test_a_prompt_over_the_window_passes_through_the_stream_too(tmp_path):
    expected, _ = Trainer(tmp_path, half_right, context_length=18).roll()
    streamed, _ = Trainer(tmp_path, half_right, context_length=18, streamed=0).roll()
    assert [dataclasses.asdict(b) for b in streamed] == [dataclasses.asdict(b) for b in expected]


def test_a_refinement_prompt_shows_exactly_its_chosen_candidates_in_order(tmp_path):
    blocks, _ = Trainer(tmp_path, lambda p, place, s: f"47+5=5{place}\\boxed{{5{place}}}").roll()
    for block in blocks:
        shown = "".join(f"\n#{block.candidates[i].text}" for i in block.sets[0].shown)
        assert TOKENIZER.decode(block.refinements[0].prompt_ids).endswith(f"47+5{shown}\n><assistant>")


def test_several_sets_get_their_share_of_the_refinements(tmp_path):
    (block, _), rows = Trainer(tmp_path, half_right, num_candidate_sets=2).roll()
    assert [len(chosen.refinements) for chosen in block.sets] == [2, 2]
    assert sorted(block.sets[0].shown + block.sets[1].shown) == [0, 1, 2, 3]
    prompts = [rollout.prompt_ids for rollout, _ in rows]
    assert prompts[4] == prompts[5] and prompts[6] == prompts[7]


def test_a_random_number_of_candidates_is_drawn_between_its_bounds_for_each_problem(tmp_path):
    trainer = Trainer(tmp_path, half_right, rows=40, num_candidates=3, min_num_candidates=1)
    blocks, _ = trainer.roll()
    assert {len(block.sets[0].shown) for block in blocks} == {1, 2, 3}
    assert [b.sets[0].shown for b in blocks] == [b.sets[0].shown for b in trainer.roll()[0]]
    assert {"gap/maj@1-3", "gap/selfref@1-3", "gap/pass@3"} < set(rollout_sums(blocks, trainer.args.plan))


def test_metrics_of_sets_that_a_policy_chose_stand_apart(tmp_path):
    trainer = Trainer(tmp_path, half_right, rows=20, candidate_choice="paper")
    blocks, _ = trainer.roll()
    sums = rollout_sums(blocks, trainer.args.plan)
    uniform = sum(one.policy == "uniform" for block in blocks for one in block.sets)
    assert 0 < uniform < 20
    assert sums["gap/selfref@2"][1] == uniform
    assert sums["chosen/selfref@2"][1] == 20 - uniform
    assert sums["chosen/maj@2"] == [20.0 - uniform, 20.0 - uniform]  # two right ones are shown
    assert sums["chosen/accuracy_by_num_correct/2"][1] == 20 - uniform
    assert sum(sums[f"refinement/accuracy_by_num_correct/{right}"][1] for right in range(3)) == uniform
    assert sums["refinement/accuracy"][1] == 80  # all rows, whatever their set


def test_a_stage_that_is_off_has_no_rows(tmp_path):
    _, rows = Trainer(tmp_path, half_right, candidate_weight=0.0).roll()
    assert [stage for _, stage in rows] == ["refinement"] * 8
    trainer = Trainer(tmp_path, half_right, refinement_weight=0.0)
    _, rows = trainer.roll()
    assert [stage for _, stage in rows] == ["candidate"] * 8
    assert not any("refine" in TOKENIZER.decode(ids) for ids in trainer.prompts)


def test_unfinished_candidates_are_dropped_or_shown_by_rule(tmp_path):
    def answer(prompt, place, stage):
        return "47+5=52..." if place == 0 and stage == "candidate" else RIGHT

    for seed in range(4):
        blocks, _ = Trainer(tmp_path, answer, seed=seed).roll()
        assert all(0 not in block.sets[0].shown for block in blocks)
    shown = [Trainer(tmp_path, answer, seed=s, unfinished_candidates="cut").roll()[0] for s in range(8)]
    assert any(0 in block.sets[0].shown for blocks in shown for block in blocks)


def test_without_a_usable_candidate_the_refinement_rows_stay_but_count_for_nothing(tmp_path):
    trainer = Trainer(tmp_path, lambda p, place, stage: "47+5=52...")
    blocks, rows = trainer.roll()
    assert len(rows) == 16
    refinements = blocks[0].refinements
    assert [len(r.completion_ids) for r in refinements] == [1] * 4
    assert not any(r.usable or r.scored for r in refinements)
    sums = rollout_sums(blocks, trainer.args.plan)
    assert sums["refinement/accuracy"] == [0.0, 0.0]
    assert sums["refinement/skipped_prompts"] == [2.0, 2.0]
    assert sums["gap/refinement_gap"] == [0.0, 0.0]


def test_a_refinement_prompt_over_the_engines_window_is_cut_and_counted(tmp_path):
    def answer(prompt, place, stage):  # 10 tokens, so that a prompt has 8 + 2 x 10
        return "47+5=52+1=53-1=52\\boxed{52}"

    for window, cut, fits in ((44, 0, True), (42, 2, True), (38, 0, False)):
        trainer = Trainer(tmp_path, answer, context_length=window)
        blocks, rows = trainer.roll()
        assert all(len(r.prompt_ids) + trainer.args.max_refinement_length <= window for r, _ in rows)
        sets = [chosen for block in blocks for chosen in block.sets]
        assert [(chosen.num_cut, chosen.fits) for chosen in sets] == [(cut, fits)] * 2
        assert rollout_sums(blocks, trainer.args.plan)["refinement/cut_prompts"] == [2.0 * (cut > 0), 2.0]


def test_a_problem_over_the_window_keeps_its_rows_and_every_rank_its_calls(tmp_path):
    trainer = Trainer(tmp_path, half_right, context_length=18)
    blocks, rows = trainer.roll()
    assert len(rows) == 16
    assert not any(candidate.usable for block in blocks for candidate in block.candidates)
    assert len(trainer.prompts) == 4  # two solve prompts and two refinement prompts, as ever


def test_metrics_worked_by_hand(tmp_path):
    # Candidates R R W W; refinements all right. Shown: any two, so the vote is right with 1, 1/2 or 0.
    trainer = Trainer(tmp_path, half_right)
    blocks, _ = trainer.roll()
    sums = rollout_sums(blocks, trainer.args.plan)

    def mean(name):
        return sums[name][0] / sums[name][1]

    assert mean("candidate/accuracy") == 0.5
    assert mean("refinement/accuracy") == 1.0
    assert mean("candidate/distinct") == 0.5 and mean("refinement/distinct") == 0.25
    assert mean("gap/pass@2") == pytest.approx(1 - 1 / 6)  # C(2, 2) / C(4, 2) of the pairs are both wrong
    votes = [sum(b.candidates[i].correct for i in b.sets[0].shown) / 2 for b in blocks]
    assert mean("gap/maj@2") == pytest.approx(sum(votes) / 2)
    assert mean("gap/refinement_gap") == pytest.approx(1 - sum(votes) / 2)
    assert mean("gap/copy_rate") == pytest.approx(sum(vote > 0 for vote in votes) / 2)
    assert mean("gap/new_answer_rate") == pytest.approx(sum(vote == 0 for vote in votes) / 2)
    if sum(votes) < 2:
        assert mean("gap/fix_rate") == 1.0
    assert sums["gap/break_rate"][0] == 0.0


def test_warnings_name_the_metric_its_value_and_a_fix():
    healthy = {"candidate/distinct": 0.5, "gap/copy_rate": 0.6, "candidate/unfinished": 0.1}
    assert warnings_of(healthy, 8) == {}
    found = warnings_of({"candidate/distinct": 0.125, "gap/copy_rate": 1.0, "refinement/unfinished": 0.4}, 8)
    assert set(found) == {"diversity", "copying", "refinement length"}
    assert "candidate/distinct is 0.125" in found["diversity"] and "pass@k" in found["diversity"]
    assert set(warnings_of({"chosen/copy_rate": 1.0}, 8)) == {"copying"}, "where no set is uniform"
    assert set(warnings_of({"candidate/skipped_prompts": 1.0}, 8)) == {"solve prompts"}
    drift = warnings_of({"candidate/sampling_logp_difference/mean": 0.4}, 8)
    assert "vllm_dtype" in drift["candidate drift"]


def test_examples_show_candidates_beside_the_refinement_with_their_verdicts(tmp_path):
    blocks, _ = Trainer(tmp_path, half_right).roll()
    text = io.StringIO()
    print_examples(blocks, 1, 7, file=text)
    shown = text.getvalue()
    assert "step 7" in shown and "candidate 1" in shown and "candidate 2" in shown
    assert "refinement: right" in shown and RIGHT in shown
    assert shown.count("answer: 52") == 1


def test_the_rollout_table_says_none_where_there_is_no_reward(tmp_path):
    blocks, _ = Trainer(tmp_path, half_right).roll()
    rows = rollout_rows(blocks, 3, TOKENIZER)
    assert len(rows) == 16 and {row["step"] for row in rows} == {3}
    assert all(row["reward"] is None for row in rows)  # rewards are the trainer's business
    assert math.isnan(blocks[0].candidates[0].reward)
    assert rows[4]["prompt"].startswith("<user>refine 47+5")


@pytest.mark.parametrize(
    "given",
    [
        {"stop": "}"},
        {"stop": ["x", "}"]},
        {"stop_strings": ["}"]},
        {"stop_token_ids": TOKENIZER.encode("}", add_special_tokens=False)},
    ],
)
def test_a_completion_that_a_stop_ends_is_finished_and_no_length_is_warned_of(tmp_path, given):
    trainer = Trainer(tmp_path, lambda *_: RIGHT + "...", generation_kwargs=given)
    blocks, _ = trainer.roll()
    assert all(rollout.finished for block in blocks for rollout in block.candidates + block.refinements)
    logs = {name: total / count for name, (total, count) in rollout_sums(blocks, trainer.args.plan).items() if count}
    assert not [kind for kind in warnings_of(logs, 4) if "length" in kind]
    cut, _ = Trainer(tmp_path, lambda *_: "47+5=5...", generation_kwargs=given).roll()
    assert not any(candidate.finished for candidate in cut[0].candidates)
