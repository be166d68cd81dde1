"""The answer to one request, measured while it streams.

In: the calls of `http.HttpClient` to a receiver: head, timed pieces, end of the body. Out: the
times at which text arrived, the usage, and the end or the failure. Not known here: sockets, clocks,
statistics.

An event with text counts as one arrival, however many tokens it contains. Token counts come only
from the server's usage. An answer has finished if `[DONE]` came, or if a finish reason came and
the body then ended in order. Every other ending is a failure. A failure has a kind, by which
failures are counted, and the server's error message if the server sent one.
"""

from array import array
from itertools import pairwise
from typing import Any

import msgspec

from penstock.sse import OversizeEventError, Parser

MAX_ERROR_BYTES = 64 * 1024
MAX_MESSAGE = 300
CUT = "cut without a terminal event"
ERROR_EVENT = "error in the stream"
TIMEOUT = "timeout"
NO_CONNECTION = "no connection"
NOT_EVENTS = "not an event stream"
UNFINISHED = "unfinished"
"""The kind of an answer that was abandoned because the user stopped the run. It does not count as
an error of the server."""


class Usage(msgspec.Struct, frozen=True):
    """The token counts that the server reported."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_text(self) -> bool:
        if self.delta is None:
            return bool(self.text)
        delta = self.delta
        return bool(
            delta.content
            or delta.reasoning_content
            or delta.reasoning
            or delta.refusal
            or delta.tool_calls
        )


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class MeasuredAnswer:
    """The answer to one request, a receiver of its response. Times are the clock's, in seconds.

    `intended`: when the request was due; every latency counts from there. `began`: when the client
    started it. `arrivals`: when each event with text arrived. `ended`: when the last event of a
    finished answer arrived, None before. `failure`: the kind of the failure, None without one.
    """

    def __init__(self, intended: float, began: float) -> None:
        self.intended = intended
        self.began = began
        self.arrivals = array("d")
        self.ended: float | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.status: int | None = None
        self.failure: str | None = None
        self.message = ""
        self._last = began
        self._body = b""
        self._events: Parser | None = None

    @property
    def has_finished(self) -> bool:
        return self.ended is not None and self.failure is None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from when the request was due to the first text."""
        return self.arrivals[0] - self.intended if self.arrivals else None

    @property
    def e2e_s(self) -> float | None:
        """Seconds from when the request was due to the end of the answer."""
        return None if self.ended is None else self.ended - self.intended

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive events with text; 0 if both came in one piece."""
        return [after - before for before, after in pairwise(self.arrivals)]

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first event, None if the server did not count tokens."""
        if self.usage is None or self.usage.completion_tokens < 2 or len(self.arrivals) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.usage.completion_tokens - 1)

    def fail(self, kind: str, message: str = "") -> None:
        """Record a failure, unless the answer has already finished or failed."""
        if self.failure is None and self.ended is None:
            self.failure = kind
            self.message = message[:MAX_MESSAGE]

    # The methods of `http.Receiver`.

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Take the status, and expect events if the response is an event stream."""
        self.status = status
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status == 200 and kind == "text/event-stream":
            self._events = Parser()

    def piece(self, data: bytes, now: float) -> None:
        """Read the events in a piece, or collect it as part of an error's body."""
        if self._events is None:
            self._body += data[: MAX_ERROR_BYTES - len(self._body)]
            return
        try:
            events = self._events.feed(data)
        except OversizeEventError as error:
            self.fail(NOT_EVENTS, f"The server sent {error}.")
            return
        for event in events:
            self._take(event.data, now)

    def complete(self, now: float) -> None:
        """Finish the answer, or fail it if its body ended without a terminal event."""
        del now
        if self._events is None:
            self._refused()
        elif self.finish_reason is not None and self.ended is None:
            self.ended = self._last
        else:
            self.fail(CUT, "The body ended without a finish reason or [DONE].")

    def _take(self, data: str, now: float) -> None:
        if self.ended is not None or self.failure is not None:
            return
        if data == "[DONE]":
            self.ended = now
            return
        try:
            chunk = _decode(data)
        except msgspec.DecodeError:
            self.fail(NOT_EVENTS, "An event is not a chunk of OpenAI's API.")
            return
        self._last = now
        if chunk.error is not None or chunk.object == "error":
            self.fail(ERROR_EVENT, _sentence(chunk.error) or chunk.message or "")
            return
        if chunk.usage is not None:
            self.usage = chunk.usage
        has_text = False
        for choice in chunk.choices or ():
            has_text = has_text or choice.has_text()
            self.finish_reason = choice.finish_reason or self.finish_reason
        if has_text:
            self.arrivals.append(now)

    def _refused(self) -> None:
        if self.status == 200:
            self.fail(NOT_EVENTS, "The server did not stream: it sent the answer in one piece.")
        else:
            self.fail(f"HTTP {self.status}", error_message(self._body))


def error_message(body: bytes) -> str:
    """Return the message in an error's body, empty if it has none.

    It reads OpenAI's error object, problem details and FastAPI's `detail`.
    """
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ""
    if not isinstance(found, dict):
        return ""
    for name in ("error", "message", "detail"):
        if sentence := _sentence(found.get(name)):
            return sentence
    return ""


def _sentence(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""
