"""The exceptions that a client raises, as one tree.

    PenstockError
    ├── ServerUnreachableError     no server accepts connections at the URL
    ├── RefusedError               the server refused the request: status, code, detail, retry_safe
    ├── UnexpectedAnswerError      the response is not from a Penstock server
    └── IncompleteAnswerError      the answer began but did not end: text, num_deltas
        ├── CutStreamError         the connection ended, or an event was lost
        └── FailedStreamError      the server reported an error: code, message, retry_safe

Invalid arguments (no prompt, an unknown option, a URL without "http://") raise TypeError or
ValueError, as everywhere in Python.
"""

from collections.abc import Mapping, Sequence

import msgspec

from ..events import Timings, Usage


class PenstockError(Exception):
    """The base class of every error between a client and its server."""


class ServerUnreachableError(PenstockError):
    """No connection to the server could be made."""


class InvalidField(msgspec.Struct, frozen=True):
    """A field of a request that the server did not accept."""

    field: str
    """The name of the field."""
    message: str
    """The reason, as a sentence."""


class RefusedError(PenstockError):
    """The server refused a request: it answered with an error status instead of an answer.

    The server describes the error as RFC 9457 problem details. An error page from another server,
    such as a proxy, raises RefusedError too.
    """

    status: int
    """The HTTP status, for example 422."""
    code: str | None
    """The stable name of the error, or None if the response has no code."""
    detail: str
    """The error as a sentence."""
    errors: tuple[InvalidField, ...]
    """The invalid fields of the request; empty for other errors."""
    retry_safe: bool
    """True if the server says that you can send the same request again. A page from another server
    does not say so: then it is False."""
    retry_after: float | None
    """The seconds that the server asks you to wait before you try again; None if it does not."""
    headers: Mapping[str, str]
    """All headers of the response. Names match in upper and lower case."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[InvalidField] = (),
        retry_safe: bool = False,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_safe = retry_safe
        self.retry_after = retry_after
        self.headers = {} if headers is None else headers


class UnexpectedAnswerError(PenstockError):
    """A server answered, but its response is not the response of a Penstock server."""


class IncompleteAnswerError(PenstockError):
    """The base class of the errors of an answer that began but did not come to its end."""

    text: str
    """The text of the answer that arrived."""
    num_deltas: int
    """The number of events in which the text arrived. Each event holds one or more tokens."""

    def __init__(self, message: str, *, text: str = "", num_deltas: int = 0) -> None:
        super().__init__(message)
        self.text = text
        self.num_deltas = num_deltas


class CutStreamError(IncompleteAnswerError):
    """The connection ended before the answer did, or an event was lost.

    A resumable stream raises CutStreamError for a lost connection only if it cannot be resumed.
    """


class FailedStreamError(IncompleteAnswerError):
    """The server ended the stream with an error."""

    code: str
    """The stable name of the error."""
    message: str
    """The error as a sentence."""
    retry_safe: bool
    """True if you can send the same request again."""
    usage: Usage | None
    """The number of tokens of the incomplete answer, or None if the server did not send it."""
    timings: Timings | None
    """The times of the request by the server's clock, in seconds, or None if the server did not
    send them."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_safe: bool,
        text: str = "",
        num_deltas: int = 0,
        usage: Usage | None = None,
        timings: Timings | None = None,
    ) -> None:
        super().__init__(message, text=text, num_deltas=num_deltas)
        self.code = code
        self.message = message
        self.retry_safe = retry_safe
        self.usage = usage
        self.timings = timings
