"""The parts that every API defines: how it reads requests and how it shows answers.

A dialect is bound to a route (see `answering`). Everything else, from opening a stream to cleaning
up after it, is the same for all APIs. To add an API, make a folder with a dialect and its routes,
and add one line to the list of APIs in `app`.
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import msgspec
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest

from penstock.api.headers import timeout_of
from penstock.api.tolerance import Notes
from penstock.request import Request
from penstock.stream.record import SavedForm
from penstock.stream.stream import Stream
from penstock.web.delivery import Framer

PLACE = "\ufdd0"
"""A character that occurs in no text: it marks the place of a delta's text in a frame."""


def around_place(frame: bytes) -> tuple[bytes, bytes]:
    """Return the bytes before and after the place of the text, for the straight path."""
    before, _, after = frame.rpartition(msgspec.json.encode(PLACE))
    return before, after


@functools.cache
def _without_options(dialect: str) -> SavedForm:
    return SavedForm(dialect)


class Form(msgspec.Struct, frozen=True):
    """How one answer is shown: a dialect's choices for it, as plain values.

    A form is saved with its stream, so that a later reader, also in another process, sees the same
    bytes. `dialect` tags the saved form.
    """

    dialect: ClassVar[str]

    def save(self) -> SavedForm:
        """Return the form as a value for the stream's record."""
        if not self.__struct_fields__:
            return _without_options(self.dialect)
        return SavedForm(self.dialect, msgspec.json.decode(msgspec.json.encode(self)))

    @classmethod
    def load(cls, saved: SavedForm) -> Self:
        """Return the form that was saved. Raises msgspec.ValidationError if it is malformed."""
        return msgspec.convert(saved.options, cls)

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> Framer:
        """Return what frames these streams from their beginning; `with_ids` gives events ids."""
        raise NotImplementedError

    def num_events(self, stream: Stream) -> int:
        """Return how many events with ids a resumable stream has so far."""
        raise NotImplementedError

    def num_before(self, stream: Stream, cursor: int) -> int:
        """Return how many events with ids the log's first `cursor` events make."""
        return cursor

    def resume(self, stream: Stream, first: int) -> tuple[int, Framer]:
        """Return the cursor and the framer for a reader of the events from id `first` on."""
        raise NotImplementedError

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the whole answer of these streams, which have all finished, as JSON values."""
        raise NotImplementedError

    def so_far(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return what there is of the whole answer, for calls with `at_once`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Answer:
    """An answer that needs no engine, as JSON values."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A client's call: the streams to open and how to show them.

    `requests` has one request for each choice, the choices of a prompt together; `num_per_prompt`
    of them. `timeout` is in seconds and `max_tokens` in tokens, None if the client set none.
    `queue_events` asks for events instead of comments while the stream waits in the queue, and
    `status_events` for events that tell what happens to the stream.
    `on_opened` is told the streams when they are open. `until_ready` is awaited before the response
    begins. With `at_once`, the client gets the answer
    as it is when the request is accepted, and asks for the rest later.
    `headers` are added to the response's own. `has_place` is True if the request has waited in the
    queue before it could be parsed.
    """

    requests: Sequence[Request]
    form: Form
    streamed: bool
    resumable: bool = False
    timeout: float | None = None
    max_tokens: int | None = None
    num_per_prompt: int = 1
    queue_events: bool = False
    status_events: bool = False
    on_opened: Callable[[Sequence[Stream]], None] | None = None
    until_ready: Callable[[], Awaitable[None]] | None = None
    at_once: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    has_place: bool = False


class Await(Exception):  # noqa: N818 - no error: it asks for something
    """Raised by a parser that needs something from the store of logs first.

    When `fetch` has been awaited, `body` is parsed again.
    """

    def __init__(
        self, fetch: Callable[[], Coroutine[Any, Any, None]], body: dict[str, Any]
    ) -> None:
        super().__init__()
        self.fetch = fetch
        self.body = body


class Parse(Protocol):
    """Turns a request's JSON body into a call. It may run in a thread."""

    def __call__(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call | Answer:
        """Return the call, or the answer if it needs no engine. Raises Problem and Await.

        Notes what is left out of the request.
        """


Timeout = Callable[[dict[str, Any], HttpRequest, bool], float | None]
"""Returns the timeout that a body or its request's headers ask for, in seconds. Raises Problem.

The last argument is True if the server is strict."""


def timeout_in_header(_: dict[str, Any], http: HttpRequest, __: bool) -> float | None:
    """Return the timeout that a request's headers ask for. Raises Problem."""
    return timeout_of(http)


@dataclass(frozen=True)
class Dialect:
    """A way to ask for a generation and to show its answer, bound to a route.

    `operation` names its route and `summary` describes it in one sentence. `fields` is the model of
    the request's body, for the OpenAPI description. `forms` are all forms of its answers. `timeout`
    is asked for requests that must wait before they can be parsed.
    """

    operation: str
    summary: str
    fields: type[BaseModel]
    parse: Parse
    forms: Sequence[type[Form]]
    timeout: Timeout = timeout_in_header
