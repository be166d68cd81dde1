"""The cost of watching, as counts that noise cannot change: see test_costs.

Two hundred streams at ten updates a second may take 1% of a core: 5 microseconds for a stream in an
update, which is time for some 50 calls of Python and C functions. A stream on the straight path,
as nearly all are, takes a fourth of what these streams take, which are stalled.
"""

import time
from collections.abc import Iterator

import pytest

from tests.support.counting import CountedServer, counting_server
from tests.support.raw import Connection, generate, open_stream
from tests.support.watching import Watch

NUM_STREAMS = 50
CALLS_PER_STREAM_AND_UPDATE = 50.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountedServer]:
    """Serve streams whose engine falls silent after three tokens. A heartbeat comes each second."""
    folder = tmp_path_factory.mktemp("counts")
    with counting_server(
        folder, engine="mock", mock_interval=0, engine_arg=["hang_at=3"], heartbeat=1
    ) as server:
        yield server


@pytest.fixture(scope="module")
def streams(server: CountedServer) -> Iterator[list[Connection]]:
    opened = [open_stream(server.port, generate())[0] for _ in range(NUM_STREAMS)]
    yield opened
    for each in opened:
        each.close()


def test_when_the_last_watcher_has_left_the_server_does_what_it_did_before_the_first(
    server: CountedServer, streams: list[Connection]
) -> None:
    def wait_for_heartbeats() -> None:
        connection, _ = open_stream(server.port, generate())
        with connection:
            body = b""
            while body.count(b": ping") < 3:
                body += connection.chunk()

    before = server.counted(wait_for_heartbeats)["calls"]
    with Watch(server.port) as watch:
        watch.until(lambda: len(watch.streams) >= NUM_STREAMS)
    after = server.counted(wait_for_heartbeats)["calls"]
    print(f"{before:.0f} calls before and {after:.0f} after; watching takes 15,000 a second")
    assert after < 3 * before


def test_an_update_costs_little_for_each_stream(
    server: CountedServer, streams: list[Connection]
) -> None:
    with Watch(server.port) as watch, Watch(server.port) as other:
        watch.until(lambda: len(watch.streams) >= NUM_STREAMS)
        before = watch.num_events

        def watch_for_a_while() -> None:
            for _ in range(20):
                watch.next()
                other.next()

        calls = server.counted(watch_for_a_while)["calls"]
        ended = time.time()
        while watch.time < ended:  # the server has made more of them if this process stood still
            watch.next()
        num_updates = watch.num_events - before - 1
        each = calls / num_updates / NUM_STREAMS
        print(f"{each:.1f} calls for a stream in an update, for two watchers")
        assert 1 < each <= CALLS_PER_STREAM_AND_UPDATE
