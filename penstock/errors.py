"""Everything that can go wrong, as one tree.

    Problem                    something to tell a client: code, status, sentence
    ├── BadRequest             the request itself is at fault; sending it again will not help
    │   └── InvalidFields      one or more fields are (422, with a line for each)
    ├── Unauthorized           no key, or one that is not known
    ├── Forbidden              not with this key, from this page, or by this name
    ├── NotFound               no such route or stream
    ├── Unavailable            not now: loading, full, draining, engine down; try again later
    └── EngineFailure          the engine gave up on a request it had accepted
    StartError                 the server cannot start: said on the terminal, exit code 1

`code` is short and stable: the same word stands in the answer, the log and the metric. `detail` is
a sentence for a person that says what was wrong and what to do; it never holds the input, a path
or a traceback.
"""

from dataclasses import dataclass


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """A failure as a client is told of it (RFC 9457).

    `status` is the HTTP status for the native API, used when the response has not begun;
    `retry_safe` says whether the same request may simply be sent again, perhaps later; `headers`
    go with the response.
    """

    status = 500
    title = "Internal error"
    retry_safe = False

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status if status is not None else type(self).status
        self.headers = headers or {}


class BadRequest(Problem):
    """The request is at fault (400 unless told otherwise)."""

    status = 400
    title = "Bad request"


@dataclass(frozen=True)
class FieldError:
    """One field that is invalid: its dotted name, a code and a sentence."""

    field: str
    code: str
    message: str


class InvalidFields(BadRequest):
    """Well-formed JSON whose fields are not acceptable (422)."""

    status = 422
    title = "Invalid field"

    def __init__(self, errors: list[FieldError]) -> None:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(first.code, f"{first.message}{more}")
        self.errors = errors


class Unauthorized(Problem):
    """Who asks is not known (401)."""

    status = 401
    title = "Unauthorized"


class Forbidden(Problem):
    """Who asks may not (403)."""

    status = 403
    title = "Forbidden"


class NotFound(Problem):
    """No such thing here (404)."""

    status = 404
    title = "Not found"


class Unavailable(Problem):
    """Not now; later perhaps (503, retry is safe)."""

    status = 503
    title = "Unavailable"
    retry_safe = True


class EngineFailure(Problem):
    """The engine failed a request it had accepted (500)."""

    title = "Engine failure"
    retry_safe = True


def words_of_pydantic(message: str) -> str:
    """What an error of pydantic's says is wrong, without the frame around our own words."""
    return message.removeprefix("Value error, ")


class StartError(Exception):
    """The server cannot start. The message says why, `hint` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
