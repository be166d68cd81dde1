"""A new API is one folder and one line: a tiny dialect gets everything from `Answering`.

The dialect speaks lines of text. Its fields, framer, whole answer and errors are defined here; the
application is put together as in `penstock.app`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from penstock.api.answering import Answering
from penstock.api.dialect import Call, Dialect, Form
from penstock.api.fields import Strict, parse
from penstock.api.joining import Joining
from penstock.api.native.routes import native_api
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.errors import Problem
from penstock.events import Delta, Failure, Finish
from penstock.request import Request
from penstock.store.names import MemoryNames
from penstock.stream.reader import Batch
from penstock.stream.record import SavedForm, StreamRecord
from penstock.stream.registry import Streams, new_stream_id
from penstock.stream.stream import Stream
from penstock.stream.unread import Unread
from penstock.web.access import AccessMiddleware
from penstock.web.auth import KeyCheck
from penstock.web.body import BodyReader
from penstock.web.gate import Gate
from penstock.web.granian import GranianPeer
from penstock.web.host import HostCheck
from penstock.web.keys import KeyRing
from penstock.web.liveness import Liveness
from penstock.web.problems import ErrorResponses, ProblemResponse, RouteGroup
from tests.support.scripted import ScriptedEngine, settle

# The whole API.


class LineFields(Strict):
    """A text to continue."""

    text: str
    bullet: str = "-"
    whole: bool = False
    kept: bool = False
    times: int = 1


class LineFrames:
    """Frames events as lines, numbered from `first` if `with_ids`."""

    def __init__(self, bullet: str, first: int, *, with_ids: bool) -> None:
        self._bullet = bullet
        self._next_id = first
        self._with_ids = with_ids

    def frame(self, batches: list[Batch]) -> bytes:
        lines = []
        for number, events in batches:
            for event in events:
                match event:
                    case Delta(text=text):
                        line = f"{number} {self._bullet} {text}\n"
                    case Finish(reason=reason):
                        line = f"{number} ended: {reason}\n"
                    case Failure(code=code):
                        line = f"{number} failed: {code}\n"
                lines.append(f"#{self._next_id} {line}" if self._with_ids else line)
                self._next_id += 1
        return "".join(lines).encode()


class LineForm(Form, frozen=True):
    """How an answer is shown as lines."""

    dialect = "lines"
    bullet: str

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> LineFrames:
        return LineFrames(self.bullet, 0, with_ids=with_ids)

    def num_events(self, stream: Stream) -> int:
        return len(stream.log)

    def resume(self, stream: Stream, first: int) -> tuple[int, LineFrames]:
        return first, LineFrames(self.bullet, first, with_ids=True)

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        return {"lines": [f"{self.bullet} {stream.log.text()}" for stream in streams]}


def parse_lines(body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
    asked = parse(LineFields, body, notes)
    return Call(
        requests=[Request(new_stream_id(), 9, prompt=asked.text) for _ in range(asked.times)],
        form=LineForm(asked.bullet),
        streamed=not asked.whole,
        resumable=asked.kept,
        num_per_prompt=asked.times,
    )


def line_error(problem: Problem) -> Response:
    body = {"sorry": problem.code, "because": problem.detail}
    return ProblemResponse(problem, body, problem.status, "application/json")


LINES = Dialect("lines", "Continue a text as lines.", LineFields, parse_lines, (LineForm,))


def lines_api(answering: Answering) -> RouteGroup:
    async def resume(http: HttpRequest) -> Response:
        return await answering.resume(http, http.path_params["stream_id"])

    routes = [answering.route("/lines", LINES), Route("/lines/{stream_id}", resume)]
    return RouteGroup(routes, line_error, prefix="/lines/")


# The application.


class Server:
    """The application with one scripted engine, and a client without sockets."""

    def __init__(self, patience: float = 0.0) -> None:
        self.engine = ScriptedEngine()
        self.streams = Streams([self.engine])
        bodies = BodyReader(max_bytes=1000, timeout=5)
        joining = Joining(MemoryNames(), self.streams)
        self.unread = Unread(self.streams, patience)
        watch = Liveness(15, 30)
        self.answering = Answering(self.streams, self.unread, watch, bodies, joining, strict=True)
        model = ServedModel(("scripted",), lambda: self.engine.info)
        # An API is a line here.
        groups = [native_api(self.answering, model), lines_api(self.answering)]
        errors = ErrorResponses(groups)
        routes = [route for group in groups for route in group.routes]
        host_check = HostCheck(lambda: None, ())
        key_check = KeyCheck(KeyRing())
        app = Gate(routes, host_check, key_check, errors, lambda inner: inner, always_cors=False)
        served = AccessMiddleware(app, self.streams.meter, GranianPeer)
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    @contextlib.asynccontextmanager
    async def asked(self, **fields: Any) -> AsyncIterator["asyncio.Task[httpx.Response]"]:
        """Ask for lines, and wait until the engine has the requests. The test acts for it."""
        response = asyncio.create_task(self.client.post("/lines", json=fields))
        await until(lambda: len(self.engine.submitted) >= fields.get("times", 1))
        yield response
        async with asyncio.timeout(20):
            await response
        assert all(stream.num_readers == 0 for stream in self.streams.open_streams())

    @property
    def sinks(self) -> list[Any]:
        return list(self.engine.sinks.values())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await settle()


def speak(sink: Any, *texts: str) -> None:
    sink.accepted((1, 2))
    sink.started()
    for text in texts:
        sink.delta(text, 1, ())


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with server.client:
        yield server


async def test_an_answer_is_streamed_in_the_dialect_s_frames(server: Server) -> None:
    async with server.asked(text="x", bullet="*") as response:
        (sink,) = server.sinks
        speak(sink, "one", "two")
        sink.finish("stop", 2)
    assert response.result().status_code == 200
    assert response.result().text == "0 * one\n0 * two\n0 ended: stop\n"
    assert response.result().headers["x-stream-id"] == server.engine.submitted[0].id
    assert len(server.streams) == 0


async def test_an_answer_is_sent_whole_as_the_dialect_s_object(server: Server) -> None:
    async with server.asked(text="x", whole=True, times=2) as response:
        for sink, text in zip(server.sinks, ("one", "two"), strict=True):
            speak(sink, text)
            sink.finish("stop", 1)
    assert response.result().json() == {"lines": ["- one", "- two"]}
    assert response.result().headers["x-stream-id"] == server.engine.submitted[0].id


async def test_several_choices_are_streamed_as_one_answer(server: Server) -> None:
    async with server.asked(text="x", times=2) as response:
        for sink in reversed(server.sinks):
            speak(sink, "text")
            sink.finish("length", 1)
    assert sorted(response.result().text.splitlines()) == [
        "0 - text",
        "0 ended: length",
        "1 - text",
        "1 ended: length",
    ]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_refusal_by_the_engine_is_an_error_in_the_dialect_s_form(
    server: Server, whole: bool
) -> None:
    async with server.asked(text="x", whole=whole) as response:
        server.sinks[0].fail("prompt_too_long", "It is too long.")
    assert response.result().status_code == 422
    assert response.result().json() == {"sorry": "prompt_too_long", "because": "It is too long."}


async def test_a_refusal_of_one_choice_ends_the_others(server: Server) -> None:
    async with server.asked(text="x", times=3) as response:
        server.sinks[1].fail("prompt_too_long", "It is too long.")
        server.sinks[0].accepted((1,))
    assert response.result().status_code == 422
    assert len(server.streams) == 0
    assert server.engine.sinks.keys() == {server.engine.submitted[1].id}  # it ended this one itself


async def test_a_failure_after_the_beginning_is_the_last_frame(server: Server) -> None:
    async with server.asked(text="x") as response:
        (sink,) = server.sinks
        speak(sink, "one")
        sink.fail("engine_error", "It gave up.")
    assert response.result().status_code == 200
    assert response.result().text == "0 - one\n0 failed: engine_error\n"


async def test_a_failure_is_the_error_of_a_whole_answer(server: Server) -> None:
    async with server.asked(text="x", whole=True) as response:
        (sink,) = server.sinks
        speak(sink, "one")
        sink.fail("engine_error", "It gave up.")
    assert response.result().status_code == 500
    assert response.result().json() == {"sorry": "engine_error", "because": "It gave up."}
    assert "x-stream-id" in response.result().headers


async def test_a_form_of_a_later_version_is_shown_by_servers_that_know_it(server: Server) -> None:
    record = StreamRecord(Request("x", 9, prompt="x"), resumable=True, form=SavedForm("later"))
    stream = server.streams.open(record)
    answer = await server.client.get(f"/lines/{stream.id}")
    assert (answer.status_code, answer.json()["sorry"]) == (503, "store_unavailable")
    assert "retry-after" in answer.headers


async def test_a_stream_is_resumed_in_the_form_that_it_was_opened_with(server: Server) -> None:
    async with server.asked(text="x", bullet="+", kept=True) as response:
        (sink,) = server.sinks
        speak(sink, "one", "two")
        address = f"/lines/{sink.id}"
        resumed = asyncio.create_task(server.client.get(address + "?after=0"))
        await until(lambda: sink.num_readers == 2)
        sink.delta("three", 1, ())
        sink.finish("stop", 3)
    rest = "#1 0 + two\n#2 0 + three\n#3 0 ended: stop\n"
    assert response.result().text == "#0 0 + one\n" + rest
    retry, _, text = (await resumed).text.partition("\n")
    assert (retry.partition(":")[0], text) == ("retry", rest)
    later = await server.client.get(address, headers={"Last-Event-ID": "2"})
    assert later.text.partition("\n")[2] == "#3 0 ended: stop\n"
    assert (await server.client.get(address + "?after=3")).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/lines", b'{"text": 5}', 422, "invalid_type"),
        ("POST", "/lines", b'{"text": "x", "txet": 5}', 422, "unknown_field"),
        ("POST", "/lines", b'{"text"', 400, "invalid_json"),
        ("POST", "/lines", b" " * 1001, 413, "body_too_large"),
        ("PUT", "/lines", b"", 405, "method_not_allowed"),
        ("GET", "/lines/never", b"", 404, "stream_not_found"),
        ("GET", "/lines/no/such", b"", 404, "no_such_route"),
    ],
)
async def test_every_error_on_the_dialect_s_routes_has_its_form(
    server: Server, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await server.client.request(method, path, content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["sorry"] == code
    assert response.json().keys() == {"sorry", "because"}


async def test_an_engine_that_is_down_is_an_error_in_the_dialect_s_form(server: Server) -> None:
    server.engine.go_down()
    response = await server.client.post("/lines", json={"text": "x"})
    assert (response.status_code, response.json()["sorry"]) == (503, "engine_down")
    assert len(server.streams) == 0


async def test_another_api_keeps_its_own_form_of_errors(server: Server) -> None:
    response = await server.client.post("/generate", json={"text": "x"})
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "unknown_field"


async def test_the_fields_of_the_dialect_are_known_to_the_description(server: Server) -> None:
    assert server.answering.fields["/lines"] is LineFields


async def test_the_time_of_a_request_runs_while_its_model_is_not_known() -> None:
    server = Server(patience=100)
    body = {"prompt": "x", "timeout": 9, "stream": False}
    asked = asyncio.create_task(server.client.post("/generate", json=body))
    await until(lambda: len(server.streams) == 1)
    (waiting,) = server.streams.open_streams()
    waiting.timer.set_age(5)
    server.unread.model_is_known()
    await until(lambda: len(server.engine.submitted) == 1)
    (stream,) = server.streams.open_streams()
    assert stream is not waiting
    assert stream.age >= 5
    assert stream.record.timeout is not None
    assert 0 < stream.record.timeout <= 4
    stream.expire()
    assert (await asked).status_code == 504
