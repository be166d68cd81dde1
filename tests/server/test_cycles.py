"""A request leaves no reference cycle: its objects are freed at once, without a search for cycles.

The server searches for cycles seldom, so what a cycle holds would stay for long.
"""

import gc
import json
from collections.abc import Iterator

import pytest

from penstock.server import local_server
from penstock.settings import Settings
from tests.support.raw import Connection, generate, post

NUM_REQUESTS = 20
PROMPT = {"prompt": "a", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
REQUESTS = {
    "streamed": generate("a", max_tokens=2),
    "resumable": generate("a", max_tokens=2, resumable=True),
    "whole": generate("a", max_tokens=2, stream=False),
    "refused": generate("a", max_tokens=-1),
    "completion": post(json.dumps({**PROMPT, "stream": True}).encode(), path="/v1/completions"),
    "chat": post(json.dumps({**CHAT, "stream": True}).encode(), path="/v1/chat/completions"),
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server in this process, whose objects can be looked at."""
    settings = Settings(engine="mock", mock_interval=0, port=0)
    with local_server(settings) as url:
        yield int(url.rpartition(":")[2])


def ask(port: int, sent: bytes, number: int) -> None:
    with Connection(port) as connection:
        for _ in range(number):
            connection.send(sent).response()


def found_in_cycles() -> list[str]:
    """Return the kinds of Penstock's objects that only a search for cycles frees."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [
            type(each).__name__
            for each in gc.garbage
            if type(each).__module__.startswith("penstock.")
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS)
def test_a_request_leaves_no_cycle(port: int, sent: bytes) -> None:
    ask(port, sent, 3)
    gc.collect()
    gc.disable()
    try:
        ask(port, sent, NUM_REQUESTS)
        found = found_in_cycles()
    finally:
        gc.enable()
    assert found == []
