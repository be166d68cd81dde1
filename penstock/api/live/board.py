"""Everything that the live view shows, looked at while somebody watches, and encoded once for all.

In: the server's streams, state and history. Out: updates as Server-Sent Events. A watcher keeps a
*cursor*, which says what it has seen, and gets everything that has changed since: however slow it
is, nothing waits for it. Watchers in step have the same cursor, so their update is encoded once.
Not known here: watchers, HTTP.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from penstock.api.live.rows import Followed, Row
from penstock.observe.history import History, Mark, Now, Second
from penstock.stream.registry import Streams

SHOWN_AFTER_END_S = 5.0
"""How long a stream is shown after its end."""
MAX_ROWS = 1000
"""How many streams one event has at most: clients bound what they parse at once."""
MIN_LOOK_S = 0.05
"""Watchers that come so soon after each other share a look."""


class ServerState(msgspec.Struct):
    """The server, as the live view shows it (see docs/live.md)."""

    model: str
    process: int
    processes: int
    engine: str
    engine_restarts: int
    slots: int
    running: int
    waiting: int
    draining: bool
    memory_full: bool
    store: str


class Update(msgspec.Struct):
    """The data of an event: all of it in a `snapshot`, what is new in a `change`."""

    time: float
    server: ServerState
    streams: list[Row]
    seconds: list[Second]
    marks: list[Mark]


class Cursor(NamedTuple):
    """What a watcher has seen: looks, seconds and marks. The default is a new watcher's."""

    tick: int = -1
    seconds: int = 0
    marks: int = 0


NOTHING_SEEN = Cursor()


class Board:
    """The streams and the state of one server. It holds nothing while nobody looks."""

    def __init__(
        self,
        streams: Streams,
        history: History,
        model: Callable[[], str],
        num_processes: Callable[[], int],
    ) -> None:
        self._streams = streams
        self._history = history
        self._model = model
        self._num_processes = num_processes
        self._followed: dict[str, Followed] = {}
        self._ended: dict[str, tuple[Followed, float]] = {}
        self._now = Now()
        self._tick = 0
        self._looked_at = 0.0
        # A watcher that has seen less has missed the end of a stream that is no longer shown.
        self._forgotten = -1
        self._encoder = msgspec.json.Encoder()
        self._encoded: dict[Cursor, bytes] = {}

    def look(self, now: float, *, anew: bool = False) -> Cursor:
        """Look at the server, unless that was done just now. Return the cursor of all there is.

        With `anew`, look in any case.
        """
        if anew or now - self._looked_at >= MIN_LOOK_S:
            self._looked_at = now
            self._tick += 1
            self._encoded.clear()
            self._follow(now)
        return Cursor(self._tick, self._history.num_seconds, self._history.num_marks)

    def update(self, seen: Cursor) -> bytes:
        """Return the event with everything after `seen`; call `look` before."""
        event = self._encoded.get(seen)
        if event is None:
            event = self._encoded[seen] = self._encode(seen)
        return event

    def clear(self) -> None:
        """Forget everything: nobody looks any more."""
        self._followed.clear()
        self._ended.clear()
        self._encoded.clear()
        self._forgotten = self._tick

    def _follow(self, now: float) -> None:
        tick, followed = self._tick, self._followed
        self._now = self._history.look()
        engine_is_up = self._now.engine == "ready" and not self._streams.is_recovering
        open_streams = self._streams.open_streams()
        for stream in open_streams:
            each = followed.get(stream.id)
            if each is None:
                each = followed[stream.id] = Followed(stream, self._model(), now, tick)
            each.look(now, tick, engine_is_up=engine_is_up)
        if len(followed) > len(open_streams):
            self._end(set(followed).difference(stream.id for stream in open_streams), now)
        while self._ended:
            stream_id, (each, ended_at) = next(iter(self._ended.items()))
            if now - ended_at < SHOWN_AFTER_END_S:
                break
            del self._ended[stream_id]
            self._forgotten = max(self._forgotten, each.changed_at)

    def _end(self, stream_ids: set[str], now: float) -> None:
        for stream_id in stream_ids:
            each = self._followed.pop(stream_id)
            ending = self._streams.kept.ending_of(stream_id)
            each.end(None if ending is None else ending.reason, self._tick)
            self._ended[stream_id] = (each, now)

    def _encode(self, seen: Cursor) -> bytes:
        is_snapshot = seen.tick < self._forgotten or seen.tick < 0
        tick = -1 if is_snapshot else seen.tick
        rows = [each.row for each in self._followed.values() if each.changed_at > tick]
        rows += [each.row for each, _ in self._ended.values() if each.changed_at > tick]
        update = Update(
            round(time.time(), 3),
            self._server(),
            rows[:MAX_ROWS],
            self._history.seconds_after(0 if is_snapshot else seen.seconds),
            self._history.marks_after(0 if is_snapshot else seen.marks),
        )
        events = [self._event("snapshot" if is_snapshot else "change", update)]
        for begin in range(MAX_ROWS, len(rows), MAX_ROWS):
            part = rows[begin : begin + MAX_ROWS]
            events.append(self._event("change", Update(update.time, update.server, part, [], [])))
        return b"".join(events)

    def _event(self, name: str, update: Update) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), self._encoder.encode(update))

    def _server(self) -> ServerState:
        state, fleet = self._now, self._streams.fleet
        return ServerState(
            self._model(),
            os.getpid(),
            self._num_processes(),
            state.engine,
            state.restarts,
            self._streams.admission.num_slots,
            state.running,
            state.waiting,
            state.draining,
            state.memory_is_full,
            "" if fleet is None else "up" if state.store_up else "down",
        )
