"""A short run of the fuzzers, with the same inputs each time; `make attack` takes others.

A failure names its seed, or the smallest body. Beside each fuzzer an honest stream keeps flowing.
"""

from collections.abc import Iterator

import pytest

from tests.attacks.certificates import TlsFiles, good, trusting
from tests.attacks.fuzz import all_of, http1, http2, json_bodies
from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import ask, request
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

NUM_HTTP1 = 1200
NUM_HTTP1_OVER_TLS = 60
NUM_HTTP2 = 200
NUM_BODIES = 300
HEALTH = request("GET", "/health")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(**STEADY) as server:
        yield server
        assert "Traceback" not in "".join(server.output)
        assert "a request failed" not in "".join(server.output)


async def test_bytes_that_are_almost_http_1(server: RunningServer) -> None:
    with honest_client(server):
        assert await all_of(http1(server, seed) for seed in range(NUM_HTTP1)) == []
        assert ask(server.port, HEALTH).status == 200


async def test_bytes_that_are_almost_http_1_over_tls(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    flags = TlsFiles(tmp_path_factory.mktemp("tls"), good()).flags()
    with serve(**STEADY, **flags) as server, honest_client(server, context=trusting()):
        seeds = range(NUM_HTTP1, NUM_HTTP1 + NUM_HTTP1_OVER_TLS)
        assert await all_of(http1(server, seed, trusting()) for seed in seeds) == []


async def test_frames_that_are_almost_http_2() -> None:
    with serve("--http2", **STEADY) as server, honest_client(server):
        assert await all_of(http2(server, seed) for seed in range(NUM_HTTP2)) == []
        assert ask(server.port, HEALTH).status == 200
        statuses = Scrape(server).by("penstock_http_requests_total", "status")
    assert sum(statuses.values()) > NUM_HTTP2 / 2, statuses  # many reach the routes
    assert not [status for status in statuses if status.startswith("5")]


def test_bodies_that_are_almost_right(server: RunningServer) -> None:
    with honest_client(server):
        json_bodies(server, NUM_BODIES, derandomize=True)
