"""Client and AsyncClient against a server that is scripted byte by byte, on real sockets.

Each test of streaming runs for both clients: `read` is the same few lines, sync or async. These
tests read over one connection; test_resumed_streams.py reads over several.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from penstock.client import (
    AsyncClient,
    AsyncStream,
    Client,
    CutStreamError,
    FailedStreamError,
    InvalidField,
    PenstockError,
    RefusedError,
    ServerUnreachableError,
    Stream,
    UnexpectedAnswerError,
)
from penstock.events import Timings, Usage
from tests.client.test_answer import FINISH, delta, frame
from tests.support.ports import free_port
from tests.support.scripted_server import END, HEAD, Peer, chunk, scripted_server, whole

TERMINAL = frame(**FINISH)
FRAMES = [delta(0, "Hé"), delta(1, "llo"), TERMINAL]


@dataclass
class Outcome:
    """The texts and the error that a program got from a stream."""

    stream: Stream | AsyncStream
    texts: list[str] = field(default_factory=list)
    error: Exception | None = None

    @property
    def cut(self) -> CutStreamError:
        assert isinstance(self.error, CutStreamError)
        return self.error


class Read(Protocol):
    def __call__(
        self,
        url: str,
        *,
        leave_after: int = -1,
        cancel_after: int = -1,
        left: Callable[[], object] = ...,
        is_entered: bool = False,
        timeout: float = 20,
        api_key: str | None = None,
        **options: Any,
    ) -> Outcome: ...


def read_sync(
    url: str,
    *,
    leave_after: int = -1,
    cancel_after: int = -1,
    left: Callable[[], object] = lambda: None,
    is_entered: bool = False,
    timeout: float = 20,
    api_key: str | None = None,
    **options: Any,
) -> Outcome:
    def loop() -> None:
        for text in stream:
            outcome.texts.append(text)
            if len(outcome.texts) == cancel_after:
                stream.cancel()
            if len(outcome.texts) == leave_after:
                break

    with Client(url, timeout=timeout, api_key=api_key) as client:
        stream = client.stream(**{"prompt": "Hi", "resumable": False, **options})
        outcome = Outcome(stream)
        try:
            if is_entered:
                with stream:
                    loop()
            else:
                loop()
        except PenstockError as error:
            outcome.error = error
        left()
    return outcome


def read_async(
    url: str,
    *,
    leave_after: int = -1,
    cancel_after: int = -1,
    left: Callable[[], object] = lambda: None,
    is_entered: bool = False,
    timeout: float = 20,
    api_key: str | None = None,
    **options: Any,
) -> Outcome:
    async def loop(stream: AsyncStream, outcome: Outcome) -> None:
        async for text in stream:
            outcome.texts.append(text)
            if len(outcome.texts) == cancel_after:
                await stream.cancel()
            if len(outcome.texts) == leave_after:
                break

    async def main() -> Outcome:
        async with AsyncClient(url, timeout=timeout, api_key=api_key) as client:
            stream = client.stream(**{"prompt": "Hi", "resumable": False, **options})
            outcome = Outcome(stream)
            try:
                if is_entered:
                    async with stream:
                        await loop(stream, outcome)
                else:
                    await loop(stream, outcome)
            except PenstockError as error:
                outcome.error = error
            await asyncio.to_thread(left)
            return outcome

    return asyncio.run(main())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    reader: Read = request.param
    return reader


def answers(*pieces: bytes) -> Callable[[Peer], None]:
    """Return a script that sends a whole stream, each piece by itself."""
    return lambda peer: peer.send(HEAD, *map(chunk, pieces), END)


# --- a stream that goes well


def test_a_stream_is_its_texts_and_then_its_figures(read: Read) -> None:
    with scripted_server(answers(*FRAMES)) as server:
        outcome = read(server.url, max_tokens=50, temperature=0, stop="\n")
    assert outcome.texts == ["Hé", "llo"]
    assert outcome.error is None
    stream = outcome.stream
    assert (stream.text, stream.id, stream.finish_reason) == ("Héllo", "a-stream", "stop")
    assert stream.usage == Usage(4, 2)
    assert stream.timings == Timings(0.1, 0.2, 0.5, 40.5)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/generate")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers
    assert json.loads(request.body) == {
        "prompt": "Hi",
        "max_tokens": 50,
        "temperature": 0,
        "stop": ["\n"],
        "stream": True,
    }


def test_a_stream_in_single_bytes_is_the_same(read: Read) -> None:
    body = b": ping\n\n" + b"".join(FRAMES)
    with scripted_server(answers(*(body[n : n + 1] for n in range(len(body))))) as server:
        assert read(server.url).texts == ["Hé", "llo"]


def test_a_text_is_given_before_the_next_one_is_sent(read: Read) -> None:
    is_read = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        peer.wait_until_gone()
        is_read.set()

    with scripted_server(script) as server:
        outcome = read(server.url, leave_after=1, left=lambda: is_read.wait(20))
    assert outcome.texts == ["Hé"]
    assert is_read.is_set()


def test_messages_are_sent_instead_of_a_prompt(read: Read) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with scripted_server(answers(*FRAMES)) as server:
        read(server.url, prompt=None, messages=messages)
    assert json.loads(server.requests[0].body) == {"messages": messages, "stream": True}


def test_the_key_goes_with_every_request(read: Read) -> None:
    with scripted_server(answers(*FRAMES)) as server:
        read(server.url, api_key="secret")
    assert server.requests[0].headers["authorization"] == "Bearer secret"


def test_connections_are_used_again() -> None:
    with (
        scripted_server(*[answers(*FRAMES)] * 3) as server,
        Client(server.url) as client,
    ):
        for _ in range(3):
            assert "".join(client.stream("Hi")) == "Héllo"
        assert server.num_connections == 1


def test_a_path_before_the_api_is_kept() -> None:
    with (
        scripted_server(answers(*FRAMES)) as server,
        Client(f"{server.url}/llm/") as client,
    ):
        assert "".join(client.stream("Hi")) == "Héllo"
        assert server.requests[0].path == "/llm/generate"


# --- a stream that is left or cancelled


@pytest.mark.parametrize("is_entered", [False, True], ids=["bare loop", "with block"])
def test_leaving_early_closes_the_connection_at_once(read: Read, is_entered: bool) -> None:
    is_gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]), chunk(FRAMES[1]))
        peer.wait_until_gone()
        is_gone.set()

    def left() -> None:  # while the client is still open
        assert is_gone.wait(20), "the connection is still open"

    with scripted_server(script) as server:
        outcome = read(server.url, leave_after=1, left=left, is_entered=is_entered)
    assert outcome.stream.text == "Hé"
    assert outcome.stream.finish_reason is None


def test_a_loop_may_be_taken_up_again_inside_a_with_block() -> None:
    with (
        scripted_server(answers(b"".join(FRAMES))) as server,
        Client(server.url) as client,
        client.stream("Hi") as stream,
    ):
        assert stream.id == "a-stream"
        assert next(iter(stream)) == "Hé"
        assert list(stream) == ["llo"]
        assert list(stream) == []
        assert stream.text == "Héllo"


def test_a_stream_left_early_does_not_look_like_one_that_ended() -> None:
    with (
        scripted_server(lambda peer: peer.send(HEAD, chunk(FRAMES[0]))) as server,
        Client(server.url) as client,
    ):
        stream = client.stream("Hi", resumable=False)
        for _ in stream:
            break
        with pytest.raises(PenstockError, match="closed before its end"):
            list(stream)


async def test_a_cancelled_task_closes_the_connection_at_once() -> None:
    is_gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        peer.wait_until_gone()
        is_gone.set()

    begun = asyncio.Event()

    async def consume(client: AsyncClient) -> None:
        async for _ in client.stream("Hi", resumable=False):
            begun.set()

    with scripted_server(script) as server:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(consume(client))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(is_gone.wait, 20)


def test_a_cancelled_stream_still_comes_to_its_end(read: Read) -> None:
    is_cancelled = threading.Event()

    def streaming(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        assert is_cancelled.wait(20)
        peer.send(chunk(frame(**{**FINISH, "index": 1, "finish_reason": "cancelled"})), END)

    def cancelling(peer: Peer) -> None:
        assert (peer.method, peer.path) == ("DELETE", "/streams/a-stream")
        peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        is_cancelled.set()

    with scripted_server(streaming, cancelling) as server:
        outcome = read(server.url, cancel_after=1)
    assert outcome.error is None
    assert outcome.stream.finish_reason == "cancelled"
    assert outcome.stream.usage == Usage(4, 2)


def test_cancelling_a_stream_that_the_server_forgot_is_no_error(read: Read) -> None:
    is_refused = threading.Event()

    def streaming(peer: Peer) -> None:
        peer.send(HEAD, *map(chunk, FRAMES[:2]))
        assert is_refused.wait(20)
        peer.send(chunk(TERMINAL), END)

    def cancelling(peer: Peer) -> None:
        peer.send(whole(b"{}", b"404 Not Found", b"application/problem+json"))
        is_refused.set()

    with scripted_server(streaming, cancelling) as server:
        assert read(server.url, cancel_after=1).error is None


def test_cancelling_may_be_refused(read: Read) -> None:
    def cancelling(peer: Peer) -> None:
        peer.send(whole(b'{"code":"x","detail":"No."}', b"403 Forbidden"))

    def streaming(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        peer.wait_until_gone()

    with scripted_server(streaming, cancelling) as server:
        outcome = read(server.url, cancel_after=1)
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.code == "x"


def test_cancelling_before_the_beginning_and_after_the_end_sends_no_request() -> None:
    with (
        scripted_server(answers(*FRAMES)) as server,
        Client(server.url) as client,
    ):
        stream = client.stream("Hi")
        list(stream)
        stream.cancel()
        client.stream("Hi").cancel()
        assert len(server.requests) == 1


# --- a stream that is cut, fails, or does not begin


def test_a_connection_that_ends_without_a_terminal_event_raises(read: Read) -> None:
    with scripted_server(answers(*FRAMES[:2])) as server:
        outcome = read(server.url)
    assert outcome.texts == ["Hé", "llo"]
    assert (outcome.cut.text, outcome.cut.num_deltas) == ("Héllo", 2)
    assert "ended before the answer did" in str(outcome.error)


@pytest.mark.parametrize("how", [Peer.close, Peer.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("where", ["head", "first event", "event", "chunk", "terminal event"])
def test_a_connection_cut_anywhere_raises(
    read: Read, how: Callable[[Peer], None], where: str
) -> None:
    sent = {
        "head": [HEAD[:40]],
        "first event": [HEAD],
        "event": [HEAD, chunk(FRAMES[0]), chunk(FRAMES[1][:20])],
        "chunk": [HEAD, chunk(FRAMES[0]), chunk(FRAMES[1])[:20]],
        "terminal event": [HEAD, chunk(FRAMES[0]), chunk(FRAMES[1]), chunk(TERMINAL[:-1])],
    }[where]

    def script(peer: Peer) -> None:
        peer.send(*sent)
        how(peer)

    with scripted_server(script) as server:
        outcome = read(server.url)
    assert outcome.cut.text == "".join(outcome.texts)
    if how is Peer.close and where == "terminal event":  # RST may overtake what was sent
        assert outcome.texts == ["Hé", "llo"]


def test_a_response_without_length_that_just_closes_is_cut_too(read: Read) -> None:
    """HTTP/1.0 proxies end a body by closing the connection, as a crash does."""

    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *FRAMES[:2])
        peer.close()

    with scripted_server(script) as server:
        outcome = read(server.url)
    assert outcome.cut.text == "Héllo"
    assert outcome.stream.id is None


def test_a_server_that_falls_silent_raises_after_the_timeout(read: Read) -> None:
    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        peer.wait_until_gone()

    with scripted_server(script) as server:
        outcome = read(server.url, timeout=3)
    assert outcome.cut.text == "Hé"
    assert f"nothing came from {server.url} for 3 seconds" in str(outcome.error)


def test_a_server_that_never_answers_raises_after_the_timeout(read: Read) -> None:
    with scripted_server(Peer.wait_until_gone) as server:
        outcome = read(server.url, timeout=2)
    assert outcome.cut.num_deltas == 0


@pytest.mark.parametrize("how", [Peer.wait_until_gone, Peer.close, Peer.reset])
def test_a_terminal_event_is_the_end_whatever_the_connection_does(
    read: Read, how: Callable[[Peer], None]
) -> None:
    def script(peer: Peer) -> None:
        peer.send(HEAD, *map(chunk, FRAMES))
        if how is Peer.reset:
            peer.send(chunk(b": ping\n"))
        how(peer)

    with scripted_server(script) as server:
        outcome = read(server.url, timeout=5)  # the client waits so long for the body's end
    if how is not Peer.reset or outcome.error is None:  # RST may overtake what was sent
        assert outcome.texts == ["Hé", "llo"]
        assert outcome.stream.finish_reason == "stop"


def test_an_error_event_raises_its_error(read: Read) -> None:
    problem = {"code": "engine_died", "message": "The engine stopped.", "retry_safe": True}
    end = {**FINISH, "index": 1, "finish_reason": "error", "error": problem}
    with scripted_server(answers(FRAMES[0], frame(**end))) as server:
        outcome = read(server.url)
    assert outcome.texts == ["Hé"]
    assert isinstance(outcome.error, FailedStreamError)
    assert outcome.error.code == "engine_died"
    assert outcome.error.retry_safe
    assert outcome.error.text == "Hé"


def test_a_lost_event_raises(read: Read) -> None:
    with scripted_server(answers(FRAMES[0], delta(2, "x"), TERMINAL)) as server:
        outcome = read(server.url)
    assert outcome.texts == ["Hé"]
    assert "event 2 arrived instead of event 1" in str(outcome.cut)


def test_a_refusal_raises_before_the_first_text(read: Read) -> None:
    problem = json.dumps(
        {
            "title": "Invalid field",
            "status": 422,
            "detail": "max_tokens must be at least 1.",
            "code": "too_small",
            "errors": [{"field": "max_tokens", "message": "must be at least 1"}],
        }
    ).encode()
    head = b"422 Unprocessable Content"
    for is_entered in (False, True):
        with scripted_server(
            lambda peer: peer.send(whole(problem, head, b"application/problem+json"))
        ) as server:
            error = read(server.url, is_entered=is_entered).error
        assert isinstance(error, RefusedError)
        assert (error.status, error.code) == (422, "too_small")
        assert error.errors == (InvalidField("max_tokens", "must be at least 1"),)


@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"307 Temporary Redirect"])
def test_an_error_page_is_a_refusal(read: Read, status: bytes) -> None:
    with scripted_server(
        lambda peer: peer.send(whole(b"<h1>Oops</h1>", status, b"text/html"))
    ) as server:
        error = read(server.url).error
    assert isinstance(error, RefusedError)
    assert str(error) == f"the server answered {status.decode()}"


@pytest.mark.parametrize("content_type", [b"text/html", b"application/json", b"text/plain"])
def test_a_200_that_is_no_stream_raises(read: Read, content_type: bytes) -> None:
    with scripted_server(
        lambda peer: peer.send(whole(b"<h1>Welcome</h1>", content_type=content_type))
    ) as server:
        error = read(server.url).error
    assert isinstance(error, UnexpectedAnswerError)
    assert content_type.decode() in str(error)


def test_something_that_speaks_no_http_raises(read: Read) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        peer.close()

    with scripted_server(script) as server:
        assert isinstance(read(server.url).error, PenstockError)


def test_no_server_says_how_to_start_one(read: Read) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = read(url).error
    assert isinstance(error, ServerUnreachableError)
    assert str(error) == f"no server at {url}: start one with `penstock serve`"


# --- whole answers, health and model, URLs

COMPLETION = (
    b'{"text":"H\xc3\xa9","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},'
    b'"request_time":0.25,"finish_reason":"length","more":[]}'
)


def test_a_whole_answer_is_one_value() -> None:
    with (
        scripted_server(lambda peer: peer.send(whole(COMPLETION))) as server,
        Client(server.url) as client,
    ):
        completion = client.generate("Hi", top_p=0.5)
        assert completion.text == "Hé"
        assert completion.usage == Usage(1, 2)
        assert completion.finish_reason == "length"
        assert completion.request_time == 0.25
        assert json.loads(server.requests[0].body) == {
            "prompt": "Hi",
            "top_p": 0.5,
            "stream": False,
        }


async def test_a_whole_answer_is_one_value_in_asyncio_too() -> None:
    with scripted_server(lambda peer: peer.send(whole(COMPLETION))) as server:
        async with AsyncClient(server.url) as client:
            assert (await client.generate("Hi")).text == "Hé"


def test_a_whole_answer_cut_short_raises() -> None:
    def script(peer: Peer) -> None:
        peer.send(whole(COMPLETION)[:-10])
        peer.close()

    with (
        scripted_server(script) as server,
        Client(server.url) as client,
        pytest.raises(CutStreamError, match="ended before the answer did"),
    ):
        client.generate("Hi")


def test_health_and_model_are_the_servers_own_words() -> None:
    scripts = [
        lambda peer: peer.send(whole(b'{"status":"healthy"}')),
        lambda peer: peer.send(whole(b'{"message":"Penstock is running","model":"tiny"}')),
        lambda peer: peer.send(whole(b'{"detail":"Loading."}', b"503 Service Unavailable")),
    ]
    with scripted_server(*scripts) as server, Client(server.url) as client:
        assert client.health() == "healthy"
        assert client.model() == "tiny"
        assert [each.path for each in server.requests] == ["/health", "/"]
        assert server.requests[1].headers["accept"] == "application/json"
        with pytest.raises(RefusedError, match="Loading"):
            client.health()


async def test_health_and_model_in_asyncio_too() -> None:
    scripts = [
        lambda peer: peer.send(whole(b'{"status":"healthy"}')),
        lambda peer: peer.send(whole(b'{"message":"Penstock is running","model":"tiny"}')),
    ]
    with scripted_server(*scripts) as server:
        async with AsyncClient(server.url) as client:
            assert await client.health() == "healthy"
            assert await client.model() == "tiny"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "localhost:8000", "", "ftp://x", "http://", "http://a:b", "/x"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_url_that_is_not_of_a_server_is_refused(
    url: str, kind: type[Client] | type[AsyncClient]
) -> None:
    with pytest.raises(ValueError, match="URL"):
        kind(url)


def test_a_proxy_from_the_environment_is_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with scripted_server(*[answers(*FRAMES)] * 2) as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with Client(url) as client:
                assert "".join(client.stream("Hi")) == "Héllo"


def test_a_client_shows_its_url_and_never_its_key() -> None:
    with Client("http://127.0.0.1:8000", api_key="secret") as client:
        assert repr(client) == "Client('http://127.0.0.1:8000')"


async def test_many_streams_run_at_once() -> None:
    everyone = threading.Barrier(150)

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(FRAMES[0]))
        everyone.wait(20)
        peer.send(chunk(FRAMES[1]), chunk(TERMINAL), END)

    async def one(client: AsyncClient) -> str:
        return "".join([text async for text in client.stream("Hi")])

    with scripted_server(*[script] * 150) as server:
        async with AsyncClient(server.url) as client:
            texts = await asyncio.gather(*(one(client) for _ in range(150)))
    assert set(texts) == {"Héllo"}
