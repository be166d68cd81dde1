"""A stream's log: append-only events, ended by exactly one terminal event.

The only buffer between an engine and a socket. In: events. Out: everything after a cursor. A
cursor is the index of the next event to read. Not known here: time, tasks, who reads.
"""

from collections.abc import Callable
from typing import NoReturn

from penstock.events import Delta, Event, TerminalEvent, TokenLogprob

# What an event takes beside its characters, in bytes: two objects and their place in the list.
EVENT_BYTES = 160
# What a token's log probability takes, and each of those of its alternatives.
LOGPROB_BYTES = 160


class Log:
    """Deltas, then one `Finish` or `Failure`; nothing is ever changed or taken away."""

    __slots__ = ("_events", "append", "terminal")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self.terminal: TerminalEvent | None = None
        # The list's own, since it is called for every token.
        self.append: Callable[[Delta], None] = self._events.append
        """Add a delta. Raises RuntimeError after the terminal event."""

    def __len__(self) -> int:
        return len(self._events)

    def end(self, event: TerminalEvent) -> None:
        """Add the terminal event. Raises RuntimeError where there is one."""
        if self.terminal is not None:
            _refuse(event)
        self.terminal = event
        self._events.append(event)
        self.append = _refuse

    def after(self, cursor: int, limit: int | None = None) -> list[Event]:
        """The events from `cursor` on, `limit` at most: empty where it has caught up."""
        return self._events[cursor : None if limit is None else cursor + limit]

    def text(self) -> str:
        """The answer so far: all deltas joined."""
        return "".join([event.text for event in self._events if isinstance(event, Delta)])

    def num_bytes(self) -> int:
        """About how much memory the log takes."""
        return sum(
            EVENT_BYTES + (_delta_bytes(event) if isinstance(event, Delta) else 0)
            for event in self._events
        )


def _refuse(event: Event) -> NoReturn:
    raise RuntimeError("this log has its terminal event already")


def _delta_bytes(delta: Delta) -> int:
    return len(delta.text.encode()) + sum(map(_logprob_bytes, delta.logprobs))


def _logprob_bytes(logprob: TokenLogprob) -> int:
    return LOGPROB_BYTES * (1 + len(logprob.top))
