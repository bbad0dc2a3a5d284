"""`rollout_ahead` without a trainer or a server: which batch is sampled from which weights, and what is too old."""

import threading
import time
from types import SimpleNamespace

import pytest

from gsr_rl.training.problem_order import ProblemStream, RolloutsAhead
from gsr_rl.training.rollout import TwoStageRollout
from tests.training.test_rollout import Stream, Trainer, half_right


class Engine:
    """Notes pushes; what goes wrong on this rank goes wrong on all."""

    def on_all_ranks(self, doing, action):
        return action()


class Run(Trainer):
    """The parts of a `GSRTrainer` that sample ahead, on problems whose rollouts may be held up."""

    def __init__(self, tmp_path, ahead=1, problems=12, per_batch=2, used_for=1, max_steps=6, **more):
        super().__init__(
            tmp_path, half_right, rows=problems, per_device_train_batch_size=8 * per_batch // used_for,
            steps_per_generation=used_for, gradient_accumulation_steps=1, use_vllm=True, vllm_mode="server",
            rollout_ahead=ahead, **more,
        )  # fmt: skip
        self.train_dataset = self.problems
        self.state = SimpleNamespace(global_step=0, max_steps=max_steps)
        self.accelerator = SimpleNamespace(num_processes=1, process_index=0)
        self.problem_stream = ProblemStream(problems, 0, shuffle=False)
        self.vllm_generation, self.driver = Engine(), TwoStageRollout(self)
        self.rollout_log = SimpleNamespace(count_ages=lambda ages, dropped: self.ages.append((ages, dropped)))
        self.ages, self.pushes, self.weights_step = [], [], -1
        self.gate = threading.Event()
        self.gate.set()
        self.sampled: list[tuple[str, int]] = []  # problem and weights of each rollout that began
        self.ahead = RolloutsAhead(self)

    def engine_ready(self):
        from contextlib import nullcontext

        if self.weights_step != self.state.global_step:
            self.weights_step = self.state.global_step
            self.pushes.append(self.weights_step)
        return nullcontext()

    def stream(self):
        self.gate.wait(10)
        return Stream(self, 0)

    def roll_out(self, rows, plan, indices):
        return self.driver.run(rows, plan, indices)

    def _largest_over_ranks(self, numbers):
        return numbers

    def train(self, steps, used_for=1):
        """The problems of each step's batch; `order` at each step, `take` where one is needed."""
        batches = []
        for _ in range(steps):
            self.ahead.order()
            if self.state.global_step % used_for == 0:
                batches.append([block.problem_id for block in self.ahead.take()])
            self.state.global_step += 1
        return batches


def batches_in_order(number, size):
    return [[f"p{size * batch + place}" for place in range(size)] for batch in range(number)]


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_batches_come_in_order_from_weights_at_most_so_old_and_none_is_ordered_past_the_end(tmp_path, ahead):
    run = Run(tmp_path, ahead)
    assert run.train(6) == batches_in_order(6, 2)
    assert run.pushes == [0, 1, 2, 3, 4, 5]
    ages = [max(ages) for ages, _ in run.ages]
    assert max(ages) <= ahead and {dropped for _, dropped in run.ages} == {0}
    assert run.problem_stream.taken == 12 and not run.problem_stream.pending


def test_a_step_at_the_end_of_a_run_has_a_batch_too(tmp_path):
    run = Run(tmp_path)
    run.state.global_step = 6  # a run that has ended is started again
    run.ahead.order()
    assert len(run.ahead.take()) == 2 and not run.problem_stream.pending


def test_the_next_batch_is_sampled_while_the_caller_updates(tmp_path):
    run = Run(tmp_path)
    run.ahead.order()
    assert len(run.ahead.take()) == 2
    deadline = time.monotonic() + 10
    while len(run.prompts) < 8 and time.monotonic() < deadline:  # nobody has asked for the second batch
        time.sleep(0.01)
    assert len(run.prompts) == 8
    run.state.global_step = 1
    run.ahead.order()
    blocks = run.ahead.take()
    assert [block.weights_step for block in blocks] == [0, 0] and run.ages[-1] == ([1, 1], 0)
    assert all(rollout.weights_step == 0 for block in blocks for rollout in (*block.candidates, *block.refinements))


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_next_batches_are_begun_while_the_last_completions_of_the_first_are_awaited(tmp_path, ahead):
    run = Run(tmp_path, ahead)
    run.gate.clear()  # nothing is answered
    begun, stream = [], run.stream
    run.stream = lambda: begun.append(threading.current_thread()) or stream()
    run.ahead.order()
    deadline = time.monotonic() + 10
    while len(begun) <= ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len({*begun}) == ahead + 1 and not run.prompts
    run.gate.set()
    assert [block.problem_id for block in run.ahead.take()] == ["p0", "p1"]


def test_a_batch_used_for_two_steps_is_ordered_one_step_before_its_first(tmp_path):
    run = Run(tmp_path, per_batch=4, used_for=2)
    ordered = []
    for step in range(6):
        run.state.global_step = step
        run.ahead.order()
        ordered.append(run.problem_stream.taken // 4)
        if step % 2 == 0:
            run.ahead.take()
    assert ordered == [1, 2, 2, 3, 3, 3]
    assert all(max(ages) <= 1 for ages, _ in run.ages)


def test_the_choice_of_candidates_is_that_of_the_step_that_trains_on_it(tmp_path):
    run = Run(tmp_path)
    ahead = []
    for step in range(3):
        run.state.global_step = step
        run.ahead.order()
        ahead += [(block.problem_id, block.sets[0].shown) for block in run.ahead.take()]
    plain = []
    for step in range(3):
        run.state.global_step = step
        rows = run.problems[2 * step : 2 * step + 2]
        plain += [(block.problem_id, block.sets[0].shown) for block in run.roll_out(rows, run.args.plan, None)]
    assert ahead == plain and len({tuple(shown) for _, shown in ahead}) > 1


def test_what_is_too_old_is_dropped_counted_and_sampled_anew(tmp_path):
    run = Run(tmp_path)
    run.ahead.order()
    deadline = time.monotonic() + 10
    while len(run.prompts) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    run.ahead.take()
    run.state.global_step = 3  # a step that nobody expects
    with run.engine_ready():
        blocks = run.ahead.take()
    assert [block.problem_id for block in blocks] == ["p2", "p3"] and len(run.prompts) == 12
    assert [block.weights_step for block in blocks] == [3, 3] and run.ages[-1] == ([0, 0], 2)


def test_an_error_of_the_thread_is_raised_where_the_batch_is_taken(tmp_path):
    run = Run(tmp_path)
    run.stream = lambda: (_ for _ in ()).throw(RuntimeError("no vLLM server is left"))
    run.ahead.order()
    with pytest.raises(RuntimeError, match="no vLLM server is left"):
        run.ahead.take()


def test_a_second_training_deals_out_again_what_the_first_had_ordered(tmp_path):
    run = Run(tmp_path)
    run.gate.clear()
    run.ahead.order()
    assert [list(batch) for batch in run.problem_stream.pending] == [[0, 1], [2, 3]]
    run.ahead.start_anew()
    run.gate.set()
    assert run.train(6) == batches_in_order(6, 2)
