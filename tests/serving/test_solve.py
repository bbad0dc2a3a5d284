"""The solver over engines, and `gsr-solve` from its command line to its output."""

import contextlib
import importlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

import rewards
from gsr_rl.data import tiny_world
from gsr_rl.serving.display import Terminal, boxes, plain, printable, short, votes_line
from gsr_rl.serving.solve_cli import as_json, help_text, main, parse, read_problems
from gsr_rl.serving.solver import Solver, Watcher
from gsr_rl.serving.steps import Attempt, Solution, Usage, counted
from tests.support.faulty_server import FaultyServer
from tests.support.fixed_engine import FixedEngine
from tests.support.paths import ROOT
from tests.support.serving import TINY

PROBLEMS = [row["problem"] for row in tiny_world.generate("mix", "test", 12, 0)]
KEYS = {"prompt_template": "tiny", "max_completion_length": 40}


class Record(Watcher):
    """What a watcher was told."""

    def __init__(self):
        self.stages, self.texts, self.attempts = [], {}, {}

    def started(self, stage, number, count):
        again = any((stage, number) == before[:2] for before in self.stages)
        self.stages.append((stage, number, count))
        texts = self.texts[stage] if again else []
        self.texts[stage] = texts + [""] * (count - len(texts))

    def text(self, stage, index, text):
        self.texts[stage][index] += text

    def finished(self, stage, number, attempts):
        self.attempts[stage] = attempts


def test_many_problems_share_the_engine_and_come_back_in_their_order():
    engine = FixedEngine()
    with Solver(TINY, engine, **KEYS) as solver:
        solutions = list(solver.solve_many(PROBLEMS))
    assert [one.problem for one in solutions] == PROBLEMS
    assert all(len(one.candidates) == 4 and len(one.rounds) == 2 and one.seconds >= 0 for one in solutions)
    assert engine.counts["requests"] == 2 * len(PROBLEMS)
    total = sum(one.usage.completion_tokens for one in solutions)
    assert total == engine.counts["completion_tokens"]
    right = [one.answer == tiny_world.make_row(one.problem, "test")["answer"] for one in solutions]
    assert sum(right) > len(right) / 2, "the fixed engine solves most of them"


def test_problems_are_read_only_as_there_is_room():
    engine, read = FixedEngine(), 0

    def source():
        nonlocal read
        for problem in PROBLEMS * 5:
            read += 1
            assert engine.load < engine.capacity + 4, "one problem is read ahead"
            yield problem

    with Solver(TINY, engine, **KEYS) as solver:
        assert len(list(solver.solve_many(source()))) == read == 60


def test_an_empty_and_a_far_too_long_problem_leave_the_others_alone():
    with Solver(TINY, FixedEngine(), **KEYS) as solver:
        empty, good, long = solver.solve_many([" ", PROBLEMS[0], "1" * 1200])
        assert empty.error == "the problem is empty" and good.answers and not good.error
        assert "fill the model's window of 512" in long.error
        for problem, words in (
            ("", "is empty"),
            ("\ud800", "half a character"),
            ("1" * 1200, "fill the model's window"),
        ):
            with pytest.raises(ValueError, match=words):
                solver.solve(problem)


def test_a_chat_that_the_template_refuses_leaves_the_others_alone():
    engine = FixedEngine()
    engine.tokenizer.chat_template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
        + engine.tokenizer.chat_template
    )
    chat = [{"role": "user", "content": PROBLEMS[0]}] * 2
    with Solver(TINY, engine, **KEYS) as solver:
        refused, good = solver.solve_many([chat, PROBLEMS[0]])
        assert "chat template refuses" in refused.error and "one turn only" in refused.error and good.answers
        with pytest.raises(ValueError, match="one turn only"):
            solver.solve(chat)


def test_rounds_and_modes_ask_for_what_they_say():
    for more, requests in (({"rounds": 3}, 4), ({"mode": "vote"}, 1), ({"mode": "direct"}, 1)):
        engine, record = FixedEngine(), Record()
        with Solver(TINY, engine, num_candidates=2, **KEYS, **more) as solver:
            assert solver.solve(PROBLEMS[0], record).text
        assert engine.counts["requests"] == len(record.stages) == requests


@pytest.fixture
def trained_on_three(tmp_path):
    """A model's folder that says so."""
    (tmp_path / "gsr_config.json").write_text(json.dumps({"num_candidates": 3, "prompt_template": "tiny"}))
    return str(tmp_path)


def test_more_candidates_than_the_model_was_trained_on_are_refined_in_sets_and_vote(trained_on_three):
    keys, limit = {"num_candidates": 6, "max_completion_length": 40}, 1 + 6
    for more, requests in (({}, limit), ({"num_refinements": 4}, 1 + 4), ({"candidates_per_set": 6}, 2),
                           ({"stop_when_agreed": True}, None), ({"stop_when_agreed": 0.6}, None)):  # fmt: skip
        engine, record = FixedEngine(), Record()
        with Solver(trained_on_three, engine, **keys, **more) as solver:
            solutions = list(solver.solve_many(PROBLEMS))
            assert solver.solve(PROBLEMS[0], record).text == solutions[0].text
        sampled = engine.counts["requests"] / (len(PROBLEMS) + 1)
        assert sampled == requests if requests else sampled < limit
        total = sum(one.usage.completion_tokens for one in [*solutions, solutions[0]])
        assert total == engine.counts["completion_tokens"]
        last, first = record.attempts["refinement"], solutions[0]
        assert first.rounds[1] == last and len(record.texts["refinement"]) == len(last)
        if requests != 2:
            assert first.answers[0].votes == max(one.votes for one in last) > 0
            assert Counter(one.votes for one in last if one.group == first.answers[0].group) == {
                first.answers[0].votes: first.answers[0].votes
            }
            shown = "\n".join([plain(first), json.dumps(as_json({"problem": "x"}, first))])
            assert "Votes of the refinements: " in shown and '\\"votes\\"' in shown


def test_a_vote_that_is_settled_early_has_the_same_answer_and_costs_less(trained_on_three):
    def solve(**more):
        with Solver(trained_on_three, FixedEngine(), num_candidates=9, max_completion_length=40, **more) as solver:
            return list(solver.solve_many(PROBLEMS))

    whole, early = solve(), solve(stop_when_agreed=1)
    assert [one.answer for one in early] == [one.answer for one in whole]
    for some, every in zip(early, whole, strict=True):
        assert some.candidates == every.candidates and len(some.rounds[1]) <= len(every.rounds[1])
        read = [(attempt.text, attempt.finished) for attempt in some.rounds[1]]
        assert read == [(attempt.text, attempt.finished) for attempt in every.rounds[1]][: len(read)]
    tokens, all_tokens = (sum(one.usage.refinement_tokens for one in run) for run in (early, whole))
    assert tokens < 0.9 * all_tokens


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_candidates": 0}, "num_candidates=0: at least 1"),
        ({"num_refinements": 0}, "num_refinements=0: at least 1"),
        ({"candidates_per_set": 0}, "candidates_per_set=0: at least 1"),
        ({"stop_when_agreed": 0.5}, "stop_when_agreed=0.5: a share above 0.5"),
        ({"stop_when_agreed": 2}, "stop_when_agreed=2: a share above 0.5 and at most 1"),
        ({"temperature": -1}, "temperature=-1: at least 0"),
        ({"mode": "best"}, "use one of refine, vote, direct"),
        ({"engine": "sglang"}, "engine='sglang' is not known"),
        ({"engine": "endpoint"}, "endpoints is not set"),
        ({"engine": "vllm", "endpoints": ["http://localhost:1/v1"]}, "leave one of the two out"),
        ({"endpoints": ["localhost"]}, "is no address"),
        ({"prompt_template": "mine"}, "prompt_template='mine' is not known"),
        ({"model": "./nowhere"}, "there is no such folder"),
    ],
)
def test_wrong_keys_are_named_before_a_model_is_loaded(keys, words):
    with pytest.raises(ValueError, match=words):
        Solver(**{"model": TINY} | keys)


def test_the_models_own_file_says_how_candidates_are_shown(tmp_path):
    (tmp_path / "gsr_config.json").write_text(json.dumps({"num_candidates": 3, "prompt_template": "tiny", "new": 1}))
    solver = Solver(str(tmp_path), FixedEngine())
    assert (solver.settings.num_candidates, solver.settings.prompt_template) == (3, "tiny")
    assert Solver(str(tmp_path), FixedEngine(), num_candidates=2).settings.num_candidates == 2
    assert solver.settings.max_completion_length == FixedEngine().max_model_length // 4
    (tmp_path / "gsr_config.json").write_text(json.dumps({"max_completion_length": 9, "max_refinement_length": 11}))
    settings = Solver(str(tmp_path), FixedEngine()).settings
    assert (settings.max_completion_length, settings.max_refinement_length) == (9, 11)
    assert Solver(str(tmp_path), FixedEngine(), max_completion_length=5).settings.max_refinement_length == 5
    for content, words in (
        ('{"max_completion_length": 0}', "max_completion_length=0: at least 1"),
        ('{"max_refinement_length": null}', "max_refinement_length=None: a value of type int"),
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"num_candidates": "4"}', "num_candidates='4'"),
        ('{"prompt_template": "tiny", "prompt_template_version": 7}', "trained on prompt_template tiny, version 7"),
    ):
        (tmp_path / "gsr_config.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            Solver(str(tmp_path), FixedEngine())


def test_transformers_streams_what_it_then_returns():
    record = Record()
    with Solver(TINY, "transformers", **KEYS, num_candidates=3) as solver:
        solution = solver.solve(PROBLEMS[0], record)
    assert record.texts["candidate"] == [one.text for one in solution.candidates]
    assert record.texts["refinement"] == [solution.text] and solution.text


@pytest.mark.vllm
def test_vllm_streams_what_it_then_returns():
    record = Record()
    with Solver(TINY, "vllm", **KEYS, rounds=2) as solver:
        solution = solver.solve(PROBLEMS[0], record)
        many = list(solver.solve_many(PROBLEMS))
        votes, sets = Record(), {"num_candidates": 6, "candidates_per_set": 3, "stop_when_agreed": 0.8}
        voted = Solver(TINY, solver.engine, **KEYS, **sets).solve(PROBLEMS[0], votes)
    assert votes.texts["candidate"] == [one.text for one in voted.candidates]
    assert votes.texts["refinement"] == [one.text for one in voted.rounds[1]] and len(voted.rounds[1]) in (2, 4, 6)
    assert record.stages == [("candidate", 0, 4), ("refinement", 1, 4), ("refinement", 2, 1)]
    assert record.texts["candidate"] == [one.text for one in solution.candidates]
    assert record.texts["refinement"] == [solution.text]
    assert len(many) == len(PROBLEMS) and all(one.usage.candidate_tokens for one in many)


def test_an_endpoint_that_gives_nothing_for_a_refinement_leaves_the_majority(monkeypatch):
    with FaultyServer() as server:
        server.refuse = lambda prompt: "refine " in prompt
        keys = {"endpoints": [server.url], "endpoint_tokenizer": TINY, "max_model_length": 512, "request_retries": 0}
        with Solver("student", **keys, **KEYS) as solver:
            solution = solver.solve(PROBLEMS[0])
    assert solution.degraded == "refinement_failed" and "refused" in solution.reason
    assert solution.answer == solution.majority_answer


def test_refinements_that_an_endpoint_refuses_leave_the_vote_to_the_others():
    refused = iter([True, True])
    with FaultyServer() as server:
        server.refuse = lambda prompt: "refine " in prompt and next(refused, False)
        keys = {"endpoints": [server.url], "endpoint_tokenizer": TINY, "max_model_length": 512, "request_retries": 0}
        with Solver("student", **keys, **KEYS, num_candidates=6, candidates_per_set=2) as solver:
            solution = solver.solve(PROBLEMS[0])
    assert solution.degraded == "fewer_refinements" and len(solution.rounds[1]) == 4
    assert solution.answers[0].votes == max(attempt.votes for attempt in solution.rounds[1])


# The command line -------------------------------------------------------------------------------------------


def test_problems_come_from_one_of_three_places(tmp_path):
    text, rows = tmp_path / "one.txt", tmp_path / "many.jsonl"
    text.write_text("What is\n1+1?\n")
    rows.write_text('{"id": 7, "problem": "1+1"}\n\n{"question": "2+2", "answer": "4"}\n')
    assert read_problems("3+3", None) == [{"problem": "3+3"}]
    assert read_problems(None, str(text)) == [{"problem": "What is\n1+1?"}]
    assert [row["problem"] for row in read_problems(None, str(rows))] == ["1+1", "2+2"]
    assert read_problems(None, None, io.StringIO("1+1\n")) == [{"problem": "1+1"}]
    assert len(read_problems(None, None, io.StringIO(rows.read_text()))) == 2
    assert read_problems(None, None, io.StringIO('{"set": 1}\nis this JSON?'))[0]["problem"].startswith("{")


def test_a_pipe_in_a_files_place_and_rows_with_odd_line_ends_are_read(tmp_path):
    pipe, rows = tmp_path / "pipe", tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "1\u2028+\x851"}\n{"problem": "2+2"}\n', encoding="utf-8")
    for content, found in (("1+1", ["1+1"]), (rows.read_text(encoding="utf-8"), ["1\u2028+\x851", "2+2"])):
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=(content,), kwargs={"encoding": "utf-8"}, daemon=True)
        writer.start()
        assert [row["problem"] for row in read_problems(None, str(pipe))] == found
        writer.join()
        pipe.unlink()
    assert len(read_problems(None, str(rows))) == 2
    with pytest.raises(ValueError, match="Is a directory: a file that can be read"):
        read_problems(None, str(tmp_path))
    assert read_problems(None, None, io.StringIO("[" * 100_000))[0]["problem"].startswith("[")


def test_a_problem_that_starts_with_a_dash_comes_after_two():
    problem, _, config = parse(["--model", TINY, "--top-p", "1", "--", "--a-b"])
    assert (problem, config.top_p) == ("--a-b", 1)
    assert '-- "-3 + 5"' in help_text()


def test_a_key_is_written_with_dashes_or_underscores_before_or_behind_the_problem(tmp_path):
    for words in ("--k 2 --json PROBLEM --model MODEL", "PROBLEM --model=MODEL --num-candidates=2 --json",
                  "--json true --num_candidates 2 --model MODEL PROBLEM"):  # fmt: skip
        argv = [{"MODEL": TINY, "PROBLEM": "1+1"}.get(word, word.replace("MODEL", TINY)) for word in words.split()]
        problem, source, config = parse(argv)
        assert (problem, source.json, source.file, config.num_candidates) == ("1+1", True, None, 2)
    file = tmp_path / "solve.yaml"
    file.write_text(f"model: {TINY}\nk2: 1\n")
    with pytest.raises(ValueError, match="unknown key k2: did you mean "):
        parse(["--config", str(file)])
    file.write_text(f"model: {TINY}\nnum_candidates: 3\nmode: vote\n")
    config = parse(["--config", str(file), "--k", "5", "--mode", "direct"])[2]
    assert (config.num_candidates, config.mode) == (5, "direct")


def test_stopping_when_agreed_stands_with_a_share_or_alone():
    for words, share in (("--stop_when_agreed 1+1", 1), ("--stop-when-agreed 0.8 1+1", 0.8), ("1+1", None),
                         ("1+1 --stop_when_agreed", 1), ("--stop_when_agreed false 1+1", None)):  # fmt: skip
        problem, _, config = parse(["--model", TINY, *words.split()])
        assert (problem, config.stop_when_agreed) == ("1+1", share)
    with pytest.raises(ValueError, match=r"stop_when_agreed=0\.4: a share above"):
        parse(["--model", TINY, "--stop_when_agreed", "0.4", "1+1"])


def test_endpoints_are_given_once_each_and_their_options_as_a_mapping():
    urls = ["http://localhost:1/v1", "http://localhost:2/v1"]
    words = ["--model", "name", "--endpoints", urls[0], "--endpoints", urls[1], "1+1"]
    problem, _, config = parse([*words, "--endpoint_options", "{reasoning_effort: low}", "--request-timeout", "1e2"])
    assert (problem, config.endpoints, config.request_timeout) == ("1+1", urls, 100)
    assert config.endpoint_options == {"reasoning_effort": "low"}
    for more, message in (
        (["--endpoint_options", "low"], "endpoint_options='low': a mapping is expected"),
        (["--top_p", "high"], "top_p='high': a number is expected"),
        (["--k", "2.5"], "num_candidates=2.5: a whole number is expected"),
        (["--json", "--file"], "--file: a value is expected"),
        (["-k", "2"], "-k is no option"),
        (["2+2"], "stray argument '2\\+2': one problem is expected"),
        (["--candidates", "2"], "unknown key candidates: did you mean num_candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            parse([*words, *more])


@pytest.mark.parametrize(
    ("problem", "content", "words"),
    [
        ("  ", None, "the problem is empty"),
        ("1+1", "", "leave one of them out"),
        (None, "", "holds no problem"),
        (None, "{", "line 1: not JSON"),
        (None, '{"problem": "1"}\n{"id": 3}', "line 2: an object with the text `problem`"),
        (None, '{"problem": 3}', "line 1: an object"),
        (None, "[" * 100_000, "line 1: not JSON"),
        (None, '{"problem": "\\ud800"}', "line 1: half a character"),
        (None, '{"problem": "1", "id": "\\ud800"}', "line 1: half a character"),
        ("\udcff", None, "the problem is not UTF-8"),
    ],
)
def test_what_is_no_problem_is_named(problem, content, words, tmp_path):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_problems(problem, str(file) if content is not None else None)


def test_bad_input_ends_with_two_and_one_message(capsys):
    for words in (["--model", "./nowhere", "1+1"], ["--model", TINY, "--file", "no.jsonl"], ["1+1"],
                  ["--model", TINY, "--top-p", "2", "1+1"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("gsr-solve: error: ")


@pytest.mark.clock
def test_help_is_quick_and_loads_nothing():
    code = (
        "import sys; from gsr_rl.serving.solve_cli import help_text; assert '--num_candidates' in help_text();"
        "from gsr_rl.serving.server import help_text; assert '--max_waiting' in help_text();"
        "print({'torch', 'vllm', 'transformers', 'fastapi', 'trl'} & set(sys.modules))"
    )
    start = time.monotonic()
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "set()"
    assert time.monotonic() - start < 5


def test_a_models_text_cannot_move_the_cursor():
    assert "\x1b" not in printable("a\x1b[2Jb\x9b1A\x07") and printable("x\ty\r\nz") == "x    y\nz"


def test_votes_are_listed_most_first():
    rows = [Attempt("", answer, True, 1) for answer in ("3", "a\x1bb", "3", None, "2", "2", "2")]
    line = votes_line(counted(rows, [0, 1, 0, None, 2, 2, 2]))
    assert line == "Votes: 2 (3), 3 (2), a\ufffdb (1), no answer (1)"


def test_a_candidate_with_one_vote_has_a_vote_not_votes():
    attempts = counted([Attempt(f"\\boxed{{{word}}}", word, True, 1) for word in ("3", "2", "2")], [0, 1, 1])
    attempts += [Attempt("", None, True, 1)]
    lines = plain(Solution("1+1", attempts[:1], [attempts], Usage())).splitlines()
    votes = [line.split(", ")[1] for line in lines if line.startswith("Candidate")]
    assert votes == ["1 vote", "2 votes", "2 votes", "0 votes"]


def test_an_answer_that_is_all_of_a_text_is_shown_as_none_in_a_box():
    unboxed = "no boxed answer"
    for text, answer, words in (("47-8=39", "47-8=39", unboxed), ("<think>x</think>4 = 4.\n", "4 = 4", unboxed),
                            (r"\boxed{5}", "5", "5"), ("it is 5.", "5", "5"), ("", None, "no answer")):  # fmt: skip
        assert short(Attempt(text, answer, True, 1)) == words


def test_a_long_word_is_shown_whole_in_a_narrow_box():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60)
    word = "47-8=39+9=48+5=53*3=59-8=51*7=57"
    attempts = [Attempt(word, "57", True, 9, votes=1)] * 2
    console.print(boxes(console, "candidate", [word, "x"], attempts, None))
    shown = console.file.getvalue()
    assert "…" not in shown and "".join(line[2:28].strip() for line in shown.splitlines()[1:-1]).startswith(word[:26])
    assert word[26:] in shown and "57, 1 vote" in shown


@pytest.mark.parametrize(("candidates", "refinements"), [(4, 1), (4, 4), (16, 9)])
def test_a_small_terminal_shows_the_refinement_while_it_is_sampled(candidates, refinements):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, height=24)
    display = Terminal(console, "What is 1+1?")
    attempts = [Attempt("long\n" * 20, "2", True, 40, votes=4, group=0)] * candidates
    display.started("candidate", 0, candidates)
    display.finished("candidate", 0, attempts)
    display.started("refinement", 1, refinements)
    for index in range(refinements):
        display.text("refinement", index, "line\n" * 20 + f"the end of {index}")
    with console.capture() as captured:
        console.print(display._picture())
    shown = captured.get().rstrip("\n").splitlines()
    assert len(shown) <= 24 and "refining, round 1" in shown[-1]
    assert all(f"the end of {index}" in "".join(shown) for index in range(refinements))


def test_waves_are_added_to_what_a_terminal_shows():
    from rich.console import Console

    display = Terminal(Console(file=io.StringIO(), width=100, height=60), "What is 1+1?")
    first = counted([Attempt("first", "2", True, 1), Attempt("second", "3", True, 1)], [0, 1])
    for stage, number in (("candidate", 0), ("refinement", 1)):
        display.started(stage, number, 2)
        display.finished(stage, number, first)
    display.started("candidate", 0, 3)
    display.text("candidate", 2, "third")
    assert display._texts == {"candidate": ["first", "second", "third"], "refinement": ["first", "second"]}
    display.started("refinement", 2, 1)
    assert display._texts["refinement"] == [""], "a further round starts anew"
    display._picture()


WORDS = ["--model", TINY, "--prompt-template", "tiny", "--max-completion-length", "40", "--engine", "transformers"]
SOLVE = [sys.executable, "-m", "gsr_rl.serving.solve_cli", *WORDS]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "LINES": "40"}


def test_json_is_one_object_a_problem_and_nothing_else(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "problem": p, "answer": "1"}) + "\n" for i, p in enumerate(PROBLEMS)))
    done = subprocess.run([*SOLVE, "--json", "--k", "2", "--file", str(rows)], cwd=ROOT, env=ENVIRONMENT, timeout=120,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["id"] for one in found] == list(range(12)) and [one["problem"] for one in found] == PROBLEMS
    for one in found:
        assert len(one["candidates"]) == 2 and one["reference"] == "1" and one["error"] is None
        assert one["usage"]["completion_tokens"] > 0


def test_a_pipe_gets_plain_text(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROBLEMS[0]))
    with pytest.raises(SystemExit) as end:
        main(WORDS)
    output, errors = capfd.readouterr()
    assert end.value.code == 0, errors
    assert "\x1b" not in output and f"Problem: {PROBLEMS[0]}" in output
    for words in ("Candidate 4: answer ", "Votes: ", "Answer: ", "Cost: 4 candidates: "):
        assert words in output


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def test_ctrl_c_in_a_terminal_ends_cleanly():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SOLVE, "--max-completion-length", "200", "--rounds", "50", PROBLEMS[0]], cwd=ROOT, env=ENVIRONMENT,
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests' own background may ignore it
    )  # fmt: skip
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 120
    while b"Candidate 4" not in seen and time.monotonic() < deadline:
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()  # a terminal goes on reading
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors and errors.endswith(b"gsr-solve: interrupted\n")


@pytest.fixture(scope="module")
def demo_model(launch, tmp_path_factory):
    """The model of `make demo` if there is one, else its warm start, made here."""
    if (ROOT / "runs/demo/grpo/model.safetensors").is_file():
        return str(ROOT / "runs/demo/grpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "recipes/tiny"))
        chain = importlib.import_module("chain")
    folder = tmp_path_factory.mktemp("demo")
    launch(*chain.distill(folder / "distill", 0)[1:], timeout=3000)
    command = chain.sft(folder / "sft", 0, chain.BASE, f"{folder}/distill/sft_rows.jsonl")
    launch(*command[command.index("recipes/sft_gsr.py") :], accelerate="ddp_cpu", timeout=3000)
    return str(folder / "sft")


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_sixteen_candidates_are_right_more_often_than_four(demo_model, tmp_path, launch):
    rows = tiny_world.generate("mix", "validation", 200, 0)
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def solve(*words: str) -> tuple[float, float]:
        """The share of right answers, and tokens of completions."""
        command = ["-m", "gsr_rl.serving.solve_cli", "--model", demo_model, "--engine_dtype", "float32", "--json"]
        command += ["--file", str(file), "--temperature", "1", "--top_p", "1"]  # as the model was trained
        printed = launch(*command, *words, timeout=1800)
        found = [json.loads(line) for line in printed.splitlines() if line.startswith('{"id"')]
        right = rewards.grade([one["text"] for one in found], [row["answer"] for row in rows])
        return sum(right) / 200, sum(one["usage"]["completion_tokens"] for one in found)

    four, _ = solve("--num_candidates", "4")
    sixteen, tokens = solve("--num_candidates", "16")
    early, fewer = solve("--num_candidates", "16", "--stop_when_agreed", "0.8")
    assert sixteen > four and early > four, (four, sixteen, early)
    assert fewer < 0.75 * tokens


@pytest.mark.parametrize(("words", "chosen"), [([], "transformers"), (["--engine", "vllm"], "vllm")])
def test_gsr_solve_says_how_many_problems_it_has_where_the_engine_is_chosen(words, chosen, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "gsr_rl.engines.open.automatic_kind", lambda model, problems: "transformers" if problems == 1 else "vllm"
    )

    def solver(**keys):
        opened.append(keys["engine"])
        raise ValueError("enough")

    monkeypatch.setattr("gsr_rl.serving.solver.Solver", solver)
    with pytest.raises(SystemExit):
        main(["--model", str(TINY), *words, "1+1"])
    assert opened == [chosen]
