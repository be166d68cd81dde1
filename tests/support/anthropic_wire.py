"""Anthropic's API for tests: its own client, and its events as bytes on the wire."""

import json
from typing import Any

import anthropic

from tests.support.raw import Response, ask, frames_of, post
from tests.support.servers import RunningServer

MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TIME: Any = {
    "name": "get_time",
    "description": "Tell the time.",
    "input_schema": {
        "type": "object",
        "properties": {"zone": {"enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
COLD = {"temperature": 0}
"""Fields that Anthropic's client has no argument for."""


def client_of(server: RunningServer, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)


def create(server: RunningServer, extra: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Return the whole message, by Anthropic's client."""
    asked = {"model": "rill", "messages": HELLO, "max_tokens": 40, **fields}
    with client_of(server) as client:
        return client.messages.create(**asked, extra_body={**COLD, **(extra or {})})


def streamed(server: RunningServer, extra: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Return the message that Anthropic's client makes of the streamed events."""
    asked = {"model": "rill", "messages": HELLO, "max_tokens": 40, **fields}
    with (
        client_of(server) as client,
        client.messages.stream(**asked, extra_body={**COLD, **(extra or {})}) as stream,
    ):
        return stream.get_final_message()


def shown(message: Any) -> dict[str, Any]:
    """Return everything of a message that two equal answers share."""
    fields = message.to_dict()
    usage = fields.pop("usage")
    calls = [block for block in fields["content"] if block["type"] == "tool_use"]
    ids = [block.pop("id") for block in calls]
    assert len(set(ids)) == len(ids)
    return {
        "content": [
            {k: v for k, v in block.items() if v is not None} for block in fields["content"]
        ],
        "model": fields["model"],
        "stop": (fields["stop_reason"], fields["stop_sequence"]),
        "output_tokens": usage["output_tokens"],
        "thinking_tokens": usage["output_tokens_details"]["thinking_tokens"],
        "input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"],
    }


def asks(*headers: str, path: str = MESSAGES, **fields: Any) -> bytes:
    """Build a request."""
    body = {"model": "rill", "max_tokens": 40, "messages": HELLO, **fields}
    return post(json.dumps(body).encode(), *headers, path=path)


def answer_to(
    server: RunningServer, *headers: str, path: str = MESSAGES, **fields: Any
) -> Response:
    return ask(server.port, asks(*headers, path=path, **fields))


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Return the data of the events, each of which must have its type as its name."""
    events = []
    for frame in frames_of(body):
        lines = [line for line in frame.decode().split("\n") if line and line[0] != ":"]
        if lines[0].startswith("id: "):
            lines = lines[1:]
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def types_of(body: bytes) -> list[str]:
    """Return the types of the events; a run of deltas counts once."""
    types = [event["type"] for event in events_of(body)]
    return [each for n, each in enumerate(types) if n == 0 or each != types[n - 1]]


def text_of(body: bytes) -> str:
    """Return the text and the thinking of a stream, in order."""
    deltas = [event["delta"] for event in events_of(body) if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") + delta.get("thinking", "") for delta in deltas)
