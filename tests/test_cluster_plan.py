"""benchmarks/cluster_plan.py: on loads that are worked out by hand, and what must be so whatever the load is."""

from argparse import Namespace

import pytest

from tests.support.paths import ROOT

# An engine makes 100 tokens a second, whatever runs; prompts cost nothing. 10 problems of 2 + 2 completions of 25
# tokens are 1,000 tokens: 10 s of one engine.
LOAD = {"tensor_parallel": 1, "gpus_per_server": 1, "token_ms": 0, "sequences": 64, "engine_tokens_per_second": 100}
LOAD |= {"prompt_tokens_per_second": float("inf"), "problem_tokens": 0, "num_candidates": 0, "push_seconds": 2.0}
LOAD |= {"trained_tokens_per_second": 250, "wake_seconds": 3.0, "steps": 6}


@pytest.fixture
def planner(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cluster_plan

    return cluster_plan


def batches(planner, args, tokens=25, number=11):
    return [planner.Batch([([tokens] * 2, [tokens] * 2)] * 10, args) for _ in range(number)]


@pytest.mark.parametrize(
    ("trained", "ahead", "seconds"),
    [(250, 0, 2 + 10 + 4), (250, 1, 2 + 10), (250, 2, 2 + 10), (50, 0, 2 + 10 + 20), (50, 1, 2 + 20), (50, 2, 2 + 20)],
)
def test_a_step_of_constant_lengths_takes_what_the_formula_says(planner, trained, ahead, seconds):
    """One GPU samples, one updates: rollout 10 s, update 4 or 20 s, push 2 s."""
    args = Namespace(**LOAD | {"trained_tokens_per_second": trained})
    plan = planner.with_servers(batches(planner, args), 2, 1, ahead, args)
    assert (plan.rollout, plan.update, plan.push) == pytest.approx((10, 1000 / trained, 2))
    assert plan.step == pytest.approx(seconds) == plan.formula
    assert plan.staleness == ahead


def test_colocated_engines_wait_for_the_rank_with_the_longest_problems(planner):
    """Of two ranks one has the five problems of 25 tokens (5 s), the other those of 50 (10 s); then 1,500 tokens are
    trained by two GPUs (3 s). A request to the least busy engine would have taken 7.5 s."""
    args = Namespace(**LOAD)
    lengths = [([tokens] * 2, [tokens] * 2) for _ in range(5) for tokens in (25, 50)]
    plan = planner.colocated([planner.Batch(lengths, args)], 2, args)
    assert (plan.rollout, plan.update, plan.step) == pytest.approx((10, 3, 3 + 10 + 3))
    assert planner.rollout_alone([planner.Batch(lengths, args)] * 4, 2, args) == pytest.approx(7.5, abs=1)


@pytest.mark.parametrize(("sequences", "seconds"), [(1, 1.035), (256, 10), (512, 20)])
def test_a_lone_sequence_takes_its_latency_and_more_of_them_share_the_engine(planner, sequences, seconds):
    """100 tokens each: 10 ms a token and 0.35 ms for each that runs, 256 at most, which make 100 ms a token."""
    args = Namespace(**LOAD | {"token_ms": 10, "sequences": 256, "engine_tokens_per_second": 2560})
    engines, ends = planner.Engines(1, args), []
    engines.add(planner.Request(0, [100] * sequences, lambda: ends.append(engines.now)))
    engines.run()
    assert ends == pytest.approx([seconds], rel=1e-3)


def test_in_a_push_an_engine_stands_still_and_then_goes_on_where_it_was(planner):
    """A prompt of 0.5 s, 50 of 100 tokens in 0.5 s, a push of 2 s, and 0.5 s."""
    args = Namespace(**LOAD | {"prompt_tokens_per_second": 100})
    engines, ends = planner.Engines(1, args), []
    engines.add(planner.Request(50, [100], lambda: ends.append(engines.now)))  # its prompt takes 0.5 s
    engines.run(until=1.0)
    engines.push([0], 2.0)
    engines.run()
    assert ends == pytest.approx([0.5 + 0.5 + 2.0 + 0.5])


def test_more_ahead_is_never_slower_and_never_under_what_servers_or_trainer_alone_take(planner):
    args = Namespace(**vars(planner.parse_args([])) | {"samples": ROOT / "results/smollm2/knights_grpo.parquet"})
    drawn = planner.draw(16, planner.WARM_UP + args.steps + 2, args)
    plans = [planner.with_servers(drawn, 4, 2, ahead, args) for ahead in (0, 1, 2)]
    assert plans[0].step > plans[1].step >= plans[2].step * 0.99
    assert plans[0].step == pytest.approx(plans[0].formula, rel=0.15)  # batches differ
    assert all(plan.step >= plan.push + plan.update for plan in plans)
    candidates = [length for batch in drawn for first, _ in batch.lengths for length in first]
    assert sum(candidates) / len(candidates) == pytest.approx(args.mean_tokens, rel=0.1)


@pytest.mark.parametrize("gpus, unit, servers", [(2, 1, {1}), (3, 2, {2}), (8, 1, {2, 3, 4, 5, 6}), (8, 4, {4})])
def test_each_share_of_the_gpus_leaves_some_for_the_update(planner, gpus, unit, servers):
    args = planner.parse_args(["--gpus", str(gpus), "--tensor_parallel", str(unit), "--steps", "1"])
    ways, tried = planner.plans(gpus, args)
    assert len(tried) == len(planner.SHARES) and {plan.servers for plan in tried} == servers
    assert all(plan.servers < gpus for plan in ways[1:]), "the first is colocated"


def test_an_engine_that_leaves_no_gpu_is_refused(planner, capsys):
    with pytest.raises(SystemExit):
        planner.parse_args(["--gpus", "8", "4", "--tensor_parallel", "4"])
    assert "--gpus 4: an engine takes 4" in capsys.readouterr().err
