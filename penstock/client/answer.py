"""What a client says and understands: arguments → a request's body, bytes → an answer (pure).

In: what the caller asked for, and the bytes of a response, cut anywhere. Out: the body to send, and
the text, figures or error that came back. Not known here: sockets, httpx, sync or async.
"""

import difflib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar

import msgspec

from penstock.client.errors import (
    CutStreamError,
    FailedStreamError,
    InvalidField,
    PenstockError,
    RefusedError,
    UnexpectedAnswerError,
)
from penstock.events import Timings, Usage
from penstock.sse import OversizeEventError, Parser, ServerSentEvent

T = TypeVar("T")


class Options(TypedDict, total=False):
    """What may be asked of an answer. Left out, or None: the server's default."""

    messages: Sequence[Mapping[str, str]] | None
    """A conversation, `[{"role": "user", "content": "..."}]`, instead of a prompt."""
    max_tokens: int | None
    """The most tokens to generate."""
    temperature: float | None
    """0 always takes the likeliest token; higher is more varied."""
    top_p: float | None
    """Choose among the likeliest tokens that together have this probability."""
    top_k: int | None
    """Choose among this many of the likeliest tokens; 0 for all of them."""
    seed: int | None
    """The same seed, request and model give the same answer."""
    stop: str | Sequence[str] | None
    """The answer ends before any of these strings; up to 4."""


class Completion(msgspec.Struct, frozen=True):
    """A whole answer. `request_time` is in seconds, as the server measured it."""

    text: str
    usage: Usage
    request_time: float
    finish_reason: str | None = None
    timings: Timings | None = None


class Health(msgspec.Struct, frozen=True):
    """What `GET /health` says."""

    status: str


class Root(msgspec.Struct, frozen=True):
    """What `GET /` says to a program."""

    model: str


def body(prompt: str | None, options: Options, *, stream: bool, resumable: bool = False) -> bytes:
    """The JSON of a request. Raises TypeError or ValueError for what makes no request."""
    for name in options:
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unknown option {name!r}{hint}")
    if (prompt is None) == (options.get("messages") is None):
        raise TypeError("give a prompt or messages: one of the two")
    fields: dict[str, object] = {"prompt": prompt, **options, "stream": stream}
    if resumable:
        fields["resumable"] = True
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    try:
        return msgspec.json.encode({k: v for k, v in fields.items() if v is not None})
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character (a lone surrogate)") from None


def refusal(status: int, reason: str, content: bytes) -> RefusedError:
    """The error for an answer whose status is not 200; it need not come from Penstock."""
    plain = f"the server answered {status} {reason}".rstrip()
    try:
        problem = _decode(content, _Problem)
    except UnexpectedAnswerError:
        return RefusedError(status, plain)
    return RefusedError(
        status, problem.detail or problem.title or plain, code=problem.code, errors=problem.errors
    )


def whole(content_type: str, content: bytes, kind: type[T]) -> T:
    """An answer of one piece. Raises UnexpectedAnswerError."""
    check_content_type(content_type, "application/json")
    return _decode(content, kind)


def check_content_type(content_type: str, expected: str) -> None:
    """Raises UnexpectedAnswerError: a 200 alone may be anybody's page."""
    got = content_type.partition(";")[0].strip().lower()
    if got != expected:
        raise UnexpectedAnswerError(
            f"the answer is {got or 'of no type'} instead of {expected}: not a Penstock server?"
        )


class Answer:
    """A streamed answer as it comes in.

    `feed` it bytes, tell it when they `end`, and `take` texts until it gives None. Whatever goes
    wrong waits its turn: every text that came before it is given first, then `take` raises it.

    Where more may come on another connection, `interrupt` it instead of ending it, and feed it what
    comes after event `last_received`. Every event must have the number that is due, so nothing is
    taken twice and nothing left out. `after` is the event after which the first one is due.
    """

    def __init__(self, *, is_resumable: bool = False, after: int | None = None) -> None:
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        self.is_over = False
        """Nothing more will come: a terminal event did, or something went wrong."""
        self.has_ended = False
        """The terminal event came, or the server said that it had come before."""
        self.last_taken = after
        """The number of the event whose text was taken last; None before the first."""
        self.last_received = after
        """The number of the event that came last."""
        self.retry_s: float | None = None
        """How long the server asks to wait before a new connection."""
        self._is_resumable = is_resumable
        self._parser = Parser()
        self._num_deltas = 0
        self._taken: list[str] = []
        self._ready: deque[tuple[int, str]] = deque()
        self._failure: PenstockError | None = None

    @property
    def text(self) -> str:
        """What was taken so far."""
        return "".join(self._taken)

    @property
    def is_waiting(self) -> bool:
        """`take` needs more bytes first."""
        return not self._ready and not self.is_over

    def feed(self, piece: bytes) -> None:
        """Take in the next bytes of the response's body."""
        try:
            events = self._parser.feed(piece)
        except OversizeEventError as error:
            self._fail(UnexpectedAnswerError(f"the stream held {error}"))
            return
        if self._parser.retry_ms is not None:
            self.retry_s = self._parser.retry_ms / 1000
        for event in events:
            if event.event == "message" and not self.is_over:
                self._hear(event)

    def interrupt(self) -> None:
        """The connection is gone; what it brought of an event comes again on the next."""
        self._parser = Parser()

    def end(
        self,
        why: str = "the connection ended before the answer did",
        cause: PenstockError | None = None,
    ) -> None:
        """No more bytes will come. Without a terminal event that is a cut."""
        if not self.is_over:
            failure = self._cut(why)
            failure.__cause__ = cause
            self._fail(failure)

    def end_as_known(self) -> None:
        """There is nothing after what the caller already has."""
        self.is_over = self.has_ended = True

    def take(self) -> str | None:
        """The next text, or None at the end. Raises what went wrong."""
        if self._ready:
            self.last_taken, text = self._ready.popleft()
            self._taken.append(text)
            return text
        if self._failure is not None:
            raise self._failure
        self.last_taken = self.last_received
        return None

    def _hear(self, heard: ServerSentEvent) -> None:
        try:
            event = _decode(heard.data, _StreamEvent)
        except UnexpectedAnswerError as error:
            self._fail(error)
            return
        due = 0 if self.last_received is None else self.last_received + 1
        number = due if event.index is None else event.index
        if number != due:
            self._fail(self._cut(f"event {number} came where {due} was due"))
        elif self._is_resumable and heard.id not in ("", str(due)):
            self._fail(self._cut(f"event {due} came with the id {heard.id[:20]!r}"))
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


# The shapes on the wire. Unknown fields are somebody's addition, and ignored.


class _Problem(msgspec.Struct):
    title: str | None = None
    detail: str | None = None
    code: str | None = None
    errors: tuple[InvalidField, ...] = ()


class _Error(msgspec.Struct):
    code: str = "error"
    message: str = "the server failed without saying why"
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
        raise UnexpectedAnswerError(f"not understood: {error}") from None
