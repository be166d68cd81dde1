"""A client of `GET /live/events`, which keeps what it is told as a page would."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.raw import Connection, request

MAX_EVENTS = 600
"""So many updates at most until a test's condition must hold: a minute, at ten a second."""


class Watch:
    """A connection that watches a server. `streams` has the rows by their ids."""

    def __init__(self, port: int, *headers: str, interval: float = 0.1) -> None:
        self.connection = Connection(port)
        self.connection.send(request("GET", f"/live/events?interval={interval}", *headers))
        head = self.connection.head()
        assert head.status == 200, self.connection.rest()
        assert head.headers["content-type"].startswith("text/event-stream")
        self.streams: dict[str, dict[str, Any]] = {}
        self.marks: list[dict[str, Any]] = []
        self.seconds: list[dict[str, Any]] = []
        self.server: dict[str, Any] = {}
        self.time = 0.0
        """When the server made the last update, in seconds since 1970."""
        self.num_events = 0
        self._events = self._updates()
        assert self.next() == "snapshot"

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def next(self) -> str:
        """Take the next event; return its name. Raises StopIteration at the end."""
        name, data = next(self._events)
        self.num_events += 1
        if name == "snapshot":
            self.streams, self.marks, self.seconds = {}, [], []
        self.streams.update({row["id"]: row for row in data["streams"]})
        self.marks += data["marks"]
        self.seconds += data["seconds"]
        self.server, self.time = data["server"], data["time"]
        return name

    def until(self, is_so: Callable[[], bool]) -> None:
        """Take events until `is_so` returns True."""
        for _ in range(MAX_EVENTS):
            if is_so():
                return
            self.next()
        states = [row["state"] for row in self.streams.values()]
        raise AssertionError((states[:10], self.marks, self.server))

    def until_state(self, stream_id: str, state: str) -> dict[str, Any]:
        """Take events until a stream is in this state; return its row."""
        self.until(lambda: self.streams.get(stream_id, {}).get("state") == state)
        return self.streams[stream_id]

    def _updates(self) -> Iterator[tuple[str, dict[str, Any]]]:
        rest = b""
        for data in self.connection.chunks():
            *frames, rest = (rest + data).split(b"\n\n")
            for frame in frames:
                name, body = frame.split(b"\n", 1)
                yield (
                    name.removeprefix(b"event: ").decode(),
                    json.loads(body.removeprefix(b"data: ")),
                )
        assert rest == b"", "the stream ended within a frame"
