"""Streams that continue over another connection: both clients on real sockets.

The first server is scripted byte by byte; the second is a real server behind a proxy that cuts
connections. Each test of streaming runs for both clients: `read` is the same few lines, sync or
async.
"""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from penstock.client import (
    AsyncClient,
    AsyncStream,
    Backoff,
    Client,
    CutStreamError,
    FailedStreamError,
    PenstockError,
    RefusedError,
    Stream,
    http,
)
from tests.client.test_answer import FINISH
from tests.client.test_resume import event, log_of
from tests.faults.proxy import Faults, black_hole, cut, proxy_in_a_thread
from tests.support.ports import free_port
from tests.support.scripted_server import END, HEAD, Peer, chunk, scripted_server, whole
from tests.support.servers import RunningServer, serve

TEXTS = ["Hé", "llo", " 👋"]
LOG = log_of(*TEXTS)
QUICK = Backoff(first=0.01, max=0.05)
SILENT_S = 3
"""Seconds of silence that a client bears here: a busy machine may stand still for one."""


@dataclass
class Outcome:
    """The texts, the error and the callbacks that a program got from a stream."""

    stream: Stream | AsyncStream
    texts: list[str] = field(default_factory=list)
    error: Exception | None = None
    told: list[str] = field(default_factory=list)

    @property
    def cut(self) -> CutStreamError:
        assert isinstance(self.error, CutStreamError)
        return self.error


class Read(Protocol):
    def __call__(
        self,
        url: str,
        *,
        resume: tuple[str, int | None] | None = None,
        leave_after: int = -1,
        is_entered: bool = False,
        timeout: float = 20,
        resume_timeout: float = 20,
        backoff: Backoff = QUICK,
        **options: Any,
    ) -> Outcome: ...


def read_sync(
    url: str,
    *,
    resume: tuple[str, int | None] | None = None,
    leave_after: int = -1,
    is_entered: bool = False,
    timeout: float = 20,
    resume_timeout: float = 20,
    backoff: Backoff = QUICK,
    **options: Any,
) -> Outcome:
    told: list[str] = []
    listening: Any = {"on_cut": told.append, "on_resume": lambda: told.append("resumed")}

    def loop() -> None:
        for text in stream:
            outcome.texts.append(text)
            if len(outcome.texts) == leave_after:
                break

    with Client(url, timeout=timeout, resume_timeout=resume_timeout, backoff=backoff) as client:
        if resume is not None:
            stream = client.resume(*resume, **listening)
        else:
            stream = client.stream(**{"prompt": "Hi", **listening, **options})
        outcome = Outcome(stream, told=told)
        try:
            if is_entered:
                with stream:
                    loop()
            else:
                loop()
        except PenstockError as error:
            outcome.error = error
    return outcome


def read_async(
    url: str,
    *,
    resume: tuple[str, int | None] | None = None,
    leave_after: int = -1,
    is_entered: bool = False,
    timeout: float = 20,
    resume_timeout: float = 20,
    backoff: Backoff = QUICK,
    **options: Any,
) -> Outcome:
    told: list[str] = []
    listening: Any = {"on_cut": told.append, "on_resume": lambda: told.append("resumed")}

    async def loop(stream: AsyncStream, outcome: Outcome) -> None:
        async for text in stream:
            outcome.texts.append(text)
            if len(outcome.texts) == leave_after:
                break

    async def main() -> Outcome:
        async with AsyncClient(
            url, timeout=timeout, resume_timeout=resume_timeout, backoff=backoff
        ) as client:
            if resume is not None:
                stream = client.resume(*resume, **listening)
            else:
                stream = client.stream(**{"prompt": "Hi", **listening, **options})
            outcome = Outcome(stream, told=told)
            try:
                if is_entered:
                    async with stream:
                        await loop(stream, outcome)
                else:
                    await loop(stream, outcome)
            except PenstockError as error:
                outcome.error = error
            return outcome

    return asyncio.run(main())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    reader: Read = request.param
    return reader


Script = Callable[[Peer], None]


def sends(*frames: bytes, then: Callable[[Peer], None] = Peer.close) -> Script:
    """Return a script that sends these frames and then calls `then`."""

    def script(peer: Peer) -> None:
        peer.send(HEAD, *map(chunk, frames))
        then(peer)

    return script


def ends(peer: Peer) -> None:
    peer.send(END)


def answers(status: bytes, *, detail: str = "No.", more: bytes = b"") -> Script:
    body = json.dumps({"detail": detail, "code": "x"}).encode()
    head, _, rest = whole(body, status, b"application/problem+json").partition(b"\r\n")
    return lambda peer: peer.send(head + b"\r\n" + more + rest)


# --- scripted: cut, and go on


def test_a_cut_stream_goes_on_where_it_was(read: Read) -> None:
    def goes_on(peer: Peer) -> None:
        # A reset may overtake what was sent before it.
        assert peer.headers["last-event-id"] in ("0", "1")
        sends(*LOG[int(peer.headers["last-event-id"]) + 1 :], then=ends)(peer)

    scripts = [
        sends(LOG[0], LOG[1][:20]),
        sends(b"retry: 10\n", b": ping\n", LOG[1], then=Peer.reset),
        goes_on,
    ]
    with scripted_server(*scripts) as server:
        outcome = read(server.url)
    first, second, third = server.requests
    assert json.loads(first.body) == {"prompt": "Hi", "stream": True, "resumable": True}
    assert (second.method, second.path) == ("GET", "/streams/a-stream")
    assert second.headers["last-event-id"] == "0"
    assert second.headers["accept"] == "text/event-stream"
    assert second.headers["accept-encoding"] == "identity"
    assert (third.method, third.path) == ("GET", "/streams/a-stream")
    assert outcome.texts == TEXTS
    assert outcome.stream.finish_reason == "stop"
    assert outcome.stream.num_resumes == 2
    assert outcome.stream.last_event_id == 3
    assert [line == "resumed" for line in outcome.told] == [False, True, False, True]


def test_a_cut_before_the_first_event_asks_for_all_of_them(read: Read) -> None:
    with scripted_server(sends(b": ping\n"), sends(*LOG, then=ends)) as server:
        outcome = read(server.url)
    assert "last-event-id" not in server.requests[1].headers
    assert outcome.texts == TEXTS


def test_silence_is_a_cut(read: Read) -> None:
    silent = sends(LOG[0], then=Peer.wait_until_gone)
    with scripted_server(silent, sends(*LOG[1:], then=ends)) as server:
        outcome = read(server.url, timeout=SILENT_S)
    assert outcome.texts == TEXTS
    assert outcome.told == [f"nothing came from {server.url} for {SILENT_S} seconds", "resumed"]


def test_three_heartbeats_that_did_not_come_are_a_cut_however_patient_the_client(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.MAX_SILENCE_S == 45
    monkeypatch.setattr(http, "MAX_SILENCE_S", SILENT_S)
    silent = sends(LOG[0], then=Peer.wait_until_gone)
    with scripted_server(silent, sends(*LOG[1:], then=ends)) as server:
        outcome = read(server.url, timeout=600)
    assert outcome.texts == TEXTS
    assert outcome.told == [f"nothing came from {server.url} for {SILENT_S} seconds", "resumed"]


def test_an_attempt_without_an_answer_ends_before_the_stream_does(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.client.resume.ATTEMPT_S", SILENT_S)
    scripts = [sends(LOG[0]), Peer.wait_until_gone, sends(*LOG[1:], then=ends)]
    with scripted_server(*scripts) as server:
        outcome = read(server.url)
    assert outcome.texts == TEXTS


def test_a_server_that_is_busy_or_drains_is_asked_again_when_it_says(read: Read) -> None:
    scripts = [
        sends(LOG[0]),
        answers(b"503 Service Unavailable", more=b"Retry-After: 1\r\n"),
        answers(b"502 Bad Gateway"),
        sends(*LOG[1:], then=ends),
    ]
    begin = time.monotonic()
    with scripted_server(*scripts) as server:
        outcome = read(server.url)
    assert outcome.texts == TEXTS
    assert outcome.stream.num_resumes == 1
    assert time.monotonic() - begin >= 1


def test_a_server_that_restarts_is_found_again(read: Read) -> None:
    """Refused connections count as attempts; the server returns while the client waits."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{port}"
        back: list[threading.Thread] = []

        def hold(socket_: socket.socket, body: bytes) -> None:
            connection, _ = socket_.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(body)

        def first() -> None:
            hold(listener, HEAD + chunk(LOG[0]))
            listener.close()

        def second() -> None:
            with socket.create_server(("127.0.0.1", port)) as again:
                hold(again, HEAD + b"".join(map(chunk, LOG[1:])) + END)

        thread = threading.Thread(target=first)
        thread.start()

        def on_cut(_: str) -> None:
            thread.join()
            timer = threading.Timer(0.3, second)
            timer.start()
            back.append(timer)

        outcome = read(url, on_cut=on_cut)
        back[0].join()
    assert outcome.texts == TEXTS


def test_a_gap_is_an_error_and_ends_the_generation(read: Read) -> None:
    is_ended = threading.Event()

    def deleting(peer: Peer) -> None:
        assert (peer.method, peer.path) == ("DELETE", "/streams/a-stream")
        is_ended.set()
        peer.send(whole(b"{}"))

    scripts = [sends(LOG[0]), sends(LOG[2], then=lambda _: None), deleting]
    with scripted_server(*scripts) as server:
        outcome = read(server.url)
        assert is_ended.is_set()
    assert "event 2 arrived instead of event 1" in str(outcome.cut)
    assert (outcome.cut.text, outcome.cut.num_deltas) == ("Hé", 1)


@pytest.mark.parametrize("status", [b"404 Not Found", b"410 Gone"])
def test_a_history_that_is_lost_says_so(read: Read, status: bytes) -> None:
    scripts = [sends(LOG[0]), answers(status, detail="It is no longer kept.")]
    with scripted_server(*scripts) as server:
        outcome = read(server.url)
    assert outcome.texts == ["Hé"]
    assert outcome.cut.text == "Hé"
    assert "the rest is lost because the server no longer has it: It is no longer kept." in str(
        outcome.error
    )
    assert isinstance(outcome.cut.__cause__, RefusedError)
    assert len(server.requests) == 2  # the client does not cancel a stream that is gone


@pytest.mark.parametrize("status", [b"409 Conflict", b"400 Bad Request", b"204 No Content"])
def test_a_stream_that_cannot_be_resumed_says_why(read: Read, status: bytes) -> None:
    with scripted_server(sends(LOG[0]), answers(status)) as server:
        outcome = read(server.url)
    assert "the stream could not be resumed: " in str(outcome.cut)


def test_a_page_instead_of_the_stream_ends_it(read: Read) -> None:
    page = whole(b"<h1>Welcome</h1>", content_type=b"text/html")
    with scripted_server(sends(LOG[0]), lambda peer: peer.send(page)) as server:
        outcome = read(server.url)
    assert "could not be resumed: the response has the type text/html" in str(outcome.cut)


def test_a_server_that_does_not_come_back_is_given_up(read: Read) -> None:
    with scripted_server(*[sends(LOG[0])] + [Peer.close] * 1000) as server:
        begin = time.monotonic()
        outcome = read(server.url, resume_timeout=3)
    assert 3 <= time.monotonic() - begin < 30
    assert outcome.cut.text == "Hé"
    assert "the stream could not be resumed in 3 s" in str(outcome.error)
    assert 5 < len(server.requests) < 1000


def test_an_error_after_a_cut_is_the_servers_own(read: Read) -> None:
    error = {"code": "server_shutdown", "message": "The server ended.", "retry_safe": True}
    end = event(1, **{**FINISH, "index": 1, "finish_reason": "error", "error": error})
    with scripted_server(sends(LOG[0]), sends(end, then=ends)) as server:
        outcome = read(server.url)
    assert isinstance(outcome.error, FailedStreamError)
    assert (outcome.error.code, outcome.error.text) == ("server_shutdown", "Hé")


def test_not_resumable_means_one_connection(read: Read) -> None:
    with scripted_server(sends(LOG[0])) as server:
        outcome = read(server.url, resumable=False)
    assert json.loads(server.requests[0].body) == {"prompt": "Hi", "stream": True}
    assert outcome.cut.text == "Hé"
    assert outcome.told == []


# --- scripted: leaving


@pytest.mark.parametrize("is_entered", [False, True], ids=["bare loop", "with block"])
def test_leaving_early_ends_the_generation_on_the_server(read: Read, is_entered: bool) -> None:
    def deleting(peer: Peer) -> None:
        assert (peer.method, peer.path) == ("DELETE", "/streams/a-stream")
        peer.send(whole(b"{}"))

    streaming = sends(*LOG[:2], then=Peer.wait_until_gone)
    with scripted_server(streaming, deleting) as server:
        outcome = read(server.url, leave_after=1, is_entered=is_entered)
    assert outcome.error is None
    assert [peer.method for peer in server.requests] == ["POST", "DELETE"]


def test_closing_the_client_leaves_its_streams() -> None:
    scripts = [sends(LOG[0], then=Peer.wait_until_gone), lambda peer: peer.send(whole(b"{}"))]
    with scripted_server(*scripts) as server:
        client = Client(server.url)
        texts = iter(client.stream("Hi"))
        assert next(texts) == "Hé"
        client.close()
        assert [peer.method for peer in server.requests] == ["POST", "DELETE"]


def test_leaving_does_not_wait_for_a_server_that_is_silent(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "QUICK_CANCEL_S", 2.0)
    scripts = [sends(LOG[0], then=Peer.wait_until_gone), Peer.wait_until_gone]
    begin = time.monotonic()
    with scripted_server(*scripts) as server:
        outcome = read(server.url, leave_after=1)
        assert time.monotonic() - begin < 10 * http.QUICK_CANCEL_S
    assert outcome.error is None


async def test_a_task_that_is_cancelled_over_and_over_still_ends_the_generation() -> None:
    is_ended = threading.Event()

    def deleting(peer: Peer) -> None:
        assert peer.method == "DELETE"
        is_ended.set()
        peer.send(whole(b"{}"))

    begun = asyncio.Event()

    async def consume(client: AsyncClient) -> None:
        async for _ in client.stream("Hi"):
            begun.set()

    with scripted_server(sends(LOG[0], then=Peer.wait_until_gone), deleting) as server:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(consume(client))
            await begun.wait()
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            assert await asyncio.to_thread(is_ended.wait, 20)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_wait_between_attempts_ends_when_the_stream_is_left(is_async: bool) -> None:
    never = Backoff(first=3600, max=3600)
    scripts = [sends(LOG[0]), lambda peer: peer.send(whole(b"{}"))]

    def sync() -> None:
        with Client(server.url, backoff=never, resume_timeout=7200) as client:
            stream = client.stream(
                "Hi", on_cut=lambda _: threading.Timer(0.1, stream.close).start()
            )
            with pytest.raises(PenstockError, match="closed before its end"):
                list(stream)

    async def asynchronous() -> None:
        async with AsyncClient(server.url, backoff=never, resume_timeout=7200) as client:
            cut = asyncio.Event()
            stream = client.stream("Hi", on_cut=lambda _: cut.set())

            async def leave() -> None:
                await cut.wait()
                await stream.close()

            leaving = asyncio.create_task(leave())
            with pytest.raises(PenstockError, match="closed before its end"):
                _ = [text async for text in stream]
            await leaving

    with scripted_server(*scripts) as server:
        asyncio.run(asynchronous()) if is_async else sync()
        assert [peer.method for peer in server.requests] == ["POST", "DELETE"]


# --- scripted: a stream that another client opened


def test_a_stream_is_read_by_its_id_from_its_start_and_after_an_event(read: Read) -> None:
    with scripted_server(sends(*LOG, then=ends)) as server:
        outcome = read(server.url, resume=("a/b", None))
        assert server.requests[0].path == "/streams/a%2Fb"
        assert "last-event-id" not in server.requests[0].headers
    assert outcome.texts == TEXTS
    assert outcome.stream.id == "a/b"
    with scripted_server(sends(LOG[2]), sends(LOG[3], then=ends)) as server:
        outcome = read(server.url, resume=("a", 1))
        assert [peer.headers["last-event-id"] for peer in server.requests] == ["1", "2"]
    assert outcome.texts == TEXTS[2:]
    assert outcome.stream.finish_reason == "stop"


def test_nothing_after_the_last_event_is_an_end(read: Read) -> None:
    with scripted_server(lambda peer: peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        outcome = read(server.url, resume=("a", 3))
    assert (outcome.texts, outcome.error) == ([], None)
    assert outcome.stream.last_event_id == 3


def test_an_id_that_the_server_does_not_know_is_refused(read: Read) -> None:
    with scripted_server(answers(b"404 Not Found")) as server:
        outcome = read(server.url, resume=("a", None))
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.status == 404


def test_leaving_a_stream_of_another_client_does_not_end_it(read: Read) -> None:
    with scripted_server(sends(*LOG[:2], then=Peer.wait_until_gone)) as server:
        read(server.url, resume=("a", None), leave_after=1)
    assert [peer.method for peer in server.requests] == ["GET"]


def test_invalid_arguments_are_refused_at_once() -> None:
    with Client() as client:
        with pytest.raises(ValueError, match="id"):
            client.resume("")
        with pytest.raises(ValueError, match="after"):
            client.resume("a", -1)
    with pytest.raises(ValueError, match="resume_timeout"):
        Client(resume_timeout=-1)
    with pytest.raises(ValueError, match="resume_timeout"):
        AsyncClient(resume_timeout=float("nan"))


# --- a real server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Start a server whose token i is "<first word of the prompt>:<i> ", so the text is known."""
    with serve(
        engine="mock", mock_interval=0.002, engine_arg=["numbered=true", "length=2000"]
    ) as running:
        yield running


def numbered(word: str, count: int) -> list[str]:
    return [f"{word}:{n} " for n in range(count)]


def test_cuts_at_any_byte_of_a_real_stream_lose_and_repeat_nothing(
    server: RunningServer, read: Read
) -> None:
    """Each connection sends 300 to 1,500 bytes, head included, and is cut by FIN or RST."""

    def faults(chance: random.Random) -> Faults:
        return Faults(down=[cut(chance.randint(300, 1500), chance.choice(["FIN", "RST"]))])

    with proxy_in_a_thread(("127.0.0.1", server.port), seed=7) as proxy:
        url = f"http://127.0.0.1:{proxy.address[1]}"
        first = []

        def faults_but_of_the_head(chance: random.Random) -> Faults:
            """Let the first head through: without it there is no id to resume."""
            first.append(1)
            return Faults(down=[cut(700)]) if len(first) == 1 else faults(chance)

        proxy.faults_of = faults_but_of_the_head
        outcome = read(url, prompt="Cut", max_tokens=200)
        assert proxy.num_cuts >= outcome.stream.num_resumes > 5
    assert outcome.error is None
    assert outcome.texts == numbered("Cut", 200)
    assert outcome.stream.finish_reason == "length"
    assert outcome.stream.usage is not None
    assert outcome.stream.usage.completion_tokens == 200
    assert [line == "resumed" for line in outcome.told] == [
        *[False, True] * outcome.stream.num_resumes
    ]


def test_a_network_that_goes_silent_is_a_cut(server: RunningServer, read: Read) -> None:
    with proxy_in_a_thread(("127.0.0.1", server.port)) as proxy:
        connections = iter([Faults(down=[black_hole(800)])])
        proxy.faults_of = lambda _: next(connections, Faults())
        url = f"http://127.0.0.1:{proxy.address[1]}"
        outcome = read(url, prompt="Quiet", max_tokens=50, timeout=SILENT_S)
    assert outcome.texts == numbered("Quiet", 50)
    assert outcome.stream.num_resumes == 1


@pytest.mark.parametrize("is_entered", [False, True], ids=["bare loop", "with block"])
def test_leaving_a_real_stream_ends_it_at_once(read: Read, is_entered: bool) -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["slots=1", "hang_at=2"]) as server:
        for _ in range(3):  # each would wait a minute for the previous stream
            outcome = read(server.url, leave_after=1, is_entered=is_entered)
            assert outcome.error is None
            assert len(outcome.texts) == 1


def test_another_process_goes_on_where_one_stopped(server: RunningServer) -> None:
    with Client(server.url) as one, one.stream("Two", max_tokens=100) as stream:
        texts = iter(stream)
        seen = [next(texts) for _ in range(10)]
        assert stream.id is not None
        with Client(server.url) as another:
            rest = list(another.resume(stream.id, stream.last_event_id))
            assert seen + rest == numbered("Two", 100)
            assert list(another.resume(stream.id)) == numbered("Two", 100)
            assert list(another.resume(stream.id, 100)) == []
            with pytest.raises(RefusedError) as raised:
                list(another.resume(stream.id, 101))
            assert raised.value.code == "bad_event_id"
        assert seen + list(texts) == numbered("Two", 100)


async def test_many_streams_are_cut_at_once_and_all_go_on(server: RunningServer) -> None:
    async def one(client: AsyncClient, word: str) -> int:
        stream = client.stream(word, max_tokens=100)
        assert [text async for text in stream] == numbered(word, 100)
        return stream.num_resumes

    target = ("127.0.0.1", server.port)
    with proxy_in_a_thread(target, lambda _: Faults(down=[cut(2000)])) as proxy:
        async with AsyncClient(f"http://127.0.0.1:{proxy.address[1]}", backoff=QUICK) as client:
            resumes = await asyncio.gather(*(one(client, f"w{n}") for n in range(32)))
    assert min(resumes) > 0
