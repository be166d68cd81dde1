"""Clients send a refused request again where that is safe, and say where a stream waits.

Each test runs for both clients. The servers are scripted byte by byte, or real.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import penstock
from penstock.client import (
    AsyncClient,
    Backoff,
    Client,
    PenstockError,
    QueuePlace,
    RefusedError,
    ServerUnreachableError,
    UnexpectedAnswerError,
    http,
)
from penstock.client.retry import Attempts, Retries
from tests.client.test_answer import FINISH, delta, frame
from tests.support.ports import free_port
from tests.support.scripted_server import END, HEAD, Peer, Script, chunk, scripted_server, whole
from tests.support.servers import RunningServer, serve

PATIENCE_S = 20.0
QUICK = Backoff(first=0.001, max=0.001)
COMPLETION = (
    b'{"text":"Hi","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},'
    b'"request_time":0.25,"finish_reason":"length"}'
)

Ask = Callable[..., str]
"""Streams an answer, or generates it whole: the two ways to get the same text."""


def stream_sync(url: str, *, given: dict[str, Any] | None = None, **settings: Any) -> str:
    with Client(url, timeout=PATIENCE_S, backoff=QUICK, **settings) as client:
        return "".join(client.stream("Hi", **(given or {})))


def stream_async(url: str, *, given: dict[str, Any] | None = None, **settings: Any) -> str:
    async def main() -> str:
        async with AsyncClient(url, timeout=PATIENCE_S, backoff=QUICK, **settings) as client:
            return "".join([text async for text in client.stream("Hi", **(given or {}))])

    return asyncio.run(main())


def generate_sync(url: str, **settings: Any) -> str:
    with Client(url, timeout=PATIENCE_S, backoff=QUICK, **settings) as client:
        return client.generate("Hi").text


def generate_async(url: str, **settings: Any) -> str:
    async def main() -> str:
        async with AsyncClient(url, timeout=PATIENCE_S, backoff=QUICK, **settings) as client:
            return (await client.generate("Hi")).text

    return asyncio.run(main())


@pytest.fixture(params=[stream_sync, stream_async, generate_sync, generate_async])
def ask(request: pytest.FixtureRequest) -> Ask:
    asking: Ask = request.param
    return asking


@pytest.fixture(params=[stream_sync, stream_async])
def stream(request: pytest.FixtureRequest) -> Ask:
    streaming: Ask = request.param
    return streaming


def answers(peer: Peer) -> None:
    """Answer a request as it asks: streamed or whole."""
    if json.loads(peer.body)["stream"]:
        peer.send(HEAD, *map(chunk, [delta(0, "H"), delta(1, "i"), frame(**FINISH)]), END)
    else:
        peer.send(whole(COMPLETION))


def refuses(*, retry_safe: bool | None = True, retry_after: str | None = None) -> Script:
    """Return a script that refuses a request with 503."""
    problem: dict[str, object] = {"status": 503, "code": "engine_down", "detail": "No engine."}
    if retry_safe is not None:
        problem["retry_safe"] = retry_safe
    more = f"\r\nRetry-After: {retry_after}" if retry_after is not None else ""
    kind = f"application/problem+json{more}".encode()
    return lambda peer: peer.send(
        whole(json.dumps(problem).encode(), b"503 Service Unavailable", kind)
    )


# --- retries


def test_a_safe_refusal_is_tried_again_with_the_same_bytes(ask: Ask) -> None:
    with scripted_server(refuses(), refuses(), answers) as server:
        assert ask(server.url, retries=2) == "Hi"
    assert len(server.requests) == 3
    assert len({peer.body for peer in server.requests}) == 1


def test_the_last_refusal_is_raised_after_as_many_retries_as_given(ask: Ask) -> None:
    with scripted_server(*[refuses()] * 3) as server, pytest.raises(RefusedError) as raised:
        ask(server.url, retries=2)
    assert raised.value.code == "engine_down"
    assert len(server.requests) == 3


def test_by_default_nothing_is_sent_twice(ask: Ask) -> None:
    with scripted_server(refuses()) as server, pytest.raises(RefusedError):
        ask(server.url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("retry_safe", [False, None], ids=["it says no", "it does not say"])
def test_what_is_not_said_to_be_safe_is_not_sent_again(ask: Ask, retry_safe: bool | None) -> None:
    with (
        scripted_server(refuses(retry_safe=retry_safe, retry_after="0")) as server,
        pytest.raises(RefusedError) as raised,
    ):
        ask(server.url, retries=5)
    assert not raised.value.retry_safe
    assert len(server.requests) == 1


def test_a_request_that_may_have_arrived_is_not_sent_again(ask: Ask) -> None:
    with scripted_server(Peer.close) as server, pytest.raises(PenstockError):
        ask(server.url, retries=5)
    assert len(server.requests) == 1


def test_the_servers_retry_after_is_waited_for(ask: Ask) -> None:
    with scripted_server(refuses(retry_after="1"), answers) as server:
        began = time.monotonic()
        assert ask(server.url, retries=1) == "Hi"
        assert time.monotonic() - began >= 1


def test_a_retry_after_that_is_too_long_is_an_error_at_once(ask: Ask) -> None:
    with (
        scripted_server(refuses(retry_after="3600")) as server,
        pytest.raises(RefusedError) as raised,
    ):
        ask(server.url, retries=5)
    assert raised.value.retry_after == 3600
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_tried_again(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachableError):
        ask(url, retries=3)


def test_attempts_are_counted_and_their_waits_grow() -> None:
    attempts = Attempts(Retries(4, Backoff(first=1, factor=2, max=5), chance=lambda: 1.0))
    error = ServerUnreachableError("no server")
    assert [attempts.wait_s_after(error) for _ in range(4)] == [1, 2, 4, 5]
    with pytest.raises(ServerUnreachableError):
        attempts.wait_s_after(error)


def test_closing_a_client_ends_its_wait() -> None:
    is_refused = threading.Event()
    ended: list[Exception] = []

    def script(peer: Peer) -> None:
        refuses(retry_after="60")(peer)
        is_refused.set()

    with scripted_server(script) as server:
        client = Client(server.url, retries=1)

        def ask() -> None:
            try:
                list(client.stream("Hi"))
            except PenstockError as error:
                ended.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        assert is_refused.wait(PATIENCE_S)
        client.close()
        asking.join(PATIENCE_S)
    assert len(ended) == 1
    assert len(server.requests) == 1


def test_closing_a_client_while_it_reads_a_refusal_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_refused = http.is_refused

    def close_meanwhile(response: httpx.Response) -> bool:
        """Do what another thread may do between the head and the body."""
        client.close()
        return is_refused(response)

    monkeypatch.setattr(http, "is_refused", close_meanwhile)
    with scripted_server(refuses(retry_after="60")) as server:
        client = Client(server.url, retries=1)
        with pytest.raises(PenstockError, match="closed before its end"):
            list(client.stream("Hi"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_negative_number_of_retries_is_refused(kind: type[Client] | type[AsyncClient]) -> None:
    with pytest.raises(ValueError, match="retries"):
        kind(retries=-1)


# --- a whole error, and the queue, of a real server


@pytest.fixture(scope="module")
def busy_server() -> Iterator[RunningServer]:
    arguments = ["length=100000"]
    with serve(
        engine="mock", mock_interval=0.02, engine_arg=arguments, slots=1, max_queue=1
    ) as server:
        yield server


def test_a_refusal_has_all_that_the_server_said(busy_server: RunningServer) -> None:
    with Client(busy_server.url, timeout=PATIENCE_S) as client:
        running, waiting = client.stream("One"), client.stream("Two")
        with running, waiting, pytest.raises(RefusedError) as raised, client.stream("Three"):
            pass
    error = raised.value
    assert (error.status, error.code) == (429, "queue_full")
    assert error.retry_safe
    assert error.retry_after is not None
    assert error.retry_after >= 1
    assert error.headers["Retry-After"] == error.headers["retry-after"]
    assert error.headers["X-Request-ID"]


def test_a_stream_reports_its_place_and_then_its_text(
    busy_server: RunningServer, stream: Ask
) -> None:
    places: list[QueuePlace] = []
    with Client(busy_server.url, timeout=PATIENCE_S) as client:
        running = client.stream("One")

        def on_queue(place: QueuePlace) -> None:
            places.append(place)
            running.close()  # which lets the waiting stream begin

        with running:
            assert next(iter(running))
            text = stream(busy_server.url, given={"on_queue": on_queue, "max_tokens": 3})
    assert text
    assert places[0].position == 1


def test_a_full_queue_is_waited_for(busy_server: RunningServer, stream: Ask) -> None:
    with (
        Client(busy_server.url, timeout=PATIENCE_S) as client,
        client.stream("One", max_tokens=75),  # 1.5 s
        client.stream("Two", max_tokens=1),
    ):
        assert stream(busy_server.url, retries=20, given={"max_tokens": 3})


def test_places_are_asked_for_only_if_somebody_wants_them(stream: Ask) -> None:
    with scripted_server(answers, answers) as server:
        stream(server.url)
        stream(server.url, given={"on_queue": lambda place: None})
    bodies = [json.loads(peer.body) for peer in server.requests]
    assert ["queue_events" in body for body in bodies] == [False, True]
    assert bodies[1]["queue_events"] is True


def test_places_of_another_form_end_the_stream(stream: Ask) -> None:
    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(b'event: queue\ndata: {"position":"first"}\n\n'), END)

    with scripted_server(script) as server, pytest.raises(UnexpectedAnswerError):
        stream(server.url, given={"on_queue": lambda place: None, "resumable": False})


# --- names


def test_penstock_exports_the_clients_and_all_their_errors() -> None:
    errors = [PenstockError]
    for error in errors:
        errors += error.__subclasses__()
    for name in ["Client", "AsyncClient", *(error.__name__ for error in errors)]:
        assert getattr(penstock, name) is getattr(penstock.client, name)
        assert name in penstock.__all__


def test_importing_penstock_imports_no_client() -> None:
    code = "import sys, penstock; print('penstock.client' in sys.modules, 'httpx' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "False False\n"
