"""The built-in model behind a real server: many streams, exact counts, order, seeds and stops."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.raw import text_of
from tests.support.servers import RunningServer, serve

STORY = "Pim the fox"  # the best two tokens are never nearly equal


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


def client(server: RunningServer) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=100, limits=limits)


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """Open a stream and return all its events."""
    async with http.stream("POST", "/generate", json={"prompt": STORY, **fields}) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines()]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def complete(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/generate", json={"prompt": STORY, "stream": False, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_64_streams_at_once_all_finish_with_the_right_usage(server: RunningServer) -> None:
    async with client(server) as http:
        alone = await stream(http, max_tokens=60, temperature=0)
        histories = await asyncio.gather(
            *(stream(http, max_tokens=60, temperature=0) for _ in range(64))
        )
    for events in histories:
        assert [event["index"] for event in events] == list(range(len(events)))
        assert [event["finished"] for event in events] == [False] * (len(events) - 1) + [True]
        end = events[-1]
        usage = end["usage"]
        assert end["finish_reason"] in ("stop", "length")
        assert usage["prompt_tokens"] == alone[-1]["usage"]["prompt_tokens"] > 0
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        # Each delta of this ASCII text is one token. The token that ends the text counts too.
        assert usage["completion_tokens"] - (len(events) - 1) in (0, 1)
        if end["finish_reason"] == "length":
            assert usage["completion_tokens"] == 60


async def test_streamed_and_whole_answers_are_the_same(server: RunningServer) -> None:
    async with client(server) as http:
        events = await stream(http, max_tokens=80, temperature=0)
        whole = await complete(http, max_tokens=80, temperature=0)
    assert text_of(events) == whole["text"]
    for usage in (events[-1]["usage"], whole["usage"]):  # the second one finds more in the cache
        assert 0 <= usage.pop("cached_tokens") < usage["prompt_tokens"]
    assert events[-1]["usage"] == whole["usage"]
    assert events[-1]["finish_reason"] == whole["finish_reason"]


async def test_a_seed_gives_the_same_story_again_and_another_seed_gives_another(
    server: RunningServer,
) -> None:
    async with client(server) as http:
        first = await complete(http, max_tokens=40, temperature=1.0, seed=5)
        again = await complete(http, max_tokens=40, temperature=1.0, seed=5)
        other = await complete(http, max_tokens=40, temperature=1.0, seed=6)
    assert first["text"] == again["text"] != other["text"]


async def test_max_tokens_is_kept_exactly(server: RunningServer) -> None:
    async with client(server) as http:
        for max_tokens in (1, 2, 17):
            answer = await complete(http, max_tokens=max_tokens)
            assert answer["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == max_tokens


async def test_the_answer_ends_exactly_before_a_stop_string(server: RunningServer) -> None:
    async with client(server) as http:
        whole = (await complete(http, max_tokens=100, temperature=0))["text"]
        for stop in (whole[20:23], whole[5:6], whole[31:47]):
            answer = await stream(http, max_tokens=100, temperature=0, stop=["\x00", stop])
            assert text_of(answer) == whole[: whole.index(stop)]
            assert answer[-1]["finish_reason"] == "stop"


async def test_a_conversation_is_answered_and_ends_by_itself(server: RunningServer) -> None:
    async with client(server) as http:
        messages = [{"role": "user", "content": "Hello"}]
        response = await http.post(
            "/generate", json={"messages": messages, "max_tokens": 200, "stream": False, "seed": 1}
        )
    answer = response.json()
    assert answer["finish_reason"] == "stop"
    assert answer["text"].strip()


async def test_a_story_ends_by_itself(server: RunningServer) -> None:
    async with client(server) as http:
        answer = await complete(http, max_tokens=1000, temperature=0.7, seed=1)
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 50


async def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(
    server: RunningServer,
) -> None:
    async with client(server) as http:
        response = await http.post("/generate", json={"prompt": "word " * 2000})
    problem = response.json()
    assert response.status_code == 422
    assert problem["code"] == "prompt_too_long"
    context, prompt_tokens = map(int, re.findall(r"\d+", problem["detail"]))
    assert prompt_tokens >= 2000
    assert context == 1024


async def test_a_thousand_requests_at_once_are_all_answered(server: RunningServer) -> None:
    body = json.dumps({"prompt": STORY, "max_tokens": 1, "stream": False}).encode()
    head = (
        "POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def ask() -> int:
        # Without a client library, which would take longer for this than the server.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + body)
        answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()
        return int(answer["usage"]["completion_tokens"])

    assert await asyncio.gather(*(ask() for _ in range(1000))) == [1] * 1000
