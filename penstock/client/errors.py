"""Everything a client can raise, as one tree.

    PenstockError
    ├── ServerUnreachableError     nobody answers at the URL
    ├── RefusedError               the server said no: status, code, detail, errors
    ├── UnexpectedAnswerError      what came is not what a Penstock server sends
    └── IncompleteAnswerError      the answer began and did not come to its end: text, num_deltas
        ├── CutStreamError         ... because the connection ended, or an event was lost
        └── FailedStreamError      ... and the server said why: code, message, retry_safe

Arguments that make no sense (no prompt, an unknown option, a URL without "http://") are a
`TypeError` or a `ValueError`, as everywhere in Python.
"""

from collections.abc import Sequence

import msgspec

from penstock.events import Timings, Usage


class PenstockError(Exception):
    """Anything that went wrong between this client and its server."""


class ServerUnreachableError(PenstockError):
    """No connection could be made."""


class InvalidField(msgspec.Struct, frozen=True):
    """A field the server did not accept, and why."""

    field: str
    message: str


class RefusedError(PenstockError):
    """The server answered with an error status instead of an answer (RFC 9457 problem details).

    `code` is short and stable, None where the server gave none (a proxy's error page); `detail` is
    a sentence; `errors` has a line for each invalid field.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[InvalidField] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)


class UnexpectedAnswerError(PenstockError):
    """Something answered, but not with what a Penstock server sends."""


class IncompleteAnswerError(PenstockError):
    """An answer that did not come to its end.

    `text` is what came of it, `num_deltas` in how many events; one event holds one token or more.
    """

    def __init__(self, message: str, *, text: str = "", num_deltas: int = 0) -> None:
        super().__init__(message)
        self.text = text
        self.num_deltas = num_deltas


class CutStreamError(IncompleteAnswerError):
    """The connection ended without a terminal event, or an event was lost on the way."""


class FailedStreamError(IncompleteAnswerError):
    """The server ended the stream with an error.

    `code` is short and stable, `message` a sentence, `retry_safe` whether the same request may
    simply be sent again. `usage` and `timings` are those of what was generated, where known.
    """

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
