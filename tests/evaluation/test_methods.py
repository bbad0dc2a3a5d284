"""Methods on the same candidates: what each is shown, that none samples candidates again, and that a run goes on."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from gsr_rl.engines.base import Completion
from gsr_rl.refinement.prompts import get_template, refinement_prompt, selected_candidate, selection_template
from gsr_rl.report.problem_values import metrics_from_samples
from gsr_rl.report.samples import read_samples
from tests.support.fixed_engine import FixedEngine, by_problem_and_method, run_recipe
from tests.support.paths import ROOT

KEYS = {
    "dataset_name": "tiny/mix",
    "dataset_split": "test",
    "max_problems": 40,
    "prompt_template": "tiny",
    "num_candidates": 3,
    "num_generations": 6,
    "grouping": "disjoint",
    "max_completion_length": 40,
}


class CountingEngine(FixedEngine):
    """Counts the requests by kind, and names the second candidate when it is asked which one is right."""

    solved = refined = 0

    def complete(self, ids, place):
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True)
        if prompt.endswith("\n#"):
            text = "\\boxed{02}"
            return Completion(text, self.tokenizer.encode(text), True)
        CountingEngine.solved += not prompt.startswith("refine ")
        CountingEngine.refined += prompt.startswith("refine ")
        return super().complete(ids, place)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    (folder / "model").mkdir()

    def evaluate(name, **more):
        CountingEngine.solved = CountingEngine.refined = CountingEngine.opened = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gsr_rl.engines.open.open_engine", CountingEngine)
            run_recipe(patch, "eval", **(KEYS | {"model": folder / "model", "output_dir": folder / name} | more))
        return folder / name

    return evaluate


ALL = ["selfref", "selfref_none", "selfref_foreign", "rounds", "select", "best_of_n", "weighted_vote", "orders"]


@pytest.fixture(scope="module")
def whole(run, reward_model):
    return run("whole", methods=ALL, reward_model=reward_model, refinement_rounds=3)


@pytest.fixture(scope="module")
def problems(whole):
    return by_problem_and_method(whole)


def test_disjoint_sets_are_all_that_there_are_and_share_no_candidate(problems):
    for methods in problems.values():
        sets = [sample["candidates"] for sample in methods["selfref"]]
        assert len(sets) == 2 and sorted(sets[0] + sets[1]) == list(range(6))


def test_every_method_sees_the_same_sets(problems):
    for methods in problems.values():
        sets = {sample["index"]: sample["candidates"] for sample in methods["selfref"]}
        for method in ("select", "rounds", "orders"):
            for sample in methods[method]:
                if (sample["round"] or 1) == 1 and not sample["order"]:
                    assert sample["candidates"] == sets[sample["index"]], method


def test_rounds_refine_over_the_round_before(problems):
    for methods in problems.values():
        for number in (1, 2, 3):
            for index in (0, 1):
                group = [s for s in methods["rounds"] if s["round"] == number and s["index"] == index]
                assert [sample["repeat"] for sample in group] == [0, 1, 2], "K refinements a set and round"
                if number > 1:
                    assert all(sample["candidates"] == [0, 1, 2] for sample in group)
    copied = [sample["copied"] for m in problems.values() for sample in m["rounds"] if sample["round"] == 3]
    assert any(copied)


def test_a_selection_is_as_right_as_the_candidate_that_it_names(problems):
    named = 0
    for methods in problems.values():
        direct = {sample["index"]: sample for sample in methods["direct"]}
        for sample in methods["select"]:
            shown = [i for i in sample["candidates"] if direct[i]["finished"]]
            if len(shown) < 2:
                assert sample["chosen"] is None and sample["correct_lenient"] == 0.0
                continue
            named += 1
            assert sample["chosen"] == shown[1], "the second that was shown"
            assert sample["correct_strict"] == direct[shown[1]]["correct_strict"]
    assert named > 40


def test_orders_are_the_same_set_as_it_is_shown_in_its_own_order_and_in_others(problems):
    alone = 0
    for methods in problems.values():
        text = {one["index"]: one["text"] for one in methods["direct"] if one["finished"]}  # the others are not shown
        for one in methods["selfref"]:
            shown = [text[i] for i in one["candidates"] if i in text]
            group = [sample for sample in methods["orders"] if sample["index"] == one["index"]]
            if len(set(shown)) < 2:
                alone += 1
                assert not group, "there is no other order"
                continue
            assert [sample["order"] for sample in group] == [0, 0, 1, 2]
            for sample in group[2:]:
                assert sorted(sample["candidates"]) == sorted(one["candidates"])
                assert [text[i] for i in sample["candidates"] if i in text] != shown
    assert alone


def test_classes_of_refinements_say_whose_answer_they_have(problems):
    same = new = 0
    for methods in problems.values():
        known = {}
        for sample in methods["direct"]:
            if sample["class_lenient"] is not None:
                known[sample["class_lenient"]] = sample["answer_lenient"]
        for sample in methods["selfref"] + methods["selfref_none"]:
            if sample["class_lenient"] in known:
                same += sample["answer_lenient"] == known[sample["class_lenient"]]
            elif sample["answer_lenient"] is not None:
                new += sample["answer_lenient"] not in known.values()
    assert same > 20 and new > 2


def test_figures_of_the_methods_are_what_the_samples_say(whole, problems):
    values = json.loads((whole / "eval.json").read_text())["benchmarks"]["tiny/mix"]

    def mean(method, **where):
        found = [
            sample["correct_lenient"]
            for methods in problems.values()
            for sample in methods[method]
            if all(sample[key] == value for key, value in where.items())
        ]
        return pytest.approx(sum(found) / len(found), abs=1e-6)

    assert values["select@3"]["value"] == mean("select")
    for number in (1, 2, 3):
        assert values[f"rounds_{number}"]["value"] == mean("rounds", round=number)
    best = []
    for methods in problems.values():
        direct = {sample["index"]: sample for sample in methods["direct"]}
        for one in methods["selfref"]:
            rated = [direct[i] for i in one["candidates"] if direct[i]["score"] is not None]
            best.append(max(rated, key=lambda s: s["score"])["correct_lenient"] if rated else 0.0)
    assert values["best_of@3"]["value"] == pytest.approx(sum(best) / len(best), abs=1e-6)
    assert {"weighted_maj@3", "order_sensitivity", "maj@tokens", "rounds_3_maj"} <= set(values)
    sensitivity = values["order_disagreement"]["value"] - values["resample_disagreement"]["value"]
    assert values["order_sensitivity"]["value"] == pytest.approx(sensitivity, abs=2e-6)


def test_tokens_spent_add_up(whole, problems):
    spent = json.loads((whole / "eval.json").read_text())["tokens"]["tiny/mix"]
    totals, rounds, capped = [], [], []
    for methods in problems.values():
        direct = {sample["index"]: sample["tokens"] for sample in methods["direct"]}
        for one in methods["selfref"]:
            candidates = sum(direct[i] for i in one["candidates"])
            totals.append(candidates + one["tokens"])
            capped.append(totals[-1] > sum(direct.values()))
            first, second = (
                [s["tokens"] for s in methods["rounds"] if s["index"] == one["index"] and s["round"] == number]
                for number in (1, 2)
            )
            rounds.append(candidates + sum(first) + sum(second) / 3)
    assert spent["selfref@3"] == pytest.approx(sum(totals) / len(totals), abs=1e-3)
    values = json.loads((whole / "eval.json").read_text())["benchmarks"]["tiny/mix"]
    assert values["maj@tokens_capped"]["value"] == pytest.approx(sum(capped) / len(capped), abs=1e-6)
    assert spent["rounds_2"] == pytest.approx(sum(rounds) / len(rounds), abs=1e-3)


def test_spread_over_runs_is_that_of_each_runs_accuracy(whole, problems):
    runs = json.loads((whole / "eval.json").read_text())["runs"]["tiny/mix"]["pass@1"]
    by_run = defaultdict(list)
    for methods in problems.values():
        for sample in methods["direct"]:
            by_run[sample["index"]].append(sample["correct_lenient"])
    means = [sum(group) / len(group) for group in by_run.values()]
    centre = sum(means) / 6
    assert runs["runs"] == 6 and runs["mean"] == pytest.approx(centre, abs=1e-6)
    assert runs["sd"] == pytest.approx((sum((m - centre) ** 2 for m in means) / 5) ** 0.5, abs=1e-6)


# Resuming, and methods added ---------------------------------------------------------------------------------


def strip(samples):
    return sorted(json.dumps(sample, sort_keys=True) for sample in samples)


def test_a_further_method_samples_no_candidate_again(run, whole, reward_model):
    folder = run("grown")
    assert CountingEngine.solved == 40 * 6
    run("grown", methods=ALL[:5], refinement_rounds=3)
    assert CountingEngine.solved == 0 and CountingEngine.refined > 0
    run("grown", methods=ALL, refinement_rounds=3, reward_model=reward_model)
    assert CountingEngine.solved == 0
    assert strip(read_samples(folder / "samples.parquet")[1]) == strip(read_samples(whole / "samples.parquet")[1])
    run("grown", methods=ALL, refinement_rounds=3, reward_model=reward_model)
    assert CountingEngine.opened == 0, "nothing is missing, so nothing is opened"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": ["select", "rounds"]}, "has selfref, orders, which methods lacks: name them too"),
        ({"methods": ["selfref", "orders", "rounds"], "refinement_rounds": 1}, "has 2 rounds: set it to that"),
        ({"methods": ["selfref_none"], "num_candidates": 2}, "num_candidates=2: output_dir="),
        ({"methods": ["selfref", "orders", "rounds"]}, "set candidates_from to that, or give another output_dir"),
    ],
)
def test_a_folders_figures_are_not_lost_to_a_command_that_does_not_ask_for_them(run, capsys, more, message):
    few = {"max_problems": 4, "methods": "selfref"}
    frozen = {"candidates_from": run("frozen_from", **few) / "samples.parquet"}
    folder = run("kept", **few | frozen | {"methods": ["selfref", "orders", "rounds"]})
    before = (folder / "samples.parquet").read_bytes()
    capsys.readouterr()
    for dry in ("true", "false"):
        with pytest.raises(SystemExit) as stopped:
            run("kept", **few | more, dry_run=dry)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and CountingEngine.opened == 0
        assert message in error and "or give another output_dir" in error
    assert (folder / "samples.parquet").read_bytes() == before
    run("kept", **few | frozen | {"methods": ["rounds", "orders", "selfref"]})
    assert read_samples(folder / "samples.parquet")[0]["methods"] == ["rounds", "orders", "selfref"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temperature": 0.3}, "temperature was 1.0, is 0.3"),
        ({"refinement_temperature": 0.3}, "refinement_temperature was 1.0, is 0.3"),
        ({"max_problems": 30}, "max_problems was 40, is 30"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"engine": "transformers"}, "engine was 'vllm', is 'transformers'"),
    ],
)
def test_a_changed_configuration_is_refused_by_key(run, capsys, whole, reward_model, more, message):
    with pytest.raises(SystemExit) as stopped:
        run(whole.name, methods=ALL, reward_model=reward_model, refinement_rounds=3, **more)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "set it back, or give a new output_dir" in error and CountingEngine.opened == 0


def test_another_model_in_the_same_folder_is_another_model(run, whole, reward_model, capsys):
    weights = whole.parent / "model" / "model.safetensors"
    weights.write_bytes(b"trained anew")
    try:
        with pytest.raises(SystemExit):
            run(whole.name, methods=ALL, reward_model=reward_model, refinement_rounds=3)
        assert "weights was" in capsys.readouterr().err
    finally:
        weights.unlink()


def test_candidates_of_another_run_are_taken_with_its_sets(run, whole):
    folder = run("taken", candidates_from=whole / "samples.parquet", own_candidates="false", seed=9)
    assert CountingEngine.solved == 0
    theirs, ours = (read_samples(one / "samples.parquet")[1] for one in (whole, folder))
    key = lambda s: (s["problem_id"], s["method"], s["index"])  # noqa: E731
    for method in ("direct", "selfref"):
        texts = [{key(s): (s["text"], s["candidates"]) for s in r if s["method"] == method} for r in (theirs, ours)]
        assert texts[0] == texts[1], "an engine with fixed outputs refines the same sets to the same texts"
    values = [metrics_from_samples(one).problems["lenient"]["tiny/mix"].values for one in (whole, folder)]
    assert values[0]["maj@3"] == values[1]["maj@3"] and values[0]["pass@1"] == values[1]["pass@1"]


def test_taken_candidates_keep_their_model_their_sampling_and_their_sets_from_run_to_run(run):
    few = {"max_problems": 8, "grouping": "resampled", "num_candidate_sets": 3, "methods": "selfref"}
    folder = run("from_a", **few, temperature=0.4, top_p=0.9)
    origin, samples = read_samples(folder / "samples.parquet")
    model = folder.parent / "refiner"
    model.mkdir()
    chosen = lambda found: [s["candidates"] for s in found if s["method"] == "selfref"]  # noqa: E731
    for name, seed in (("from_b", 1), ("from_c", 2)):
        keys = few | {"candidates_from": folder / "samples.parquet", "own_candidates": "false", "model": model}
        folder = run(name, **keys, seed=seed, max_completion_length=39, max_refinement_length=38)
        header, rows = read_samples(folder / "samples.parquet")
        assert header["sampling"]["candidate"] == {"temperature": 0.4, "top_p": 0.9, "max_tokens": 40}, name
        assert header["sampling"]["refinement"]["max_tokens"] == 38
        assert (header["model"], header["candidates_model"]) == (str(model), origin["model"]), name
        assert (header["seed"], header["sets_seed"]) == (seed, 0) and chosen(rows) == chosen(samples), name
        assert f"- candidates model: {origin['model']}" in (folder / "report.md").read_text()


def test_frozen_candidates_of_a_run_that_refined_nothing_are_refused_with_the_fix(run, capsys):
    folder = run("unrefined", max_problems=5, methods="select")
    with pytest.raises(SystemExit) as stopped:
        run("frozen", max_problems=5, candidates_from=folder / "samples.parquet")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and CountingEngine.opened == 0
    assert "has refined nothing (methods: select)" in error and "with selfref among its methods" in error


def test_candidates_of_another_run_need_the_same_numbers(run, whole, capsys):
    with pytest.raises(SystemExit):
        run("off", candidates_from=whole / "samples.parquet", own_candidates="false", num_generations=7)
    assert "num_generations=7: candidates_from=" in capsys.readouterr().err


def test_several_benchmarks_in_one_run_keep_their_problems_apart(run, tmp_path):
    paths = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": str(i), "problem": f"{i + (name == 'two')}0+5", "answer": f"{i}5"} for i in range(1, 5)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)
    folder = run("several", benchmarks=paths, dataset_name="null")
    assert CountingEngine.opened == 1
    summary = json.loads((folder / "eval.json").read_text())
    assert list(summary["benchmarks"]) == ["one", "two"] and summary["num_problems"] == 8
    for sample in read_samples(folder / "samples.parquet")[1]:
        other = sample["problem"][0] != sample["problem_id"]
        assert sample["benchmark"] == ("two" if other else "one")


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_like_one_that_is_not(whole, reward_model, tmp_path):
    program = ROOT / "tests" / "programs" / "killable_eval.py"
    keys = KEYS | {"model": whole.parent / "model", "output_dir": tmp_path / "killed", "methods": ALL}
    keys |= {"refinement_rounds": 3, "reward_model": reward_model, "problems_per_chunk": 3}
    words = [word for key, value in keys.items() for word in _words(key, value)]
    for shards in (1, 12, 30, 55, 90, None):  # killed as soon as so many are there
        process = subprocess.Popen([sys.executable, str(program), *words], cwd=ROOT)
        deadline = time.monotonic() + 300
        while process.poll() is None:
            assert time.monotonic() < deadline, f"{shards} shards were not there after 300 s"
            if shards and len(list((tmp_path / "killed").glob("shards/*/units-*.jsonl"))) >= shards:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        assert process.returncode == (-signal.SIGKILL if shards else 0)
    killed = read_samples(tmp_path / "killed" / "samples.parquet")[1]
    assert strip(killed) == strip(read_samples(whole / "samples.parquet")[1])


def _words(key, value):
    return [f"--{key}", *map(str, value if isinstance(value, list) else [value])]


# Parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "number", "place"),
    [
        ("2", 4, 1),
        ("Candidate 3", 4, 2),
        ("#4", 4, 3),
        ("02", 4, 1),
        ("2 (candidate 2)", 4, 1),
        ("5", 4, None),
        ("0", 4, None),
        ("1 or 2", 4, None),
        ("the first", 4, None),
        (None, 4, None),
    ],
)
def test_the_candidate_that_an_answer_names(answer, number, place):
    assert selected_candidate(answer, number) == place


def test_a_selection_prompt_shows_what_a_refinement_prompt_shows_and_asks_for_a_number():
    template = get_template("gsr")
    (refine,), (select,) = (refinement_prompt("P?", ["a", "b"], t) for t in (template, selection_template(template)))
    assert "# Candidate solution 2\nb" in select["content"] and "put its number" in select["content"]
    assert refine["content"] != select["content"] and "complete solution" not in select["content"]
