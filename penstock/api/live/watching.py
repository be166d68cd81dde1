"""The watchers of the live view: each is one response that gets an update at its own interval.

A watcher whose client has not taken the last update gets none; the next one has everything that it
has missed. So nothing queues for a slow watcher. While nobody watches, no timer runs here.
"""

import asyncio
import math
import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.live.board import NOTHING_SEEN, Board
from penstock.errors import Problem
from penstock.web.access import access_of
from penstock.web.peer import Peer

MAX_WATCHERS = 8
MIN_INTERVAL_S, MAX_INTERVAL_S, USUAL_INTERVAL_S = 0.1, 5.0, 0.5
# So soon a watcher learns that its key has ended, or that the server has drained.
CHECK_EVERY_S = 1.0


class Watchers:
    """Everybody who watches `board` now.

    `is_over` returns True once the server has ended its streams. A watcher that takes nothing for
    `stall_timeout` seconds is cut.
    """

    def __init__(self, board: Board, stall_timeout: float, is_over: Callable[[], bool]) -> None:
        self.board = board
        self.stall_timeout = stall_timeout
        self.is_over = is_over
        self._watchers: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    def enter(self, peer: Peer, interval: float, may_watch: Callable[[], bool]) -> "Watcher":
        """Return a new watcher. Raises Problem if there are too many."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise Problem(
                "too_many_watchers",
                f"{MAX_WATCHERS} clients watch this server already. Close one of them.",
                headers={"Retry-After": "5"},
            )
        watcher = Watcher(self, peer, interval, may_watch)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: "Watcher") -> None:
        """Forget a watcher. A second call does nothing."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self.board.clear()


class Watcher:
    """One client that watches: the body of its response (see `access.Rest`).

    Updates come at whole multiples of `interval`, so watchers with the same interval are in step.
    `may_watch` returns False once the client's key may no longer watch.
    """

    def __init__(
        self, watchers: Watchers, peer: Peer, interval: float, may_watch: Callable[[], bool]
    ) -> None:
        self._watchers = watchers
        self._peer = peer
        self._interval = interval
        self._may_watch = may_watch
        self._on_end: Callable[[bool], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._seen = NOTHING_SEEN
        self._is_sending = False
        self._is_last = False
        self._since = 0.0
        self._update_at = 0.0

    def begin(self, on_end: Callable[[bool], None]) -> None:
        """Send the first update at once, then one at each interval."""
        self._on_end = on_end
        self._peer.tell(self)
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._is_sending:
            if now - self._since > self._watchers.stall_timeout:
                self._peer.abort()
                self._end(was_complete=False)
        elif self._watchers.is_over() or not self._may_watch():
            self._send(now, is_last=True)
        elif now >= self._update_at:
            self._update_at = _next(now, self._interval)
            self._send(now, is_last=False)
        self._wait(now)

    def _wait(self, now: float) -> None:
        """Tick again at the next update, and at least so often that an end is noticed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._on_end is not None:
            until_update = math.inf if self._is_sending else max(0.0, self._update_at - now)
            wait = min(until_update, CHECK_EVERY_S)
            self._timer = asyncio.get_running_loop().call_later(wait, self._tick)

    def _send(self, now: float, *, is_last: bool) -> None:
        board, seen = self._watchers.board, self._seen
        self._seen = board.look(now, anew=is_last)  # nothing tells later what the last look missed
        self._is_last, self._since = is_last, now
        if not self._peer.write(board.update(seen), is_last):
            self._is_sending = True
        elif is_last:
            self._end(was_complete=True)

    def client_took(self) -> None:
        """Go on: the next update is sent at its time."""
        if self._is_sending:
            self._is_sending = False
            if self._is_last:
                self._end(was_complete=True)
            self._wait(time.monotonic())

    def client_gone(self) -> None:
        """End the response."""
        self._end(was_complete=False)

    def client_may_be_gone(self) -> None:
        """Do nothing: the next update shows whether the client is there."""

    def _end(self, *, was_complete: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if self._timer is not None:
            self._timer.cancel()
        self._watchers.leave(self)
        if on_end is not None:
            self._peer.tell(None)
            on_end(was_complete)


class WatcherResponse(Response):
    """The response that a watcher writes."""

    def __init__(self, watcher: Watcher, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = headers
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the head to the HTTP server, and leave the body to the access record."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        except BaseException:
            self._watcher.client_gone()
            raise
        access_of(scope).rest = self._watcher


def _next(now: float, interval: float) -> float:
    """Return the next multiple of `interval` after `now`."""
    return (math.floor(now / interval) + 1) * interval
