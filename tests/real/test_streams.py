"""A real model's streams: resumed after a cut, and continued after the engine's death."""

import json
from pathlib import Path
from typing import Any

from tests.support.dying import mortal
from tests.support.openai_wire import CHAT, RESUMABLE, chunks_of
from tests.support.raw import ask, frames_of, post, resume
from tests.support.servers import RunningServer

COUNT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Count from 1 to 5."},
        {"role": "assistant", "content": "1, 2, 3, 4, 5"},
        {"role": "user", "content": "Count from 1 to 40."},
    ],
    "temperature": 0,
    "max_tokens": 60,
    "stream": True,
}


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_a_stream_is_resumed_byte_for_byte(server: RunningServer) -> None:
    body = post(json.dumps({**COUNT, "max_tokens": 20}).encode(), RESUMABLE, path=CHAT)
    answer = ask(server.port, body)
    frames = frames_of(answer.body)
    assert len(frames) > 15
    for last in range(len(frames) - 1):
        rest = resume(server.port, answer.headers["x-stream-id"], f"Last-Event-ID: {last}")
        assert frames_of(rest.body) == frames[last + 1 :]


def test_an_answer_goes_on_after_the_engine_s_death(model: Path, tmp_path: Path) -> None:
    body = post(json.dumps(COUNT).encode(), path=CHAT)
    with mortal(tmp_path, f"model={model}") as server:
        expected = chunks_of(server.undisturbed(body).body)
        chunks = chunks_of(server.cut_off(body).body)
    assert len(text_of(chunks)) > 50
    assert text_of(chunks) == text_of(expected)
    assert chunks[-1]["choices"] == expected[-1]["choices"]
