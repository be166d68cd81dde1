"""The engine's text arrives unchanged: no text can end an event or begin another."""

import json

import pytest

from tests.support.raw import ask, generate, request
from tests.support.servers import serve

TOKENS = [
    "one\n",
    "\r",
    "two\r\n",
    "\n\nevent: error\ndata: {}\n\n",
    "\u2028\u2029\x85",
    "\x00",
    "\ufeff",
    "  three",
    "<img src=x onerror=alert(1)>",
    "\U0001f600é",
    '"\\',
]
TEXT = "".join(TOKENS)


def test_no_token_can_break_out_of_its_event_or_change_on_the_way() -> None:
    with serve(
        engine="mock", mock_interval=0, engine_arg=[f"text={json.dumps(TEXT, ensure_ascii=False)}"]
    ) as server:
        whole = ask(server.port, generate(stream=False)).json()
        assert whole["text"] == TEXT
        body = ask(server.port, generate()).body
    frames = body.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: {") for frame in frames)
    assert not any(byte in frame for frame in frames for byte in (b"\n", b"\r", b"\0"))
    *deltas, end = [json.loads(frame[6:]) for frame in frames]
    assert "".join(delta["token"] for delta in deltas) == TEXT
    assert [delta["index"] for delta in deltas] == list(range(len(deltas)))
    assert end["finished"]
    assert end["index"] == len(deltas) == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("allowed", ["null", "https://example.org"])
def test_only_the_named_origin_may_read_answers(allowed: str) -> None:
    with serve(engine="mock", mock_interval=0, cors_origin=allowed) as server:
        for origin in ("null", "https://example.org", "https://evil.example"):
            answer = ask(
                server.port, generate().replace(b"\r\n", f"\r\nOrigin: {origin}\r\n".encode(), 1)
            )
            shown = answer.headers.get("access-control-allow-origin")
            assert shown == (allowed if origin == allowed else None)
            assert "access-control-allow-credentials" not in answer.headers
        preflight = ask(
            server.port,
            request(
                "OPTIONS",
                "/generate",
                f"Origin: {allowed}",
                "Access-Control-Request-Method: POST",
                "Access-Control-Request-Headers: content-type",
            ),
        )
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == allowed
