"""Frames of OpenAI's event streams, as bytes, for tests."""

import json
from typing import Any

SSE = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"


def frame(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % json.dumps(value).encode()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """Return the frame of a chat completion chunk."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return frame({"object": "chat.completion.chunk", "choices": [choice]})


def text(content: str = " token") -> bytes:
    return chunk({"content": content})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return frame({"choices": [], "usage": counts})


ROLE = chunk({"role": "assistant", "content": ""})
END = chunk({}, "length")
