"""Floods of every kind: a newcomer gets the first slot that is freed after it arrives."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks.honest import NUM_TOKENS, honest_client
from tests.support.keyed import Keys
from tests.support.raw import Connection, ask, cancel_stream, open_stream
from tests.support.servers import RunningServer, serve
from tests.support.slow_reading import ENGINE
from tests.support.waiting import eventually

FLOODERS = ("flood1", "flood2", "flood3")
NEWCOMERS = tuple(f"new{number}" for number in range(3))
CONNECTIONS_EACH = 6
# The flood's request that runs when a newcomer arrives, and those that end until this busy process
# has read the newcomer's first token. In the order of arrival it would be all 18.
MAX_BEFORE = 9
SOON_S = 40.0

Attack = Callable[[RunningServer, Keys, str], None]


@contextlib.contextmanager
def serving(keys: Keys, slots: int) -> Iterator[RunningServer]:
    """Serve with answers that never end, 50 tokens a second."""
    options = [f"length={NUM_TOKENS}", f"context_length={2 * NUM_TOKENS}", "interval=0.02"]
    with serve(engine=ENGINE, keys=keys.path, slots=slots, engine_arg=options) as server:
        yield server


def test_newcomers_get_the_first_slots_before_everybody_who_had_one_or_waits(
    tmp_path: Path,
) -> None:
    """One slot is freed at a time, and whoever gets it keeps it: so the order is exact."""
    keys = Keys(tmp_path / "keys.toml", *FLOODERS, *NEWCOMERS, "admin")
    with serving(keys, slots=1) as server, contextlib.ExitStack() as stack:

        def opened(name: str) -> tuple[Connection, str]:
            sent = keys.generate(name, max_tokens=NUM_TOKENS)
            connection, stream_id = open_stream(server.port, sent)
            stack.enter_context(connection)
            return connection, stream_id

        # The first request of each flooder is a newcomer's as well, and arrives before the others.
        flood = [opened(name) for name in FLOODERS * 3]
        newcomers = [opened(name) for name in NEWCOMERS]
        holder = ""
        for connection, stream_id in (*flood[: len(FLOODERS)], *newcomers):
            if holder:
                cancel_stream(server.port, holder, keys.header("admin"))
            assert next(connection.events())["index"] == 0
            holder = stream_id


def whole(prompt: str, max_tokens: int, status: int) -> Attack:
    """Return an attack with whole answers: the next request follows when one has ended."""

    def send(server: RunningServer, keys: Keys, name: str) -> None:
        sent = keys.generate(name, prompt, max_tokens=max_tokens, stream=False)
        assert ask(server.port, sent).status == status

    return send


def cancelled(server: RunningServer, keys: Keys, name: str) -> None:
    """Open a stream and leave as soon as its response begins."""
    connection, _ = open_stream(server.port, keys.generate(name, "slow"))
    connection.close()


def reset(server: RunningServer, keys: Keys, name: str) -> None:
    """Send a request and reset the connection."""
    Connection(server.port).send(keys.generate(name, "slow")).reset()
    time.sleep(0.01)  # a hundred a second from each connection


FLOODS: dict[str, Attack] = {
    "ordinary": whole("Hello", 10, 200),
    "without a token": whole("slow refuse", 5, 422),
    "huge prompts": whole("slow" + " x" * 20_000, 1, 200),
    "cancelled": cancelled,
    "reset": reset,
}


class Flood:
    """Sends requests of `FLOODERS` on many connections, without a pause."""

    def __init__(self, server: RunningServer, keys: Keys, attack: Attack) -> None:
        self.num_ended = 0
        self.errors: list[BaseException] = []
        self._stopping = threading.Event()

        def run(name: str) -> None:
            try:
                while not self._stopping.is_set():
                    attack(server, keys, name)
                    self.num_ended += 1
            except BaseException as error:
                self.errors.append(error)

        names = FLOODERS * CONNECTIONS_EACH
        self._threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until the last requests have ended."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    newcomers = [f"{name}-{number}" for number in range(len(FLOODS)) for name in NEWCOMERS]
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    return Keys(path, *FLOODERS, *newcomers, "honest")


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[RunningServer]:
    """A server with one slot for the honest client, and one for all others."""
    with serving(keys, slots=2) as server:
        yield server


@pytest.mark.parametrize("kind", FLOODS)
def test_a_newcomer_does_not_wait_for_a_flood(server: RunningServer, keys: Keys, kind: str) -> None:
    number = list(FLOODS).index(kind)
    with honest_client(server, keys.header("honest")):
        flood = Flood(server, keys, FLOODS[kind])
        assert eventually(lambda: flood.num_ended >= len(FLOODERS))
        for name in NEWCOMERS:
            began = time.monotonic()
            with Connection(server.port) as connection:
                connection.send(keys.generate(f"{name}-{number}", max_tokens=1))
                assert connection.head().status == 200  # it is in the queue, or has a slot
                before = flood.num_ended
                assert next(connection.events())["index"] == 0
            if kind in ("cancelled", "reset"):  # most of these leave the queue without a slot
                assert time.monotonic() - began < SOON_S
            else:
                assert flood.num_ended - before <= MAX_BEFORE
        flood.stop()
