"""The engine's process is killed, stopped or crashed under real clients, which see only a pause.

A greedy answer of the built-in model must be the undisturbed answer, token for token. The prompts
lead to no two tokens that are almost equally likely: between such tokens, llama.cpp's choice
depends on how many tokens it computes at once, with or without an interruption.
"""

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import requests

from tests.support.hurried import ENGINE, Hurry
from tests.support.raw import ask, generate, open_stream, text_of
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually
from tests.support.withheld import WITHHELD

PATIENCE_S = 60.0
FIRST_TOKENS = "penstock_engine_time_to_first_token_seconds_count"
PROMPTS = ["Pim the fox", "A boy called Tom", "In winter", "Near the sea"]


def read(server: RunningServer, body: bytes) -> list[dict[str, Any]]:
    """Open a stream and return all its events."""
    connection, _ = open_stream(server.port, body)
    with connection:
        return list(connection.events())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "segfault"])
def test_the_built_in_model_s_streams_go_on_as_if_nothing_had_been(number: signal.Signals) -> None:
    with serve(slots=2) as server:  # two streams run, two wait
        bodies = [
            generate(prompt, temperature=0, max_tokens=400, stop=["\N{BLACK STAR}"])
            for prompt in PROMPTS
        ]
        whole = [read(server, body) for body in bodies]
        connections = [open_stream(server.port, body)[0] for body in bodies]
        first = connections[0].events()
        history = [next(first)]
        for _ in range(3):  # three kills, each after 40 more tokens
            history += [next(first) for _ in range(40)]
            before = server.engine_pid()
            os.kill(before, number)
            assert eventually(lambda before=before: new_engine(server, before))  # type: ignore[misc] # a default binds
        histories = [history + list(first)]
        histories += [list(connection.events()) for connection in connections[1:]]
        for connection in connections:
            connection.close()
    for disturbed, undisturbed in zip(histories, whole, strict=True):
        assert text_of(disturbed) == text_of(undisturbed)
        assert [event["index"] for event in disturbed] == list(range(len(disturbed)))
        assert disturbed[-1]["finish_reason"] == undisturbed[-1]["finish_reason"]
        for end in (disturbed[-1], undisturbed[-1]):  # the caches differ
            assert 0 <= end["usage"].pop("cached_tokens") < end["usage"]["prompt_tokens"]
        assert disturbed[-1]["usage"] == undisturbed[-1]["usage"]
        assert "reproducible" not in disturbed[-1]


def new_engine(server: RunningServer, before: int) -> bool:
    children = psutil.Process(server.pid).children()
    return any(child.pid != before for child in children)


def test_a_seeded_sample_goes_on_and_says_that_its_seed_no_longer_gives_it(
    tmp_path: Path,
) -> None:
    hurry = Hurry(tmp_path / "hurry")
    with serve(engine=ENGINE, mock_interval=1, engine_arg=[hurry.argument]) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=30, seed=1))
        with connection:
            events = connection.events()
            next(events)
            os.kill(server.engine_pid(), signal.SIGKILL)
            hurry.now()
            *deltas, end = events
    assert [event["index"] for event in deltas] == list(range(1, 30))
    assert end["finish_reason"] == "length"
    assert end["reproducible"] is False


def test_a_client_that_waits_for_the_whole_answer_gets_it() -> None:
    with serve(engine="mock", mock_interval=0.02) as server:
        undisturbed = ask(server.port, generate(stream=False)).json()["text"]
        streamed, _ = open_stream(server.port, generate())
        with streamed:
            next(streamed.events())  # its first token
            before = server.engine_pid()
            answer: list[Any] = []
            whole = Thread(
                target=lambda: answer.append(ask(server.port, generate(stream=False)).json())
            )
            whole.start()
            scrape_until(server, lambda scrape: scrape(FIRST_TOKENS) == 3)
            os.kill(before, signal.SIGKILL)
            whole.join()
    assert answer[0]["text"] == undisturbed


def test_a_hung_engine_is_killed_and_its_streams_go_on(tmp_path: Path) -> None:
    hurry = Hurry(tmp_path / "hurry")
    flags = {"mock_interval": 0.5, "engine_arg": [hurry.argument], "engine_timeout": 2}
    with serve(engine=ENGINE, **flags) as server:
        hurry.now()
        undisturbed = read(server, generate())
        with hurry.over():
            connection, _ = open_stream(server.port, generate())
            events = connection.events()
            disturbed = [next(events) for _ in range(5)]
            hung = server.engine_pid()
            os.kill(hung, signal.SIGSTOP)
        with connection:
            disturbed += list(events)
        assert text_of(disturbed) == text_of(undisturbed)
        assert server.engine_pid() != hung
        assert server.has_said("silent")


def test_an_idle_engine_is_never_taken_for_hung() -> None:
    with serve(engine="mock", mock_interval=0, engine_timeout=2) as server:
        before = server.engine_pid()
        time.sleep(5)  # more than twice the silence that an engine may keep
        assert ask(server.port, generate(stream=False)).status == 200
        assert server.engine_pid() == before


def test_new_requests_are_told_to_come_back_while_the_engine_restarts(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.touch()
    with serve(engine=WITHHELD, engine_arg=[f"file={model}"]) as server:
        connection, _ = open_stream(server.port, generate())
        with connection:
            next(connection.events())
            model.unlink()  # the engine cannot come back before the assertions
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert eventually(lambda: server.readiness() == 503)
            refused = ask(server.port, generate())
            assert refused.status == 503
            assert refused.json()["code"] == "engine_down"
            assert int(refused.headers["retry-after"]) > 0
            model.touch()
            assert eventually(lambda: server.readiness() == 200)


@pytest.mark.parametrize("fault", ["die_at=5", "hang_at=5"])
def test_a_request_that_always_takes_the_engine_down_ends_with_one_error(fault: str) -> None:
    """The engine dies at the sixth token: the request is continued, tried alone, then failed."""
    with serve(engine="mock", mock_interval=0.01, engine_timeout=1, engine_arg=[fault]) as server:
        connection, _ = open_stream(server.port, generate())
        with connection:
            *deltas, end = connection.events()
        assert [event["index"] for event in deltas] == [0, 1, 2, 3, 4]
        assert end["finish_reason"] == "error"
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is False
        # A client that waits for the whole answer gets the same error.
        whole: dict[str, object] = {"prompt": "Hi", "stream": False}
        assert eventually(lambda: server.readiness() == 200)
        problem = requests.post(f"{server.url}/generate", json=whole, timeout=PATIENCE_S).json()
        assert (problem["code"], problem["retry_safe"]) == ("engine_died", False)
        assert eventually(lambda: server.readiness() == 200)
        answer = requests.post(f"{server.url}/v1/completions", json=whole, timeout=PATIENCE_S)
        error = answer.json()["error"]
        assert (error["code"], error["retry_safe"]) == ("engine_died", False)
        # Other requests are served again.
        assert eventually(lambda: server.readiness() == 200)
        answer = requests.post(
            f"{server.url}/generate",
            json={"prompt": "x", "max_tokens": 4, "stream": False},
            timeout=PATIENCE_S,
        )
        assert answer.json()["usage"]["completion_tokens"] == 4


def test_streams_end_with_one_error_when_the_engine_stays_away(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.touch()
    with serve(engine=WITHHELD, engine_arg=[f"file={model}"], engine_restart_timeout=1.0) as server:
        connection, stream_id = open_stream(
            server.port, generate("Once upon a time", max_tokens=1000, resumable=True)
        )
        with connection:
            events = connection.events()
            next(events)
            model.unlink()
            os.kill(server.engine_pid(), signal.SIGKILL)
            *_, end = events
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is True
        body = requests.get(f"{server.url}/streams/{stream_id}", timeout=PATIENCE_S).text
        assert json.loads(body.rstrip().rpartition("data: ")[2]) == end
        assert server.readiness() == 503
