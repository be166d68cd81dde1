"""The Python clients tell what happens to a stream, also after a cut."""

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from penstock.client import AsyncClient, Client, StreamStatus
from tests.support.raw import ask, post
from tests.support.servers import RunningServer, serve

LENGTH = 400
"""Tokens that take 8 seconds: on a busy machine, too, the engine is killed in the midst of them."""
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve("--demo", engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
        yield server


def whole() -> str:
    return "".join(f"Hi:{number} " for number in range(LENGTH))


def states(told: list[StreamStatus]) -> list[str]:
    """Return the states from the first token on, without repetitions."""
    found = [status.state for status in told]
    found = found[found.index("generating") :]
    return [each for index, each in enumerate(found) if found[index - 1 : index] != [each]]


def kill(server: RunningServer) -> None:
    os.kill(server.engine_pid(), signal.SIGKILL)


def check(told: list[StreamStatus], text: str) -> None:
    assert text == whole()
    restarting = next(each for each in told if each.state == "restarting")
    assert restarting.tokens is not None
    assert 10 <= restarting.tokens < LENGTH
    assert states(told) == ["generating", "restarting", "prefill", "generating"]


def test_a_stream_tells_that_the_engine_died_and_goes_on(server: RunningServer) -> None:
    told: list[StreamStatus] = []
    with Client(server.url, timeout=PATIENCE_S) as client:
        texts = iter(client.stream("Hi", max_tokens=LENGTH, on_status=told.append))
        text = "".join(next(texts) for _ in range(10))
        kill(server)
        text += "".join(texts)
    check(told, text)


async def test_an_async_stream_tells_so_too(server: RunningServer) -> None:
    told: list[StreamStatus] = []
    async with AsyncClient(server.url, timeout=PATIENCE_S) as client:
        stream = client.stream("Hi", max_tokens=LENGTH, on_status=told.append)
        texts: AsyncIterator[str] = aiter(stream)
        text = "".join([await anext(texts) for _ in range(10)])
        kill(server)
        text += "".join([each async for each in texts])
    check(told, text)


def test_it_goes_on_telling_after_a_cut(server: RunningServer) -> None:
    told: list[StreamStatus] = []
    with Client(server.url, timeout=PATIENCE_S) as client:
        stream = client.stream("Hi", max_tokens=LENGTH, on_status=told.append)
        texts = iter(stream)
        text = "".join(next(texts) for _ in range(10))
        cut = post(b"", f"Origin: {server.url}", path=f"/stage/cut?stream={stream.id}")
        assert (
            ask(server.port, cut.replace(b"localhost", b"127.0.0.1:%d" % server.port)).status == 200
        )
        while not stream.num_resumes:
            text += next(texts)
        kill(server)
        text += "".join(texts)
    assert stream.num_resumes == 1
    check(told, text)
