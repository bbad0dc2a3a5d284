"""Benchmarks by name: every real file loads with the right count, and what is another set is refused by name."""

import json
import shutil

import pytest

from gsr_rl.data import benchmarks, gym_tasks
from gsr_rl.data.benchmarks import BENCHMARKS, FORMS
from gsr_rl.data.problems import plain_config, read_problems
from rewards import grade
from rewards.roles import roles
from tests.support.benchmark_rows import path_of, rows_of

FILES = {
    "aime24": ("aime24", 30),
    "aime25": ("aime25", 30),
    "amc23": ("amc23", 40),
    "math500": ("math500", 500),
    "olympiadbench": ("olympiadbench", 675),
    "gsm8k": ("gsm8k_test", 1319),
    "knights_knaves": ("knights_knaves_4", 100),
    "knights_knaves/4": ("knights_knaves_4", 100),
    "knights_knaves/4/choice": ("knights_knaves_4", 100),
}


def load(name, file=None, **values):
    return benchmarks.load(name, plain_config("", **values), {name: str(file)} if file else None)


@pytest.mark.parametrize(("name", "file", "count"), [(name, *one) for name, one in FILES.items()])
def test_every_benchmark_loads_from_its_file_with_its_count(name, file, count):
    rows = load(name, path_of(file))
    assert len(rows) == count and {row["benchmark"] for row in rows} == {name}
    assert all(row["id"] and row["problem"] and row["answer"] for row in rows)
    assert len({row["id"] for row in rows}) == count
    assert len(load(name, path_of(file), max_problems=20)) == 20


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("amc22-23", "amc23", "amc22-23 has 83 problems .* has 40: that is the number of amc23"),
        ("amc23", "math500", "amc23 has 40 problems .* has 500: that is the number of math500"),
        ("aime24", "aime25", "holds the answers of aime25, not of aime24: name it aime25"),
        ("knights_knaves/5", "knights_knaves_4", "asks for 5 inhabitants.*name it knights_knaves/4"),
        ("knights_knaves", "aime24", "asks for who is a knight"),
    ],
)
def test_a_file_that_holds_another_set_is_refused(name, file, message):
    with pytest.raises(ValueError, match=message):
        load(name, path_of(file))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:1] * 30,
        lambda rows: [r | {"answer": ""} for r in rows[3:]] + rows[:3],
        lambda rows: [*rows[:29], rows[0]],  # where the answers are known, one is enough
    ],
)
def test_a_set_of_which_little_is_usable_is_not_the_set(spoil, tmp_path):
    path = tmp_path / "aime.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in spoil(rows_of("aime24"))))
    with pytest.raises(ValueError, match=r"aime24 has 30 rows in .*, of which only (1|3|29) are usable and different"):
        load("aime24", path, unusable_rows="drop")


def test_a_broken_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2"}\n\n{"problem": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl: line 3 is no JSON object"):
        load(str(path))


def test_the_solver_of_puzzles_finds_what_trying_all_roles_finds():
    from reasoning_gym.logic.knights_knaves import KKProblemSampler, KnightsKnavesDataset

    for number in (2, 3, 5, 7):
        sampler = KKProblemSampler(number, number)
        for _ in range(20):
            statements = sampler.sample()
            assert gym_tasks.find_solutions(statements) == KnightsKnavesDataset.find_solution(statements)
    assert len(load("knights_knaves/14", max_problems=20)) == 20, "and soon"


def test_a_file_of_the_hubs_own_columns_loads_as_one_of_ours(tmp_path):
    names = {"problem": "question", "answer": "final_answer"}
    raw = [{names.get(k, k): [v] if k == "answer" else v for k, v in row.items()} for row in rows_of("olympiadbench")]
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in raw))
    wanted = [(row["problem"], row["answer"]) for row in load("olympiadbench", path_of("olympiadbench"))]
    assert [(row["problem"], row["answer"]) for row in load("olympiadbench", path)] == wanted


def test_the_columns_and_the_unusable_rows_of_a_benchmarks_file_are_as_the_keys_say(tmp_path):
    path = write(tmp_path, [*range(28), r"\frac12", ""], "expected")
    with pytest.raises(ValueError, match=r"looked for answer or solution.*--answer_column"):
        load("hmmt", path)
    with pytest.raises(ValueError, match=r"row 30: no usable answer .*--unusable_rows drop"):
        load("hmmt", path, answer_column="expected")
    assert len(load("hmmt", path, answer_column="expected", unusable_rows="drop")) == 29


def write(tmp_path, answers, column="answer"):
    path = tmp_path / "rows.jsonl"
    rows = [{"problem": f"Problem {place}", column: answer} for place, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_set_of_83_is_not_amc23_and_the_message_says_what_it_may_be(tmp_path):
    with pytest.raises(ValueError, match=r"amc23 has 40 problems .* has 83: that is the number of amc22-23"):
        load("amc23", write(tmp_path, range(83)))


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        ("aime24", [*range(29), 1000], "an answer of aime24 is an integer from 0 to 999, but that of problem 30"),
        ("amc23", [*range(39), r"\frac12"], "an answer of amc23 is an integer"),
    ],
)
def test_answers_of_another_form_are_refused(tmp_path, name, answers, message):
    with pytest.raises(ValueError, match=message):
        load(name, write(tmp_path, answers))


def test_other_answers_than_the_known_ones_are_refused_and_go_by_another_name(tmp_path, monkeypatch):
    path = write(tmp_path, range(30))
    with pytest.raises(ValueError, match=r"rows.jsonl has other answers than aime24 .*: give the right file, or eval"):
        load("aime24", path)
    assert {row["benchmark"] for row in load(str(path))} == {"rows"}
    rows = [{"problem": f"Problem {place}", "answer": str(place)} for place in range(30)]
    monkeypatch.setattr("gsr_rl.data.sources.read_hub", lambda *_: iter(rows))
    with pytest.raises(ValueError, match=r"under another name \(--benchmarks HuggingFaceH4/aime_2024@train\)"):
        load("aime24")
    assert len(load("HuggingFaceH4/aime_2024@train")) == 30


def test_a_set_of_integers_is_no_set_of_other_answers_with_as_many_problems(tmp_path):
    with pytest.raises(ValueError, match=r"aime24.jsonl holds the answers of aime24, not of hmmt: name it aime24"):
        load("hmmt", path_of("aime24"))
    with pytest.raises(ValueError, match=r"rows.jsonl has integers alone as answers, unlike minerva .*: give the"):
        load("minerva", write(tmp_path, range(272)))
    with pytest.raises(ValueError, match=r"rows.jsonl has other answers than gsm8k \(GSM8K's test split\)"):
        load("gsm8k", write(tmp_path, range(1319)))
    assert len(load("hmmt", write(tmp_path, [*range(29), r"\frac12"]))) == 30
    assert len(load("amc22-23", write(tmp_path, range(83)))) == 83, "its answers are not known here"


def test_answers_are_told_apart_whatever_their_spelling_and_order():
    assert benchmarks.answers_fingerprint(["073", "4", "1,000"]) == benchmarks.answers_fingerprint(
        ["1000", "73.0", "4"]
    )
    assert benchmarks.answers_fingerprint(["73"]) != benchmarks.answers_fingerprint(["74"])


def test_aliases_mean_their_set_and_no_two_sets_share_one():
    for name, one in BENCHMARKS.items():
        assert all(benchmarks.resolve(alias).name == name for alias in (name, name.upper(), *one.aliases))
        assert one.form in FORMS and one.rows
    names = [benchmarks._plain(name) for key, one in BENCHMARKS.items() for name in (key, *one.aliases)]
    assert len(names) == len(set(names)), "an alias that is the name itself is no alias"
    assert benchmarks.resolve("AIME2025", {"aime_2025": "x.jsonl"}).file == "x.jsonl"


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("aime-2024", "aime24"),
        ("AMC_23", "amc23"),
        ("AMC22_23", "amc22-23"),
        ("gsm_8k", "gsm8k"),
        ("HMMT-25", "hmmt"),
        ("Olympiad-Bench", "olympiadbench"),
        ("MATH 500", "math500"),
        ("Knights-Knaves/4", "knights_knaves/4"),
        ("knightsknaves/04/choice", "knights_knaves/4/choice"),
        ("knights_knaves", "knights_knaves/4"),
        ("Knights and Knaves", "knights_knaves/4"),
        ("knights-and-knaves/5/choice", "knights_knaves/5/choice"),
        ("AMC2022-23", "amc22-23"),
        ("knights_knaves/5@validation", "knights_knaves/5@validation"),
        ("reasoning-gym/chain_sum", "reasoning_gym/chain_sum"),
        ("Tiny/Mix", "tiny/mix"),
        ("Some-One/AMC_23", "Some-One/AMC_23"),
    ],
)
def test_a_name_may_be_spelled_with_other_capitals_and_dashes(spelled, name):
    assert benchmarks.resolve(spelled).name == name
    assert benchmarks.is_name(spelled) == ("/" not in name or name.startswith("knights"))


@pytest.mark.parametrize("name", ["knights-and-knaves/5/mc", "knights_knaves/choice/5", "KnightsKnaves/many"])
def test_a_misspelled_size_of_knights_and_knaves_is_no_set_of_the_hub(name):
    with pytest.raises(ValueError, match=f"benchmarks: {name}: knights_knaves, knights_knaves/N or .*/choice is exp"):
        benchmarks.resolve(name)


def test_generated_puzzles_of_another_split_are_other_ones():
    test, other = (load(f"knights_knaves/3{split}", max_problems=10) for split in ("", "@validation"))
    assert {row["benchmark"] for row in other} == {"knights_knaves/3@validation"} and len(other) == 10
    assert not {row["problem"] for row in test} & {row["problem"] for row in other}
    with pytest.raises(ValueError, match="has no splits: leave out @validation"):
        benchmarks.resolve("knights_knaves/3@validation", {"knights_knaves/3@validation": "x.jsonl"})


@pytest.mark.parametrize(
    ("key", "found"),
    [("Knights-Knaves", ("knights_knaves/choice", 0)), ("knights_knaves/4", ("knights_knaves/4/choice", 4))],
)
def test_a_file_stands_in_for_the_choices_that_are_made_of_it(key, found):
    source = benchmarks.resolve("knights_knaves/choice", {key: "x.jsonl"})
    assert (source.name, source.people, source.file) == (*found, "x.jsonl")


def test_inhabitants_may_have_any_names(tmp_path):
    for names in (["Élodie", "Øystein"], ["李雷", "Mary Ann"]):
        row = {"quiz": f"{names[0]} says so.", "names": names, "solution": [True, False]}
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        (one,), (choice,) = load("knights_knaves/2", path), load("knights_knaves/2/choice", path)
        assert one["answer"] == f"{names[0]} is a knight, {names[1]} is a knave"
        assert all(f"{name} is a kn" in choice["problem"].split(f"({choice['answer']})")[1] for name in names)
    row = {"problem": "Who?", "names": ["Zoe", "Max"], "is_knight": [True, False], "answer": "[True, False]"}
    path.write_text(json.dumps(row) + "\n")
    assert load("Knights_Knaves/2", path)[0]["answer"] == "Zoe is a knight, Max is a knave", "names and truth decide"
    wrong, right = "\\boxed{Élodie is a knave, Max is a knave}", "\\boxed{Max is a knave, Élodie is a knight}"
    assert grade([wrong, right], ["Élodie is a knight, Max is a knave"] * 2) == [0.0, 1.0]


def test_an_unknown_name_names_its_nearest():
    with pytest.raises(ValueError, match=r"'gsm9k' is not known: did you mean gsm8k\?"):
        benchmarks.resolve("gsm9k")
    with pytest.raises(ValueError, match="at least 2 inhabitants"):
        benchmarks.resolve("knights_knaves/1")


def test_other_sources_go_by_their_own_names(tmp_path):
    rows = load(str(write(tmp_path, [1, 2])))
    assert [row["benchmark"] for row in rows] == ["rows", "rows"]
    rows = load("tiny/mix@validation", max_problems=5)
    assert len(rows) == 5 and rows[0]["benchmark"] == "tiny/mix@validation"
    test = load("tiny/mix", max_problems=5)
    assert not {row["id"] for row in rows} & {row["id"] for row in test}
    assert benchmarks.describe("hmmt", None, plain_config("")) == ("MathArena/hmmt_feb_2025 on the Hub", 30)
    assert benchmarks.describe("someone/set", None, plain_config("")) == ("someone/set on the Hub", None)


@pytest.mark.parametrize("stem", ["amc23", "AMC-2023", "amc_23"])
def test_a_file_of_a_benchmarks_name_is_that_benchmark_or_refused(tmp_path, stem):
    path = tmp_path / f"{stem}.jsonl"
    write(tmp_path, range(83)).rename(path)
    with pytest.raises(ValueError, match=r"amc23 has 40 problems .* has 83: .* under another name \(rename the file"):
        load(str(path))
    shutil.copy(path_of("amc23"), path)
    assert {row["benchmark"] for row in load(str(path))} == {"amc23"}


def test_a_file_of_the_name_of_knights_and_knaves_holds_them(tmp_path):
    path = write(tmp_path, [1, 2]).rename(tmp_path / "knights_knaves.jsonl")
    with pytest.raises(ValueError, match="asks for who is a knight"):
        load(str(path))


def test_a_set_that_the_hub_does_not_give_names_the_local_file_as_mend(monkeypatch):
    def nothing(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("gsr_rl.data.sources.read_hub", nothing)
    with pytest.raises(ValueError, match=r"aime24 cannot be read from HuggingFaceH4/aime_2024 .*--benchmark_files"):
        load("aime24")


def test_the_hub_is_asked_for_the_sets_own_split_and_columns(monkeypatch):
    asked, answers = [], [row["answer"] for row in rows_of("gsm8k_test")]

    def rows(config, options):
        asked.append((config.dataset_name, config.dataset_split, config.dataset_config))
        return iter([{"question": f"Is it {n}?", "answer": f"so\n#### {answer}"} for n, answer in enumerate(answers)])

    monkeypatch.setattr("gsr_rl.data.sources.read_hub", rows)
    assert [row["answer"] for row in load("gsm8k", max_problems=3)] == answers[:3]
    assert asked == [("openai/gsm8k", "test", "main")]


# Knights and Knaves -----------------------------------------------------------------------------------------


def test_rows_of_the_published_shapes_get_their_answer():
    row = {"problem": "p", "names": ["Zoe", "Max"], "is_knight": [True, False]}
    assert gym_tasks.with_answer(row)["answer"] == "Zoe is a knight, Max is a knave"
    row = {"quiz": "q", "names": ["Zoe", "Max"], "solution": [False, True], "solution_text": "..."}
    found = gym_tasks.with_answer(row)
    assert found["problem"] == "q" and found["answer"] == "Zoe is a knave, Max is a knight"
    other = {"problem": "p", "names": ["a"], "solution": "prose"}
    assert gym_tasks.with_answer(other) == other


def test_a_file_of_knights_and_knaves_is_a_problem_set_like_others():
    rows = read_problems(plain_config(str(path_of("knights_knaves_4")), max_problems=3)).rows
    assert all(len(roles(row["answer"])) == 4 for row in rows)


@pytest.mark.parametrize("people", [2, 5])
def test_generated_islands_have_one_wording_and_the_answer_that_is_true(people):
    pytest.importorskip("reasoning_gym")
    rows = load(f"knights_knaves/{people}", max_problems=12)
    assert len(rows) == 12
    for row in rows:
        assert "knights always tell the truth" in row["problem"].lower()
        assert set(roles(row["answer"])) == {name.lower() for name in row["names"]} and len(row["names"]) == people
        assert all(name in row["problem"] for name in row["names"])
        assert [role == "knight" for role in roles(row["answer"]).values()] == row["is_knight"]
    assert grade([f"\\boxed{{{rows[0]['answer']}}}"], [rows[0]["answer"]]) == [1.0]


def test_other_words_for_the_two_kinds_become_knight_and_knave():
    island = "A very special island is inhabited only by saints and sinners. Saints always tell the truth."
    text = 'Ava said, "Zoe is a saint". Is an angel a sinner? (Ava is a saint/sinner)'
    assert gym_tasks.in_one_wording(text, island) == (
        'Ava said, "Zoe is a knight". Is an angel a knave? (Ava is a knight/knave)'
    )
    island = "A very special island is inhabited only by angels and devils. Angels always tell the truth."
    assert gym_tasks.in_one_wording("Zoe is an angel.", island) == "Zoe is a knight."
    assert gym_tasks.in_one_wording(island, island).endswith("Knights always tell the truth.")


def test_multiple_choice_holds_the_right_option_once_and_the_same_ones_in_every_run():
    row = {"id": "1", "problem": 'Who? (Format your answer like: "x")', "answer": "Zoe is a knight, Max is a knave"}
    one = gym_tasks.as_choice(row)
    assert one == gym_tasks.as_choice(row) and "Format your answer" not in one["problem"]
    options = [line for line in one["problem"].splitlines() if line.startswith("(")]
    assert len(options) == len({line[4:] for line in options}) == 4
    assert [line for line in options if row["answer"] in line] == [f"({one['answer']}) {row['answer']}"]
    assert grade([f"I say \\boxed{{{one['answer']}}}"], [one["answer"]]) == [1.0]


def test_the_choice_of_puzzles_that_a_file_holds_is_made_of_that_file():
    files = {"knights_knaves/4": str(path_of("knights_knaves_4"))}
    plain, choice = (
        benchmarks.load(name, plain_config("", max_problems=5), files)
        for name in ("knights_knaves/4", "knights_knaves/4/choice")
    )
    assert [row["id"] for row in choice] == [row["id"] for row in plain]
    other = {"knights_knaves/4/choice": "other.jsonl"}
    assert benchmarks.resolve("knights_knaves/4/choice", files | other).file == "other.jsonl"


def test_the_right_letter_is_spread_over_the_options():
    rows = load("knights_knaves/4/choice", path_of("knights_knaves_4"))
    counts = [sum(row["answer"] == letter for row in rows) for letter in "ABCD"]
    assert sum(counts) == 100 and min(counts) >= 12
