"""Clients against a real server: our own, and plain clients with requests and sseclient-py."""

import asyncio
import json
import signal
from collections.abc import Iterator

import pytest
import requests
import sseclient

from penstock.client import (
    AsyncClient,
    Client,
    CutStreamError,
    FailedStreamError,
    RefusedError,
)
from penstock.engine.mock import TEXT, split_words
from tests.support.ports import free_port
from tests.support.servers import RunningServer, serve

WORDS = split_words(TEXT)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0.005) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url, timeout=20) as made:
        yield made


# --- Client and AsyncClient


def test_a_stream_gives_every_word_and_the_engines_own_counts(client: Client) -> None:
    with client.stream("Tell me of water", max_tokens=10) as stream:
        assert list(stream) == WORDS[:10]
    assert stream.finish_reason == "length"
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (4, 10)
    assert stream.timings is not None
    assert stream.timings.time_to_first_token is not None
    assert stream.timings.total_time >= stream.timings.time_to_first_token > 0
    assert stream.id


def test_a_whole_answer_equals_the_concatenated_stream(client: Client) -> None:
    completion = client.generate("Hi", max_tokens=200)
    assert completion.text == "".join(client.stream("Hi", max_tokens=200)) == TEXT
    assert completion.finish_reason == "stop"
    assert completion.usage.total_tokens == len(WORDS) + 1
    assert completion.request_time > 0
    assert completion.timings is not None


def test_a_stop_string_ends_both_before_it(client: Client) -> None:
    assert client.generate("Hi", stop=" at first").text == TEXT.partition(" at first")[0]
    with client.stream("Hi", stop=[", slow", "once"]) as stream:
        assert "".join(stream) == TEXT.partition(", slow")[0]
    assert stream.finish_reason == "stop"


def test_a_conversation_is_answered(client: Client) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    with client.stream(messages=messages, max_tokens=3) as stream:
        assert "".join(stream) == "".join(WORDS[:3])
    assert stream.usage is not None
    assert stream.usage.prompt_tokens == 2


async def test_asyncio_streams_side_by_side(server: RunningServer) -> None:
    async def one(client: AsyncClient, count: int) -> list[str]:
        return [text async for text in client.stream("Hi", max_tokens=count)]

    async with AsyncClient(server.url, timeout=20) as client:
        answers = await asyncio.gather(*(one(client, count) for count in range(1, 17)))
        assert answers == [WORDS[:count] for count in range(1, 17)]
        assert (await client.generate("Hi", max_tokens=2)).text == "".join(WORDS[:2])
        assert await client.health() == "healthy"
        assert await client.model() == "mock"


def test_a_cancelled_stream_ends_with_the_text_generated_so_far() -> None:
    with (
        serve(engine="mock", mock_interval=0, engine_arg=["hang_at=3"]) as server,
        Client(server.url, timeout=20) as client,
        client.stream("Hi") as stream,
    ):
        for _ in stream:
            stream.cancel()
        assert stream.finish_reason == "cancelled"
        assert stream.usage is not None
        assert stream.usage.completion_tokens >= 1
        assert TEXT.startswith(stream.text)
        stream.cancel()


def test_health_and_model(client: Client) -> None:
    assert client.health() == "healthy"
    assert client.model() == "mock"


def test_a_refusal_names_each_invalid_field(client: Client) -> None:
    with pytest.raises(RefusedError) as raised:
        client.generate("Hi", max_tokens=0, temperature=3)
    assert raised.value.status == 422
    assert {each.field for each in raised.value.errors} == {"max_tokens", "temperature"}
    with pytest.raises(RefusedError, match="context"), client.stream("word " * 10_000):
        pass


def test_leaving_early_frees_the_slot_at_once() -> None:
    arguments = ["slots=1", "hang_at=2"]
    with (
        serve(engine="mock", mock_interval=0, engine_arg=arguments) as server,
        Client(server.url, timeout=20) as client,
    ):
        for _ in range(3):  # each would wait forever for the previous stream
            for text in client.stream("Hi"):
                assert text == WORDS[0]
                break
            with client.stream("Hi") as stream:
                assert next(iter(stream)) == WORDS[0]

        async def leave() -> None:
            async with AsyncClient(server.url, timeout=20) as client:
                async for _ in client.stream("Hi"):
                    break
                async with client.stream("Hi") as stream:
                    async for _ in stream:
                        break

        for _ in range(3):
            asyncio.run(leave())


@pytest.mark.parametrize(
    ("fault", "code"), [("fail_at=2", "mock_failure"), ("die_at=2", "engine_died")]
)
def test_an_engine_that_fails_raises_after_the_words_before(fault: str, code: str) -> None:
    with (
        serve(engine="mock", mock_interval=0.05, engine_arg=[fault]) as server,
        Client(server.url, timeout=20) as client,
    ):
        stream = client.stream("Hi")
        with pytest.raises(FailedStreamError) as raised:
            list(stream)
    assert raised.value.code == code
    assert raised.value.text == stream.text == "".join(WORDS[:2])
    assert raised.value.num_deltas == 2
    assert raised.value.message


def test_a_server_that_is_killed_raises_a_cut() -> None:
    with (
        serve(engine="mock", mock_interval=0, port=free_port(), engine_arg=["hang_at=3"]) as server,
        Client(server.url, timeout=20, resume_timeout=2) as client,
    ):
        stream = client.stream("Hi")
        texts = iter(stream)
        assert next(texts) == WORDS[0]
        server.signal(signal.SIGKILL)
        server.process.wait()
        with pytest.raises(CutStreamError) as raised:
            list(texts)
    assert "the stream could not be resumed in 2 s: no server at" in str(raised.value)
    assert raised.value.text == stream.text
    assert raised.value.text.startswith(WORDS[0])
    assert raised.value.text != TEXT


# --- plain clients: requests, alone and with sseclient-py

PROMPT = "Artificial intelligence will transform the future by"


def payload(*, stream: bool) -> dict[str, object]:
    return {
        "prompt": PROMPT,
        "max_tokens": 100,
        "temperature": 0.7,
        "top_p": 0.95,
        "stream": stream,
    }


def test_requests_gets_a_whole_answer(server: RunningServer) -> None:
    response = requests.post(f"{server.url}/generate", json=payload(stream=False), timeout=20)
    assert response.status_code == 200
    result = response.json()
    assert result["text"] == TEXT
    assert result["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": len(WORDS),
        "total_tokens": len(WORDS) + 7,
        "cached_tokens": 0,
    }
    assert f"Request time: {result['request_time']:.2f} seconds"


def test_sseclient_py_reads_a_stream(server: RunningServer) -> None:
    with requests.post(
        f"{server.url}/generate", json=payload(stream=True), stream=True, timeout=20
    ) as response:
        assert response.status_code == 200
        assert response.headers["X-Stream-ID"]
        client = sseclient.SSEClient(response)  # type: ignore[arg-type] # the usual call
        tokens = []
        indexes = []
        for event in client.events():
            data = json.loads(event.data)
            indexes.append(data["index"])
            if not data["finished"]:
                tokens.append(data["token"])
            else:
                break
    assert tokens == WORDS
    assert indexes == list(range(len(WORDS) + 1))
    assert data["token"] == ""
