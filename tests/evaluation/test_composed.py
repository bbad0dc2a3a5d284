"""Many candidates in sets of K, end to end: what is shown, what is stored, and that a run takes further sizes."""

import json
from collections import defaultdict

import pytest

from gsr_rl.refinement.candidates import choice_seed, pool_sets
from gsr_rl.report.samples import read_samples
from tests.support.fixed_engine import FixedEngine, by_problem_and_method, run_recipe

KEYS = {
    "dataset_name": "tiny/mix",
    "dataset_split": "test",
    "max_problems": 12,
    "split_by": "family",
    "prompt_template": "tiny",
    "num_candidates": 2,
    "num_generations": 5,
    "max_completion_length": 40,
    "methods": ["selfref", "refine_and_vote", "tree", "flat"],
    "pool_sizes": [3, 5],
    "refinements_per_pool": 4,
    "flat_sizes": [3],
    "verdict_pattern": r"ok\\boxed",
}


class CountingEngine(FixedEngine):
    asked = 0

    def complete(self, ids, place):
        CountingEngine.asked += 1
        return super().complete(ids, place)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    (folder / "model").mkdir()

    def evaluate(name, reports=False, **more):
        CountingEngine.asked = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gsr_rl.engines.open.open_engine", CountingEngine)
            if not reports:  # plots take seconds
                patch.setattr("gsr_rl.report.html.write_report", lambda *_: None)
            run_recipe(patch, "eval", **(KEYS | {"model": folder / "model", "output_dir": folder / name} | more))
        return folder / name

    return evaluate


@pytest.fixture(scope="module")
def whole(run):
    return run("whole", reports=True)


@pytest.fixture(scope="module")
def problems(whole):
    return by_problem_and_method(whole)


def test_sets_of_a_pool_are_those_of_its_first_candidates_that_can_be_shown(problems):
    fewer = 0
    for identity, methods in problems.items():
        for size in (3, 5):
            usable = [c["finished"] and bool(c["text"]) for c in methods["direct"][:size]]
            sets = pool_sets(usable, 2, 4, choice_seed(0, identity, "pool", size))
            shown = [s for s in methods["refine_and_vote"] if s["pool"] == size]
            assert [(s["index"], s["candidates"]) for s in shown] == list(enumerate(sets))
            assert all(s["skipped"] == (not s["candidates"]) for s in shown)
            fewer += not all(usable)
    assert fewer, "some candidates are cut off"


def test_a_tree_refines_refinements_and_a_flat_set_has_its_own_size(problems):
    for methods in problems.values():
        levels = [(s["round"], s["index"], s["candidates"], s["pool"]) for s in methods["tree"]]
        assert levels == [(1, 0, [0, 1], 5), (1, 1, [2, 3], 5), (1, 2, [4], 5), (2, 0, [0, 1], 5), (2, 1, [2], 5),
                          (3, 0, [0, 1], 5)]  # fmt: skip
        (flat,) = methods["flat"]
        assert len(flat["candidates"]) == flat["pool"] == 3
        assert set(methods["selfref"][0]["candidates"]) < set(flat["candidates"]), "the same candidates and one more"


def test_figures_are_what_the_samples_say(whole, problems):
    summary = json.loads((whole / "eval.json").read_text())
    values = summary["benchmarks"]["tiny/mix"]

    def right(sample):
        return sample["correct_lenient"]

    roots = [right(s) for methods in problems.values() for s in methods["tree"] if s["round"] == 3]
    assert values["tree@5"]["value"] == pytest.approx(sum(roots) / 12, abs=1e-6)
    flat = [right(methods["flat"][0]) for methods in problems.values()]
    assert values["selfref@3"]["value"] == pytest.approx(sum(flat) / 12, abs=1e-6)
    votes = []
    for methods in problems.values():
        refined, counts = [s for s in methods["refine_and_vote"] if s["pool"] == 5], defaultdict(list)
        for sample in refined:
            counts[sample["class_lenient"]].append(right(sample))
        counts.pop(None, None)
        largest = [group for group in counts.values() if len(group) == max(map(len, counts.values()))]
        votes.append(sum(group[0] for group in largest) / len(largest) if largest else 0.0)
    assert values["refine_and_vote@5"]["value"] == pytest.approx(sum(votes) / 12, abs=1e-6)
    rows = {(r["method"], r["candidates"], r["refinements"]): r for r in summary["scaling"]["tiny/mix"]}
    assert rows["refine and vote", 5, 4]["value"] == values["refine_and_vote@5"]["value"]
    assert rows["refine and vote", 5, 4]["tokens"] == summary["tokens"]["tiny/mix"]["refine_and_vote@5"]
    assert ("refine and vote", 5, 2) in rows and ("verdict", 4, 0) in rows
    assert set(summary["scaling"]) == {"tiny/mix", "tiny/mix/chain", "tiny/mix/guess"}


def test_a_further_size_is_sampled_alone_and_one_that_is_there_is_not_dropped(run, whole, capsys):
    before = (whole / "samples.parquet").read_bytes()
    run("whole")
    assert CountingEngine.asked == 0
    with pytest.raises(SystemExit):
        run("whole", pool_sizes=[5])
    assert "pool_sizes lacks: name them too" in capsys.readouterr().err
    assert (whole / "samples.parquet").read_bytes() == before
    folder = run("more", pool_sizes=[5])
    first = {s["text"] for s in read_samples(folder / "samples.parquet")[1] if s["method"] == "direct"}
    run("more", pool_sizes=[4, 5], flat_sizes=[3, 4])
    assert 0 < CountingEngine.asked <= 12 * (4 + 1)
    assert {s["text"] for s in read_samples(folder / "samples.parquet")[1] if s["method"] == "direct"} == first
    with pytest.raises(SystemExit):
        run("more", pool_sizes=[4, 5], flat_sizes=[3, 4], refinements_per_pool=5)
    assert "refinements_per_pool was 4, is 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pool_sizes": [6]}, "pool_sizes=[6]: from 2 to num_generations=5 candidates are expected"),
        ({"pool_sizes": [1]}, "pool_sizes=[1]: from 2"),
        ({"pool_sizes": [5, 5]}, "names a size twice"),
        ({"pool_sizes": ["many"]}, "a list of whole numbers"),
        ({"refinements_per_pool": 0}, "refinements_per_pool=0: at least 1 is needed"),
        ({"flat_sizes": [2]}, "2 is num_candidates, which selfref is over"),
        ({"flat_sizes": "null"}, "flat needs flat_sizes"),
        ({"methods": ["selfref"]}, "is not used: add refine_and_vote or tree to methods"),
        ({"verdict_pattern": "ok("}, "verdict_pattern='ok(' is no regular expression"),
        ({"num_candidates": 1}, "tree needs num_candidates of at least 2"),
    ],
)
def test_bad_sizes_are_named_with_their_fix(run, capsys, more, message):
    with pytest.raises(SystemExit):
        run("bad", **more)
    assert message in capsys.readouterr().err
    assert CountingEngine.asked == 0
