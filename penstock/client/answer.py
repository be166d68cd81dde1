"""Requests and answers as bytes: options to a request's body, a response's bytes to an answer.

In: the arguments of a call, and the bytes of a response in pieces of any size. Out: the body to
send, and the text, figures or error that the response contains. This module knows no sockets, no
httpx, and not whether the caller is sync or async.
"""

import difflib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, TypeVar

import msgspec

from ..events import Timings, Usage
from ..sse import OversizeEventError, Parser, ServerSentEvent
from .errors import (
    CutStreamError,
    FailedStreamError,
    InvalidField,
    PenstockError,
    RefusedError,
    UnexpectedAnswerError,
)

T = TypeVar("T")


class Options(TypedDict, total=False):
    """The options of an answer. The server's default applies to an option that is absent or None.

    `stream` and `generate` take these options as keyword arguments. The limits and defaults below
    are those of the server.
    """

    messages: Sequence[Mapping[str, str]] | None
    """A conversation to answer instead of a prompt: a list like
    `[{"role": "user", "content": "Hi"}]`. The roles are `system`, `user` and `assistant`."""
    max_tokens: int | None
    """The most tokens to generate: 1 or more, 100 by default. The model's context is the limit."""
    temperature: float | None
    """How varied the answer is: 0 to 2, 0.7 by default. 0 always takes the likeliest token."""
    top_p: float | None
    """Sample from the likeliest tokens whose probabilities add up to `top_p`: 0 to 1, 0.95 by
    default."""
    top_k: int | None
    """Sample from the `top_k` likeliest tokens: 0 to 100,000, 40 by default. 0 means all tokens."""
    seed: int | None
    """Repeat an answer: the same seed, request and model give the same text. Random by default."""
    stop: str | Sequence[str] | None
    """A string, or up to 64 strings. The answer ends before the first of them."""
    response_format: Mapping[str, object] | None
    """The form of the answer, as in OpenAI's API. `{"type": "json_object"}` asks for a JSON object.
    `{"type": "json_schema", "json_schema": {"name": "city", "schema": {}}}` asks for JSON that
    follows the schema. By default the answer is text."""


class Completion(msgspec.Struct, frozen=True):
    """A whole answer, as `generate` returns it."""

    text: str
    """The text of the answer."""
    usage: Usage
    """The number of tokens, as the engine counted them."""
    request_time: float
    """Seconds that the request took, as the server measured them."""
    finish_reason: str | None = None
    """Why the answer ended: "stop", "length", "cancelled" or "deadline"."""
    timings: Timings | None = None
    """The times of the request by the server's clock, in seconds, or None if the server sent no
    times."""


class QueuePlace(msgspec.Struct, frozen=True):
    """The place of a stream in the server's queue."""

    position: int
    """The place in the queue: 1 is next."""
    eta: float | None = None
    """The estimated seconds until the stream starts, or None if the server has no estimate."""


OnQueue = Callable[[QueuePlace], object]


class StreamStatus(msgspec.Struct, frozen=True):
    """What happens to a stream besides its text. Fields that do not belong to the state are None.

    Ignore states that you do not know: a later server may have more.
    """

    state: str
    """"queued": the stream waits for its turn. "prefill": the engine reads the prompt.
    "generating": tokens come. "stalled": the engine gives no sign of life. "restarting": the engine
    died, and the stream goes on when it is back. "moved": another server took the stream over.
    "waiting": the stream waits for an upstream. "continuing": another upstream goes on with it."""
    position: int | None = None
    """Queued: the place in the queue; 1 is next."""
    eta: float | None = None
    """Queued: the estimated seconds until the stream starts, if the server has an estimate."""
    prompt_tokens: int | None = None
    """Prefill: the tokens to read. After a restart, the answer so far is part of them."""
    read_tokens: int | None = None
    """Prefill: how many of them the engine has read, if it tells."""
    tokens: int | None = None
    """All but queued, prefill and stalled: the number of tokens that the answer has, and keeps."""
    seconds: float | None = None
    """Stalled: for how long, in seconds."""
    limit: float | None = None
    """Stalled: the seconds after which the engine is restarted."""

    def __repr__(self) -> str:
        """Show the fields that belong to the state."""
        known = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return f"StreamStatus({', '.join(f'{k}={v!r}' for k, v in known if v is not None)})"


OnStatus = Callable[[StreamStatus], object]


class Health(msgspec.Struct, frozen=True):
    """The response to `GET /health`."""

    status: str


class Root(msgspec.Struct, frozen=True):
    """The response to `GET /` for a program."""

    model: str


def request_body(
    prompt: str | None,
    options: Options,
    *,
    stream: bool,
    resumable: bool = False,
    queue_events: bool = False,
    status_events: bool = False,
) -> bytes:
    """Return the JSON body of a request. Raises TypeError or ValueError for invalid arguments."""
    for name in options:
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unknown option {name!r}{hint}")
    if (prompt is None) == (options.get("messages") is None):
        raise TypeError("give either a prompt or messages")
    fields: dict[str, object] = {"prompt": prompt, **options, "stream": stream}
    if resumable:
        fields["resumable"] = True
    if queue_events:
        fields["queue_events"] = True
    if status_events:
        fields["status_events"] = True
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    try:
        return msgspec.json.encode({k: v for k, v in fields.items() if v is not None})
    except UnicodeEncodeError:
        raise ValueError("the text contains a lone surrogate, which is half a character") from None


def refusal(
    status: int,
    reason: str,
    content: bytes,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> RefusedError:
    """Return the error for a response whose status is not 200, whether or not from Penstock."""
    plain = f"the server answered {status} {reason}".rstrip()
    try:
        problem = _decode(content, _Problem)
    except UnexpectedAnswerError:
        return RefusedError(status, plain, retry_after=retry_after, headers=headers)
    return RefusedError(
        status,
        problem.detail or problem.title or plain,
        code=problem.code,
        errors=problem.errors,
        retry_safe=problem.retry_safe,
        retry_after=retry_after,
        headers=headers,
    )


def decode_json(content_type: str, content: bytes, kind: type[T]) -> T:
    """Return a whole response as a value of a type. Raises UnexpectedAnswerError."""
    check_content_type(content_type, "application/json")
    return _decode(content, kind)


def check_content_type(content_type: str, expected: str) -> None:
    """Raise UnexpectedAnswerError if the type is another one: any server may answer 200."""
    got = content_type.partition(";")[0].strip().lower()
    if got != expected:
        raise UnexpectedAnswerError(
            f"the response has {f'the type {got}' if got else 'no type'} instead of {expected}: is"
            " this a Penstock server?"
        )


class StreamedAnswer:
    """A streamed answer that is built from the bytes of one or several connections.

    `feed` it the bytes, call `end` after the last byte, and `take` its texts until `take` returns
    None. `take` returns every text that arrived before an error, and then raises the error.

    If another connection will continue the answer, call `interrupt` instead of `end`, and then feed
    the bytes after event `last_received`. Each event must have the next number, so no text is
    repeated or lost. `after` is the number of the event before the first expected event.

    `on_queue` is called with each place in the queue that the server reports, `on_status` with each
    status.
    """

    def __init__(
        self,
        *,
        is_resumable: bool = False,
        after: int | None = None,
        on_queue: OnQueue | None = None,
        on_status: OnStatus | None = None,
    ) -> None:
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        self.is_over = False
        """True after the terminal event or an error: the answer gets no more text."""
        self.has_ended = False
        """True after the terminal event, even if the caller knew it before this connection."""
        self.last_taken = after
        """The number of the last event whose text the caller took; None before the first event."""
        self.last_received = after
        """The number of the last event that arrived; None before the first event."""
        self.retry_s: float | None = None
        """Seconds to wait before a new connection, if the server sent `retry`."""
        self._is_resumable = is_resumable
        self._on_queue = on_queue
        self._on_status = on_status
        self._parser = Parser()
        self._num_deltas = 0
        self._taken: list[str] = []
        self._ready: deque[tuple[int, str]] = deque()
        self._failure: PenstockError | None = None

    @property
    def text(self) -> str:
        """The text that the caller took so far."""
        return "".join(self._taken)

    @property
    def is_waiting(self) -> bool:
        """True if `take` needs more bytes first."""
        return not self._ready and not self.is_over

    def feed(self, piece: bytes) -> None:
        """Add the next bytes of the response's body."""
        try:
            events = self._parser.feed(piece)
        except OversizeEventError as error:
            self._fail(UnexpectedAnswerError(f"the stream contains {error}"))
            return
        if self._parser.retry_ms is not None:
            self.retry_s = self._parser.retry_ms / 1000
        for event in events:
            if event.event == "message" and not self.is_over:
                self._add(event)
            elif event.event == "queue" and self._on_queue is not None and not self.is_over:
                self._report_place(event, self._on_queue)
            elif event.event == "status" and not self.is_over:
                self._report_status(event)

    @property
    def wants_status(self) -> bool:
        """True if someone wants to know the stream's statuses."""
        return self._on_status is not None

    def interrupt(self) -> None:
        """Drop an incomplete event: the next connection sends that event again."""
        self._parser = Parser()

    def end(
        self,
        why: str = "the connection ended before the answer did",
        cause: PenstockError | None = None,
    ) -> None:
        """End the answer. Without a terminal event, `take` raises CutStreamError after the text."""
        if not self.is_over:
            failure = self._cut(why)
            failure.__cause__ = cause
            self._fail(failure)

    def end_as_known(self) -> None:
        """End the answer without an error: the caller already has every event."""
        self.is_over = self.has_ended = True

    def take(self) -> str | None:
        """Return the next text, or None at the end. Raises the PenstockError of a failed answer."""
        if self._ready:
            self.last_taken, text = self._ready.popleft()
            self._taken.append(text)
            return text
        if self._failure is not None:
            raise self._failure
        self.last_taken = self.last_received
        return None

    def _add(self, received: ServerSentEvent) -> None:
        try:
            event = _decode(received.data, _StreamEvent)
        except UnexpectedAnswerError as error:
            self._fail(error)
            return
        due = 0 if self.last_received is None else self.last_received + 1
        number = due if event.index is None else event.index
        if number != due:
            self._fail(self._cut(f"event {number} arrived instead of event {due}"))
        elif self._is_resumable and received.id.rpartition(".")[2] not in ("", str(due)):
            self._fail(self._cut(f"event {due} arrived with the id {received.id[:40]!r}"))
        elif not event.finished:
            self.last_received = due
            self._num_deltas += 1
            if event.token:
                self._ready.append((due, event.token))
        else:
            self.last_received = due
            self.is_over = self.has_ended = True
            self.usage, self.timings = event.usage, event.timings
            self.finish_reason = event.finish_reason
            if event.error is not None or event.finish_reason == "error":
                self._fail(self._failed(event.error or _Error()))

    def _report_place(self, received: ServerSentEvent, on_queue: OnQueue) -> None:
        try:
            place = _decode(received.data, QueuePlace)
        except UnexpectedAnswerError as error:
            self._fail(error)
        else:
            on_queue(place)

    def _report_status(self, received: ServerSentEvent) -> None:
        """Report a status, and the place in the queue that it may tell."""
        try:
            status = _decode(received.data, StreamStatus)
        except UnexpectedAnswerError as error:
            self._fail(error)
            return
        if self._on_status is not None:
            self._on_status(status)
        if self._on_queue is not None and status.position is not None:
            self._on_queue(QueuePlace(status.position, status.eta))

    def _fail(self, failure: PenstockError) -> None:
        self.is_over = True
        self._failure = failure

    def _cut(self, why: str) -> CutStreamError:
        return CutStreamError(why, text=self._received(), num_deltas=self._num_deltas)

    def _failed(self, error: "_Error") -> FailedStreamError:
        return FailedStreamError(
            error.code,
            error.message,
            retry_safe=error.retry_safe,
            text=self._received(),
            num_deltas=self._num_deltas,
            usage=self.usage,
            timings=self.timings,
        )

    def _received(self) -> str:
        return "".join([*self._taken, *(text for _, text in self._ready)])


# The JSON objects of a server. Unknown fields are ignored: a later server may add fields.


class _Problem(msgspec.Struct):
    title: str | None = None
    detail: str | None = None
    code: str | None = None
    errors: tuple[InvalidField, ...] = ()
    retry_safe: bool = False


class _Error(msgspec.Struct):
    code: str = "error"
    message: str = "the server reported an error without a message"
    retry_safe: bool = False


class _StreamEvent(msgspec.Struct):
    finished: bool
    token: str = ""
    index: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: _Error | None = None


def _decode(content: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnexpectedAnswerError(f"the response cannot be decoded: {error}") from None
