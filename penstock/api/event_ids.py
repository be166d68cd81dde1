"""The ids of events: `STREAM.N`, which is the stream's id and the event's number in the stream.

Such an id alone says how a stream goes on. So a client that sends its POST again after a cut, with
`Last-Event-ID`, continues its stream, and a new generation never starts from that. Where the
address names the stream, the number alone is enough.
"""

import re
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from penstock.api.headers import values_of
from penstock.errors import Problem

_HEADER = b"last-event-id"
# At most 15 digits: such a number is exact in every language.
_EVENT_ID = re.compile(r"(?:([A-Za-z0-9_-]{1,64})\.)?([0-9]{1,15})")


@dataclass(frozen=True)
class EventId:
    """An event's number, and its stream's id, which is empty if only the number was given."""

    stream_id: str
    number: int

    def number_in(self, stream_id: str) -> int:
        """Return the event's number in this stream. Raises Problem if it is of another one."""
        if self.stream_id not in ("", stream_id):
            raise bad_event_id("is of another stream")
        return self.number


def id_line(stream_id: str) -> bytes:
    """Return the `id:` line of a stream's events, with `%d` in the place of the number."""
    return b"id: %b.%%d\n" % stream_id.encode()


def event_id_in(text: str) -> EventId:
    """Return the id of an event that a client gives. Raises Problem."""
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise bad_event_id("is not the id of an event")
    return EventId(found[1] or "", int(found[2]))


def first_event_of(http: HttpRequest, stream_id: str) -> int:
    """Return the number of the first event that the client has not seen. Raises Problem.

    `Last-Event-ID` wins over `?after=`: an EventSource that reconnects sends the header, and its
    URL still has the query of its first request.
    """
    given = values_of(http, _HEADER) or http.query_params.getlist("after")
    return _only(given).number_in(stream_id) + 1 if given else 0


def continued_by(http: HttpRequest) -> EventId | None:
    """Return the last event that the client of a POST has seen, None if it begins a stream.

    Raises Problem if the id is malformed or names no stream.
    """
    given = values_of(http, _HEADER)
    if not given:
        return None
    last = _only(given)
    if not last.stream_id:
        raise bad_event_id(
            "names no stream. A POST continues the stream of an id such as STREAM.N. To continue"
            " after an event's number alone, send GET /streams/{id} with this header"
        )
    return last


def bad_event_id(what: str) -> Problem:
    """Return the problem of an id that `what` is said about."""
    return Problem(
        "bad_event_id",
        f"The last event's id (Last-Event-ID, or ?after=) {what}. It is in the `id:` line of the"
        " last event that you received.",
    )


def _only(given: list[str]) -> EventId:
    if len(given) > 1:
        raise bad_event_id("is given twice")
    return event_id_in(given[0])
