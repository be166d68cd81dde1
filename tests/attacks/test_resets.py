"""Requests whose clients reset the connection: nothing of them is left."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import Connection, ask, generate, post
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

MIB = 1024 * 1024
NUM_THREADS = 4
NUM_BURSTS = 5
BURST = 40
"""Connections that are reset together: 800 for each kind of request."""
MOST_GROWTH = 300 * MIB
"""The server had grown by 1.6 GB before."""
CHAT = {"messages": [{"role": "user", "content": "Hello " * 1000}], "max_tokens": 100_000}
LARGE = json.dumps({"prompt": "a" * 300_000, "max_tokens": 100_000}).encode()
REQUESTS = {
    "streamed": generate(max_tokens=100_000),
    "whole": generate(max_tokens=100_000, stream=False),
    "a chat": post(json.dumps(CHAT).encode(), path="/v1/chat/completions"),
    "half a body": generate("a" * 5000)[:-100],
    "half a large body": post(LARGE)[:-100_000],
    "a large body": post(LARGE),
}


@pytest.fixture(scope="module", params=["ours", "granian"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server with four slots, so that most requests wait."""
    flags = ["--http2"] if request.param == "granian" else []
    with serve(*flags, slots=4, **STEADY) as server:
        yield server


def reset_storm(server: RunningServer, sent: bytes, pause: float) -> None:
    """Send requests in bursts on connections of their own, and reset these after `pause` s."""

    def storm() -> None:
        for _ in range(NUM_BURSTS):
            connections = []
            for _ in range(BURST):
                with contextlib.suppress(OSError):
                    connections.append(Connection(server.port).send(sent))
            time.sleep(pause)  # some requests are read, some started, some not
            for connection in connections:
                connection.reset()

    threads = [threading.Thread(target=storm) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_reset_requests_leave_nothing_and_newcomers_get_their_turns(server: RunningServer) -> None:
    with honest_client(server):
        reset_storm(server, REQUESTS["whole"], 0)  # warm
        before = int(psutil.Process(server.pid).memory_info().rss)
        for number, sent in enumerate(REQUESTS.values()):
            reset_storm(server, sent, number % 3 * 0.005)
            answer = ask(server.port, generate(max_tokens=1, stream=False))
            assert answer.status == 200
        scrape = scrape_until(server, only_the_honest)
        assert scrape("penstock_memory_held_bytes", kind="bodies") == 0
        assert int(psutil.Process(server.pid).memory_info().rss) - before < MOST_GROWTH
        assert eventually(lambda: psutil.Process(server.pid).num_fds() < 100)


def only_the_honest(scrape: Scrape) -> bool:
    """Return True if only the honest stream is open, and no body is under way."""
    open_streams = scrape("penstock_streams_running") + scrape("penstock_streams_waiting")
    return open_streams == 1 and not scrape("penstock_memory_held_bytes", kind="bodies")
