"""A route that fails: what the client, the log and the metrics get."""

import io
import json
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from penstock.observe.logs import logging_to
from penstock.observe.meter import Meter
from penstock.web.access import AccessMiddleware, RequestError
from penstock.web.granian import GranianPeer

PROMPT = "my secret prompt"
SCOPE = {
    "type": "http",
    "method": "POST",
    "headers": [(b"x-request-id", b"mine"), (b"authorization", b"Bearer secret-key")],
    "path": "/secret",
    "query_string": b"key=secret",
    "client": ("127.0.0.1", 1234),
}


async def nothing() -> Message:
    return {"type": "http.request", "body": PROMPT.encode()}


async def run(
    app: Any, meter: Meter, log_prompts: bool = False
) -> tuple[list[Message], list[Any], str]:
    """Return the messages sent, the lines of the log, and the exception's text."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    stream = io.BytesIO()
    raised = ""
    with logging_to(stream, "json"):
        try:
            await AccessMiddleware(app, meter, GranianPeer, log_prompts=log_prompts)(
                dict(SCOPE), nothing, send
            )
        except RequestError as error:
            raised = f"{error} {error.__cause__} {error.__suppress_context__}"
    assert b"secret" not in stream.getvalue()
    return sent, [json.loads(line) for line in stream.getvalue().splitlines()], raised


async def test_an_uncaught_exception_is_logged_without_its_words_and_raised_without_them() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(PROMPT)

    meter = Meter()
    _, (failed, ended), raised = await run(app, meter)
    assert failed["level"] == "error"
    assert failed["exception"] == "ValueError"
    assert any("test_access.py" in place for place in failed["places"])
    assert failed["request_id"] == ended["request_id"] == "mine"
    assert (ended["message"], ended["status"]) == ("request ended", 0)
    assert "mine" in raised
    assert raised.endswith("None True")  # no cause, and the context is suppressed
    assert PROMPT not in raised
    assert meter.num_requests["none", "POST", "0"] == 1


async def test_a_response_that_breaks_off_still_has_its_line() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError(PROMPT)

    sent, (_, ended), _ = await run(app, Meter())
    assert ended["status"] == 200
    headers = dict(sent[0]["headers"])
    assert headers[b"x-request-id"] == b"mine"
    assert headers[b"server-timing"].startswith(b"total;dur=")


async def test_a_scope_other_than_http_passes_untouched() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def send(message: Message) -> None:
        pytest.fail("nothing is sent")

    await AccessMiddleware(app, Meter(), GranianPeer)({"type": "lifespan"}, nothing, send)
    assert seen == [{"type": "lifespan"}]


async def test_an_unknown_method_is_counted_as_other(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 405, "headers": []})

    meter = Meter()
    caplog.set_level(logging.INFO, "penstock.request")
    scope = {**SCOPE, "method": "S" * 9000}
    await AccessMiddleware(app, meter, GranianPeer)(scope, nothing, lambda _: nothing())  # type: ignore[arg-type, return-value] # its value is not used
    assert [*meter.num_requests] == [("none", "other", "405")]
