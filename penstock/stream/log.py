"""A stream's log: a list of events that only grows, ended by exactly one terminal event.

The log is the only buffer between the engine and the socket. Readers take the events after their
cursor; a cursor is the index of the next event to read. The log knows nothing about time, tasks or
its readers.
"""

from collections.abc import Callable
from typing import NoReturn

from penstock.events import Delta, Event, TerminalEvent
from penstock.stream.footprint import events_bytes


class Log:
    """Deltas followed by one `Finish` or `Failure`. Events are never changed or removed."""

    __slots__ = ("_events", "_num_bytes", "_num_counted", "append", "terminal")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._num_counted = 0
        self._num_bytes = 0
        self.terminal: TerminalEvent | None = None
        # The list's own method: it is called for every token.
        self.append: Callable[[Delta], None] = self._events.append
        """Append a delta. Raises RuntimeError after the terminal event."""

    @property
    def events(self) -> list[Event]:
        """The events themselves, for whoever appends deltas and knows that there is no end yet."""
        return self._events

    def __len__(self) -> int:
        return len(self._events)

    def end(self, event: TerminalEvent) -> None:
        """Append the terminal event. Raises RuntimeError if the log already has one."""
        if self.terminal is not None:
            _refuse(event)
        self.terminal = event
        self._events.append(event)
        self.append = _refuse

    def after(self, cursor: int, limit: int | None = None) -> list[Event]:
        """Return the events from index `cursor` on, `limit` at most."""
        return self._events[cursor : None if limit is None else cursor + limit]

    def text(self) -> str:
        """Return the answer so far: the text of all deltas, without reasoning and tool calls."""
        return "".join([event.text for event in self._events if type(event) is Delta])

    def num_bytes(self) -> int:
        """Return how much memory the log takes, in bytes. It looks at each event once."""
        new = self._events[self._num_counted :]
        self._num_bytes += events_bytes(new)
        self._num_counted += len(new)
        return self._num_bytes


def _refuse(event: Event) -> NoReturn:
    raise RuntimeError("this log already has its terminal event")
