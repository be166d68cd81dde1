"""Watchers and the board, without HTTP: what a slow watcher gets, and what is encoded how often."""

import asyncio
import json
import time
from typing import Any

from penstock.api.live.board import MAX_ROWS, NOTHING_SEEN, SHOWN_AFTER_END_S, Board, Cursor
from penstock.api.live.watching import MIN_INTERVAL_S, Watcher, Watchers
from penstock.observe.history import History, Now
from penstock.request import Request
from penstock.stream.registry import Limits, Streams
from penstock.web.peer import Listener
from tests.support.scripted import ScriptedEngine, opened

Event = tuple[str, dict[str, Any]]


class Client:
    """A watcher's client, which takes everything at once or nothing until `take`."""

    descriptor = -1
    holds_task = False

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.was_aborted = asyncio.Event()
        self._listener: Listener | None = None

    def write(self, data: bytes, is_last: bool) -> bool:
        self.events.put_nowait(parsed(data))
        return self.takes

    def write_rest(self, data: bytes) -> bool:
        raise NotImplementedError

    def take_whole_body(self) -> bytes | None:
        raise NotImplementedError

    def tell(self, listener: Listener | None) -> None:
        self._listener = listener

    def take(self) -> None:
        self.takes = True
        assert self._listener is not None
        self._listener.client_took()

    def abort(self) -> None:
        self.was_aborted.set()


def parsed(data: bytes) -> Event:
    name, body = data.rstrip(b"\n").split(b"\n")
    return name.removeprefix(b"event: ").decode(), json.loads(body.removeprefix(b"data: "))


def board_of(streams: Streams) -> Board:
    return Board(streams, History(streams.meter, Now, ()), lambda: "model", lambda: 1)


def watch(watchers: Watchers, client: Client) -> Watcher:
    watcher = watchers.enter(client, MIN_INTERVAL_S, lambda: True)
    watcher.begin(lambda was_complete: None)
    return watcher


def request(name: str) -> Request:
    return Request(id=name, max_tokens=100, prompt="x")


async def test_a_watcher_that_takes_nothing_gets_one_update_for_all_that_it_missed() -> None:
    streams = Streams([ScriptedEngine()], Limits())
    stream = opened(streams, request("a"))
    stream.accepted((1,))
    watchers = Watchers(board_of(streams), 60.0, lambda: False)
    fast, slow = Client(), Client(takes=False)
    both = [watch(watchers, client) for client in (fast, slow)]
    for client in (fast, slow):
        name, data = await client.events.get()
        assert (name, [row["id"] for row in data["streams"]]) == ("snapshot", ["a"])
    for _ in range(5):
        stream.delta("word", 1, (7,))
        name, data = await fast.events.get()
        while not data["streams"]:
            name, data = await fast.events.get()
        assert name == "change"
    assert slow.events.empty()
    slow.take()
    name, data = await slow.events.get()
    assert (name, [row["tokens"] for row in data["streams"]]) == ("change", [5])
    for watcher in both:
        watcher.client_gone()
    assert len(watchers) == 0


async def test_a_watcher_that_takes_nothing_for_too_long_is_cut() -> None:
    watchers = Watchers(board_of(Streams([ScriptedEngine()], Limits())), 0.05, lambda: False)
    client = Client(takes=False)
    watch(watchers, client)
    await asyncio.wait_for(client.was_aborted.wait(), 20)
    assert len(watchers) == 0


async def test_a_watcher_that_missed_an_end_gets_a_new_snapshot() -> None:
    streams = Streams([ScriptedEngine()], Limits())
    board = board_of(streams)
    now = time.monotonic()
    opened(streams, request("a"))
    early = board.look(now)
    assert ids(board, NOTHING_SEEN) == ("snapshot", ["a"])
    streams.cancel("a")
    ended = board.look(now + 1)
    assert ids(board, early) == ("change", ["a"])
    board.look(now + 2)
    assert ids(board, ended) == ("change", [])
    board.look(now + 2 + SHOWN_AFTER_END_S)
    assert ids(board, ended) == ("change", [])  # it knows of the end
    assert ids(board, early) == ("snapshot", [])  # it does not


async def test_the_last_update_tells_what_has_ended_since_a_moment_ago() -> None:
    streams = Streams([ScriptedEngine()], Limits())
    opened(streams, request("a"))
    client = Client()
    watcher = watch(Watchers(board_of(streams), 60.0, lambda: not len(streams)), client)
    client.events.get_nowait()
    streams.cancel("a")
    watcher._tick()
    name, data = client.events.get_nowait()
    assert (name, [row["state"] for row in data["streams"]]) == ("change", ["ended"])


def ids(board: Board, seen: Cursor) -> tuple[str, list[str]]:
    name, data = parsed(board.update(seen))
    return name, [row["id"] for row in data["streams"]]


async def test_watchers_in_step_share_a_look_and_its_bytes() -> None:
    streams = Streams([ScriptedEngine()], Limits())
    board = board_of(streams)
    opened(streams, request("a"))
    now = time.monotonic()
    first = board.look(now)
    assert board.look(now + 0.01) == first
    assert board.update(NOTHING_SEEN) is board.update(NOTHING_SEEN)
    assert board.look(now + 1) != first
    assert board.update(first) is board.update(first)


async def test_a_large_snapshot_comes_in_several_events() -> None:
    streams = Streams([ScriptedEngine()], Limits())
    board = board_of(streams)
    wanted = [f"s{number}" for number in range(2 * MAX_ROWS + 1)]
    for name in wanted:
        opened(streams, request(name))
    board.look(time.monotonic())
    events = [parsed(each) for each in board.update(NOTHING_SEEN).split(b"\n\n") if each]
    assert [name for name, _ in events] == ["snapshot", "change", "change"]
    assert [row["id"] for _, data in events for row in data["streams"]] == wanted
