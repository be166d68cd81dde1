"""A client of HTTP/2 that leaves in the middle of an answer is noticed at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http2 import Http2
from tests.wire.cases.http2 import AUTHORITY, GENERATE, JSON, METHOD, PATH, POST, SCHEME
from tests.wire.ends import End, serve_end
from tests.wire.watching import engine_is_busy, seconds_until_cancelled

NOTICED_WITHIN_S = 10.0  # milliseconds, if the machine is not busy


@pytest.fixture(scope="module")
def end() -> Iterator[End]:
    """A server without TLS, whose engine has one slot and never makes its first token."""
    arguments = ["slots=1", "prefill=600"]
    with serve_end("own", Path(), "--http2", engine_arg=arguments) as end:
        yield end


@pytest.mark.parametrize("way", ["RST_STREAM", "FIN", "RST"])
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_is_noticed_at_once(
    end: End, is_streamed: bool, way: str
) -> None:
    request_id = f"gone-{is_streamed}-{way}"
    body = json.dumps({"prompt": "a", "stream": is_streamed}).encode()
    named = (b"x-request-id", request_id.encode())
    async with end.connect() as wire:
        client = Http2(wire)
        client.ask(1, [POST, GENERATE, SCHEME, AUTHORITY, JSON, named], body=body)
        await engine_is_busy(end)
        if way == "RST_STREAM":
            client.reset(1)
        elif way == "FIN":
            wire.transport.close()
        else:
            wire.reset()
        assert await seconds_until_cancelled(end, request_id) < NOTICED_WITHIN_S
        if way == "RST_STREAM":
            client.ask(3, [METHOD, PATH, SCHEME, AUTHORITY])
            assert await client.outcome(3) == "200"
