"""Requests of one rank to vLLM servers that slow down, fail, die, restart or belong to another run."""

import threading
import time

import pytest

from gsr_rl.training import server_requests
from gsr_rl.training.server_requests import ServerError, Servers, ServerStream
from tests.support.vllm_stand_in import StandIn


def client(*stand_ins, deadline=5.0, rank=0) -> Servers:
    """Connected to stand-ins that have this run's first weights."""
    servers = Servers([server.url for server in stand_ins], deadline, rank)
    servers.run, servers.pushed = "run", 1
    for server, stand_in in zip(servers.all, stand_ins, strict=True):
        stand_in.version = "run-1"
        assert servers.start(servers.connect(server, 1.0)).result() == 512
    return servers


def ask(servers, requests=1, n=2, after_first=lambda: None) -> dict:
    """The answers of so many requests at once, by name; `after_first` is called when the first has come."""
    answers: dict = {}
    with ServerStream(servers, {"temperature": 1.0}) as stream:
        names = {stream.add([1, number], n, 4) for number in range(requests)}
        while len(answers) < requests:
            had, answers = bool(answers), answers | {name: answer for name, *answer in stream.step()}
            if answers and not had:
                after_first()
        assert answers.keys() == names
    return answers


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(server_requests, "PAUSES", (0.0, 0.05, 0.1))


def test_each_completion_comes_with_its_token_ids_and_log_probabilities():
    with StandIn(lambda ids, place: [ids[1], place]) as server:
        answers = ask(client(server), requests=3)
    assert answers["2"] == [[[2, 0], [2, 1]], [[-0.5, -0.5], [-0.5, -0.5]]]


def test_requests_are_spread_by_load_and_ranks_begin_at_different_servers():
    with StandIn(seconds=0.02) as quick, StandIn(seconds=0.4) as slow:
        servers = client(quick, slow)
        with ServerStream(servers, {}) as stream:
            left = 24
            for _ in range(4):
                stream.add([1], 1, 4)
            while left:  # as many in flight all the time
                for _ in stream.step():
                    left -= 1
                    if left > 3:
                        stream.add([1], 1, 4)
        assert len(quick.prompts) > 2 * len(slow.prompts) and len(slow.prompts) >= 2
        first = len(slow.prompts)
        ask(client(quick, slow, rank=1))
        assert len(slow.prompts) == first + 1


def test_what_a_dying_server_had_in_flight_goes_to_the_others_and_nothing_is_lost():
    with StandIn(seconds=0.3) as dying, StandIn(seconds=0.05) as other:
        servers = client(dying, other)
        start = time.monotonic()
        answers = ask(servers, requests=10, after_first=dying.kill)
        assert len(answers) == 10 and time.monotonic() - start < 5
        assert list(servers.lost) == [dying.url] and len(other.prompts) == 10
        ask(servers, requests=4)
        assert len(other.prompts) == 14


def test_the_last_server_that_dies_is_an_error_with_each_ones_reason():
    with StandIn(seconds=0.1) as first, StandIn(seconds=0.3) as second:
        servers = client(first, second)

        def kill():
            first.kill()
            second.kill()

        start = time.monotonic()
        with pytest.raises(ServerError, match=rf"no vLLM server is left \({first.url}: .*; {second.url}: "):
            ask(servers, requests=6, after_first=kill)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("version", ["default", "another-run-7", "run-0"])
def test_completions_of_weights_that_nobody_knows_are_not_taken(version):
    with StandIn() as strange, StandIn() as other:
        servers = client(strange, other)
        strange.version = version
        ask(servers, requests=2)
        assert "done" in strange.calls and len(other.prompts) == 2
        assert "it has not this run's weights" in servers.lost[strange.url]


def test_newer_weights_of_this_run_are_known():
    with StandIn() as server:
        servers = client(server)
        server.version = "run-2"  # pushed by the main process while this rank samples
        ask(servers)
        assert not servers.lost


def test_a_server_that_takes_longer_than_the_deadline_is_lost_with_all_that_it_had():
    with StandIn(seconds=60) as hanging, StandIn(seconds=0.05) as other:
        servers = client(hanging, other, deadline=0.5)
        start = time.monotonic()
        ask(servers, requests=8)
        assert time.monotonic() - start < 3
        assert servers.lost == {hanging.url: "no answer within 0.5 s"}


@pytest.mark.parametrize(
    "fault", [500, 503, "cut", {"choices": []}, {"choices": [{"index": 0, "finish_reason": "abort"}]}, {}]
)
def test_an_error_a_cut_connection_and_half_an_answer_are_tried_again(fault):
    with StandIn() as server:
        server.faults["/v1/completions"] = [fault, fault]
        servers = client(server)
        ask(servers, n=1)
        assert server.calls.count("/v1/completions") == 3 and not servers.lost


def test_a_request_that_fails_again_and_again_ends_with_the_servers_words():
    with StandIn() as server:
        server.faults["/v1/completions"] = [500] * 9
        with pytest.raises(ServerError, match=rf"{server.url}: 4 tries of a request failed, the last: .*fault 500"):
            ask(client(server))


def test_a_refused_request_is_not_tried_again():
    with StandIn() as server:
        server.faults["/v1/completions"] = [400]
        with pytest.raises(ServerError, match="/v1/completions: 400 fault 400"):
            ask(client(server))
        assert server.calls == ["/v1/completions"]


def test_requests_that_are_left_are_taken_back():
    with StandIn(seconds=0.2) as server:
        servers = client(server)
        with ServerStream(servers, {}) as stream:
            stream.add([1], 1, 4)
            while not server.in_flight:
                time.sleep(0.01)
        time.sleep(0.4)
        assert "done" not in server.calls and not server.in_flight
        assert servers.all[0].in_flight == 0


def test_a_step_can_be_ended_from_another_thread():
    with StandIn(seconds=30) as server, ServerStream(client(server), {}) as stream:
        stream.add([1], 1, 4)
        threading.Timer(0.1, stream.wake).start()
        start = time.monotonic()
        assert stream.step() == [] and time.monotonic() - start < 5


def test_answers_that_come_together_share_a_look_at_the_weights():
    looks = []
    with StandIn(seconds=0.1) as server:
        servers = client(server)
        version = servers.version
        servers.version = lambda one: looks.append(one) or version(one)
        ask(servers, requests=30)
        assert 1 <= len(looks) < 20
