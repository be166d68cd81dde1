"""Bursts against the limits of a key, beside an honest stream of another key."""

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from tests.attacks.honest import NUM_TOKENS, honest_client
from tests.support.keyed import Keys, reload_keys
from tests.support.raw import Connection, Response, ask, post
from tests.support.servers import RunningServer, serve
from tests.support.slow_reading import ENGINE

BURST = 60
PER_MINUTE = 600
LIMITED = ("limited", "unlimited", "more", "less", "refused", "choices")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys = Keys(path, "honest", *LIMITED, "max_streams", "max_resumable")
    keys.fields = {name: {"tokens_per_minute": PER_MINUTE} for name in LIMITED}
    keys.fields |= {"max_streams": {"max_streams": 3}, "max_resumable": {"max_resumable": 3}}
    keys.write()
    return keys


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[RunningServer]:
    """A server without a limit of slots: only the keys' limits hold."""
    options = [f"length={NUM_TOKENS}", f"context_length={2 * NUM_TOKENS}", "interval=0.002"]
    with serve(engine=ENGINE, keys=keys.path, engine_arg=options) as server:
        yield server


@pytest.fixture(autouse=True)
def beside_an_honest_stream(server: RunningServer, keys: Keys) -> Iterator[None]:
    with honest_client(server, keys.header("honest")):
        yield


def burst(server: RunningServer, sent: bytes) -> list[Response]:
    """Send a request on many connections at once; return the responses in the same order."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in range(BURST)]
        for connection in connections:
            connection.send(sent)
        return [connection.response() for connection in connections]


@pytest.mark.parametrize(
    ("name", "max_tokens", "granted"), [("limited", 90, None), ("unlimited", 10**6, "150")]
)
def test_a_burst_gets_the_tokens_of_a_minute_and_no_more(
    server: RunningServer, keys: Keys, name: str, max_tokens: int, granted: str | None
) -> None:
    """A limit of tokens that is larger than the key's becomes a quarter of the key's."""
    began = time.monotonic()
    responses = burst(server, keys.generate(name, max_tokens=max_tokens, stream=False))
    answered = [response for response in responses if response.status == 200]
    used = sum(response.json()["usage"]["total_tokens"] for response in answered)
    assert PER_MINUTE / 2 <= used <= PER_MINUTE * (1 + (time.monotonic() - began) / 60)
    assert {each.headers.get("x-penstock-max-tokens") for each in answered} == {granted}
    refused = [response for response in responses if response.status != 200]
    assert refused
    for response in refused:
        assert (response.status, response.json()["code"]) == (429, "too_many_tokens")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-ratelimit-limit-tokens"] == str(PER_MINUTE)


@pytest.mark.parametrize(("name", "other"), [("less", PER_MINUTE - 1), ("more", PER_MINUTE + 1)])
def test_what_was_used_stays_used_after_a_change_of_the_limit(
    server: RunningServer, keys: Keys, name: str, other: int
) -> None:
    sent = keys.generate(name, max_tokens=500, stream=False)
    assert ask(server.port, sent).status == 200
    assert ask(server.port, sent).status == 429
    keys.fields[name] = {"tokens_per_minute": other}
    keys.write()
    reload_keys(server)
    response = ask(server.port, sent)
    assert response.status == 429
    assert response.headers["x-ratelimit-limit-tokens"] == str(other)


def test_requests_without_a_token_use_up_the_tokens_too(server: RunningServer, keys: Keys) -> None:
    began = time.monotonic()
    responses = burst(server, keys.generate("refused", "slow refuse", max_tokens=20))
    refilled = PER_MINUTE * (time.monotonic() - began) / 60
    statuses = [response.status for response in responses]
    assert set(statuses) == {422, 429}
    assert statuses.count(422) <= (PER_MINUTE + refilled) / 16 + 1
    assert ask(server.port, keys.generate("refused", max_tokens=500)).status == 429


def test_a_prompt_counts_once_for_all_its_choices(server: RunningServer, keys: Keys) -> None:
    fields = {"prompt": "one two three four " * 25, "max_tokens": 5, "n": 4}
    sent = post(json.dumps(fields).encode(), keys.header("choices"), path="/v1/completions")
    response = ask(server.port, sent)
    assert response.json()["usage"]["total_tokens"] == 101 + 20
    left = int(ask(server.port, sent).headers["x-ratelimit-remaining-tokens"])
    assert PER_MINUTE - 2 * 121 <= left <= PER_MINUTE - 121


@pytest.mark.parametrize("limit", ["max_streams", "max_resumable"])
def test_a_burst_gets_as_many_streams_as_its_key_may_have(
    server: RunningServer, keys: Keys, limit: str
) -> None:
    sent = keys.generate(limit, max_tokens=NUM_TOKENS, resumable=True)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in range(BURST)]
        for connection in connections:
            connection.send(sent)
        statuses = [connection.head().status for connection in connections]
        assert sorted(statuses) == [200] * 3 + [429] * (BURST - 3)
        keys.fields[limit] = {limit: 4}
        keys.write()
        reload_keys(server)  # those that run count on
        with Connection(server.port) as fourth:
            assert fourth.send(sent).head().status == 200
            assert ask(server.port, sent).status == 429
