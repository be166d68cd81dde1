"""Every failure that Penstock reports, in one table.

`PROBLEMS` maps each error code to its HTTP status, whether a retry is safe, and when it happens.
The same code stands in the response, the log and the metrics. docs/reference/errors.md is
generated from this table. This module imports nothing else from Penstock.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TITLES = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    429: "Unavailable",
    500: "Engine failure",
    501: "Not supported",
    503: "Unavailable",
    504: "Unavailable",
    505: "Not supported",
}


@dataclass(frozen=True)
class ProblemKind:
    """A row of the table: a status, whether a retry is safe, and when the failure happens.

    `status` is the HTTP status in the native API. OpenAI's and Anthropic's APIs answer 400 instead
    of 422, and Anthropic's answers 529 if the server has too much to do. `retry_safe` is True if
    the client may send the same request again, perhaps later.
    """

    status: int
    meaning: str
    retry_safe: bool = False

    @property
    def title(self) -> str:
        """Return RFC 9457's `title`: a few words for this class of failure."""
        return _TITLES.get(self.status, "Bad request")


_INTERNAL = "internal_error"
# An engine may fail with a code of its own, which is not in the table.
_ENGINE_FAILURE = ProblemKind(500, "The engine failed the request.", retry_safe=True)

PROBLEMS: Mapping[str, ProblemKind] = {
    # The request cannot be read.
    "bad_request": ProblemKind(400, "The HTTP request cannot be read."),
    "unknown_method": ProblemKind(501, "The HTTP method is unknown, or is CONNECT."),
    "unsupported_version": ProblemKind(505, "The request is not HTTP/1.1 or HTTP/1.0."),
    "unsupported_coding": ProblemKind(501, "The body has a transfer coding other than `chunked`."),
    "head_too_large": ProblemKind(431, "The request's head has too many bytes or lines."),
    "head_timeout": ProblemKind(408, "The request's head did not arrive in time."),
    "bad_host": ProblemKind(400, "The request has no Host header, several, or a malformed one."),
    "bad_authorization": ProblemKind(
        400, "The request has several Authorization or X-API-Key headers, or two different keys."
    ),
    "bad_event_id": ProblemKind(
        400, "`Last-Event-ID` or `after` is not the id of an event of this stream."
    ),
    "client_gone": ProblemKind(
        400, "The body ended before it was complete, or its chunks are malformed."
    ),
    "invalid_gzip": ProblemKind(400, "The body is declared as gzip data, but is not gzip data."),
    "body_timeout": ProblemKind(408, "The body did not arrive within `--body-timeout` seconds."),
    "body_too_large": ProblemKind(413, "The body is larger than `--max-body-bytes`."),
    "unsupported_media_type": ProblemKind(415, "The body is not declared as JSON in UTF-8."),
    "invalid_utf8": ProblemKind(400, "The body is not UTF-8."),
    "invalid_json": ProblemKind(400, "The body is not valid JSON."),
    "not_an_object": ProblemKind(400, "The body is valid JSON but not an object."),
    "too_deep": ProblemKind(400, "The JSON is nested more than 64 levels deep."),
    "duplicate_name": ProblemKind(400, "A JSON object has the same name twice."),
    "too_many_values": ProblemKind(
        400, "The JSON has more than 524,288 values, or more than 65,536 objects and lists."
    ),
    "too_many_names": ProblemKind(400, "A JSON object has more than 1,024 names."),
    "number_too_long": ProblemKind(400, "A number has more than 1,000 digits."),
    "invalid_unicode": ProblemKind(422, "A string contains half of a surrogate pair."),
    # A field is not acceptable.
    "missing_field": ProblemKind(422, "A required field is missing."),
    "unknown_field": ProblemKind(422, "The request has a field that this API does not define."),
    "unsupported_field": ProblemKind(422, "This server or its engine cannot do what a field asks."),
    "invalid_type": ProblemKind(422, "A field has the wrong JSON type."),
    "invalid_value": ProblemKind(422, "A field or header has a value that is not allowed."),
    "out_of_range": ProblemKind(422, "A number is outside its allowed range."),
    "too_long": ProblemKind(422, "A string is longer than allowed."),
    "too_short": ProblemKind(422, "A string is shorter than allowed."),
    "too_many_items": ProblemKind(422, "A list has more items than allowed."),
    "too_few_items": ProblemKind(422, "A list has fewer items than required."),
    "empty_prompt": ProblemKind(422, "The prompt is empty, and this model cannot start from it."),
    "prompt_too_long": ProblemKind(422, "The prompt leaves no room for an answer in the context."),
    "answer_too_long": ProblemKind(
        422, "The prompt and the requested token limit together exceed the model's context."
    ),
    "no_chat_template": ProblemKind(422, "The model has no chat template; it takes prompts only."),
    "template_refused": ProblemKind(422, "The model's chat template cannot show the conversation."),
    "invalid_schema": ProblemKind(422, "The engine cannot enforce the JSON schema."),
    "invalid_grammar": ProblemKind(422, "The engine cannot enforce the grammar."),
    "schema_too_complex": ProblemKind(
        422, "Compiling the schema, the grammar or the tools takes too much time or memory."
    ),
    "schema_lost": ProblemKind(
        422, "The engine stopped enforcing the schema or grammar in mid-answer."
    ),
    "invalid_tools": ProblemKind(422, "The engine cannot use these tools."),
    # The client may not do this.
    "invalid_api_key": ProblemKind(401, "The API key is missing or unknown."),
    "expired_api_key": ProblemKind(401, "The API key has expired."),
    "revoked_api_key": ProblemKind(401, "The API key was revoked while the request ran."),
    "invalid_stream_token": ProblemKind(
        401, "The token in the URL does not open this stream, or its key is no longer accepted."
    ),
    "admin_only": ProblemKind(403, "This route needs an admin key."),
    "host_not_allowed": ProblemKind(403, "The Host header names another machine."),
    "origin_not_allowed": ProblemKind(403, "A web page from this origin may not use the server."),
    # The address or stream does not exist.
    "no_such_route": ProblemKind(404, "There is no route at this address."),
    "no_such_file": ProblemKind(404, "The page has no file of this name."),
    "model_not_found": ProblemKind(404, "This server does not serve the requested model."),
    "stream_not_found": ProblemKind(404, "There is no such stream, or it belongs to another key."),
    "response_not_found": ProblemKind(
        404, "There is no such response, it is no longer kept, or it belongs to another key."
    ),
    "not_served": ProblemKind(501, "Penstock does not do what this address is for."),
    "method_not_allowed": ProblemKind(405, "This address does not accept the HTTP method."),
    "not_resumable": ProblemKind(409, "The stream was not opened as resumable."),
    "idempotency_key_reused": ProblemKind(
        409, "The Idempotency-Key was used with another body, whose answer is still kept."
    ),
    "not_in_background": ProblemKind(400, "The response does not run in the background."),
    "history_lost": ProblemKind(
        410,
        "The stream's events are no longer kept, or the store may have lost events that the client"
        " has seen.",
    ),
    # Try again later.
    "too_many_watchers": ProblemKind(
        429, "8 clients watch `/live/events` already.", retry_safe=True
    ),
    "queue_full": ProblemKind(429, "The queue is full.", retry_safe=True),
    "bodies_full": ProblemKind(
        429, "The bodies of other requests take all memory that bodies may take.", retry_safe=True
    ),
    "memory_full": ProblemKind(
        503, "The server's memory is nearly full (`--memory-limit`).", retry_safe=True
    ),
    "too_many_streams": ProblemKind(
        429, "The key has as many open or resumable streams as it may have.", retry_safe=True
    ),
    "too_many_tokens": ProblemKind(429, "The key has used its tokens per minute.", retry_safe=True),
    "too_many_choices": ProblemKind(
        400, "The request asks for more choices than the key may have streams."
    ),
    "deadline_too_soon": ProblemKind(
        429, "The request's `timeout` is shorter than the expected wait.", retry_safe=True
    ),
    "deadline_passed": ProblemKind(
        504, "The request's time was up before the engine started on it.", retry_safe=True
    ),
    "engine_loading": ProblemKind(503, "The model is still loading.", retry_safe=True),
    "engine_down": ProblemKind(503, "The engine stopped and is restarting.", retry_safe=True),
    "engine_died": ProblemKind(
        503,
        "The engine stopped, and this answer could not continue. Not safe to retry if the engine"
        " stopped again and again at this request.",
        retry_safe=True,
    ),
    "metrics_incomplete": ProblemKind(
        503, "The other server processes' metrics did not arrive in time.", retry_safe=True
    ),
    "draining": ProblemKind(503, "The server is shutting down.", retry_safe=True),
    "server_shutdown": ProblemKind(
        503, "The server shut down before the stream ended.", retry_safe=True
    ),
    "store_unavailable": ProblemKind(
        503,
        "The store of the streams' logs does not answer, or only servers of another version can"
        " read the stream.",
        retry_safe=True,
    ),
    "replica_lost": ProblemKind(
        503,
        "The server that ran this stream is gone, and no other could continue it. Not safe to retry"
        " if several servers were lost at this request.",
        retry_safe=True,
    ),
    # The server or the engine is at fault.
    "engine_error": ProblemKind(500, "The engine gave up on the request.", retry_safe=True),
    "engine_refused": ProblemKind(500, "The engine refused the request.", retry_safe=True),
    "mock_failure": ProblemKind(500, "The mock engine was told to fail here.", retry_safe=True),
    _INTERNAL: ProblemKind(500, "The server has a bug; its log has the details."),
}


def kind_of(code: str) -> ProblemKind:
    """Return the table's row for `code`; an unknown code is an engine failure (500)."""
    return PROBLEMS.get(code, _ENGINE_FAILURE)


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """A failure to report to the client (RFC 9457).

    `code` selects the row of `PROBLEMS` that sets `status`, `title` and `retry_safe`. `detail` is
    a sentence that says what was wrong and what to do; it never contains the client's input, a
    path or a traceback. `headers` are added to the response. `retry_safe=False` overrides the
    table for a request that may itself be the cause.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_safe: bool = True,
    ) -> None:
        super().__init__(detail)
        kind = kind_of(code)
        self.code = code
        self.detail = detail
        self.status = kind.status
        self.title = "Internal error" if code == _INTERNAL else kind.title
        self.retry_safe = kind.retry_safe and retry_safe
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class FieldError:
    """An invalid field: its dotted name, an error code and a sentence."""

    field: str
    code: str
    message: str


class InvalidFields(Problem):
    """Fields that are not acceptable (422), with a `FieldError` for each."""

    def __init__(self, errors: list[FieldError]) -> None:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(first.code, f"{first.message}{more}")
        self.title = "Invalid field"
        self.errors = errors


class EngineUnavailable(Problem):
    """An engine that cannot take a request now: it is loading, down or stopped."""


def reason_from_pydantic(message: str) -> str:
    """Return pydantic's error message without the prefix that it puts before our own."""
    return message.removeprefix("Value error, ")


class StartError(Exception):
    """A failure that keeps the server from starting: printed on the terminal, exit code 1.

    The message says why; `hint` says what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
