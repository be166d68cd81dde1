"""Ollama's API for tests: its own client, and its lines as bytes on the wire."""

import json
from typing import Any

import ollama

from tests.support.raw import Response, ask, post
from tests.support.servers import RunningServer

CHAT, GENERATE = "/api/chat", "/api/generate"
HELLO: Any = [{"role": "user", "content": "Hello"}]
COLD: Any = {"temperature": 0, "num_predict": 12}
LAST = {
    *("done", "done_reason", "total_duration", "load_duration", "prompt_eval_count"),
    *("prompt_eval_duration", "eval_count", "eval_duration"),
}
"""The fields of the last line that no other line has, but for `done`."""


_open: dict[str, Any] = {}


def client_of(server: RunningServer) -> Any:
    """Return Ollama's client of this server; `close_clients` closes it."""
    if server.url not in _open:
        _open[server.url] = ollama.Client(server.url, timeout=60)
    return _open[server.url]


def close_clients() -> None:
    while _open:
        _open.popitem()[1].close()


def asks(*headers: str, path: str = CHAT, **fields: Any) -> bytes:
    """Build a request."""
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    return post(json.dumps({"model": "rill", **prompt, **fields}).encode(), *headers, path=path)


def answer_to(server: RunningServer, *headers: str, path: str = CHAT, **fields: Any) -> Response:
    return ask(server.port, asks(*headers, path=path, **fields))


def lines_of(body: bytes) -> list[Any]:
    """Return the lines of a stream; the last one ends with a line feed, as all do."""
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def joined(lines: list[Any]) -> dict[str, Any]:
    """Join the messages of a streamed chat."""
    message: dict[str, Any] = {"content": "", "thinking": "", "tool_calls": []}
    for line in lines:
        part = line["message"]
        assert part["role"] == "assistant"
        message["content"] += part.get("content") or ""
        message["thinking"] += part.get("thinking") or ""
        message["tool_calls"] += part.get("tool_calls") or []
    return message
