"""`/openapi.json` says what the server really sends, and typed clients can be generated from it.

Real responses and events are compared with their schemas, in which no undescribed field is allowed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from penstock.api.description import JSON, NDJSON, Answer, Api, Operation
from penstock.api.description import Description as ApiDescription
from penstock.api.openapi import openapi_route
from penstock.errors import PROBLEMS, Problem
from penstock.web.keys import key_table, new_key
from tests.support import ollama_wire
from tests.support.anthropic_wire import COUNT_TOKENS, MESSAGES, TIME, asks
from tests.support.calling import CALLS, HELLO, NAMED
from tests.support.hurried import ENGINE as HURRIED
from tests.support.hurried import Hurry
from tests.support.openai_wire import CHAT, COMPLETIONS, RESUMABLE
from tests.support.raw import (
    Connection,
    Response,
    ask,
    cancel_stream,
    generate,
    open_stream,
    post,
    request,
)
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

STREAM = "/streams/{stream_id}"
TOKEN = "/streams/{stream_id}/token"
UNKNOWN = "A" * 22
CANNOT_BE_DESCRIBED = {"no_such_route", "no_such_file", "method_not_allowed", "not_served"}
RETRIES = {"Idempotency-Key", "Last-Event-ID"}
NO_NPM = "no npm found: install it (Debian, Ubuntu: apt-get install npm)"
# In an environment of its own: it needs an older typer than ours.
PYTHON_GENERATOR = "openapi-python-client>=0.29,<0.30"
TYPESCRIPT_GENERATOR = ("openapi-typescript@7", "typescript@5")


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0.005) as server:
        yield server


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    arguments = [f"chat_template={REASONING}", "sampling.reasoning_budget_tokens=8"]
    with serve(slots=4, engine_arg=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def page(mock: RunningServer) -> Any:
    return ask(mock.port, request("GET", "/openapi.json")).json()


@pytest.fixture(scope="module")
def description(page: Any) -> "Description":
    return Description(page)


class Description:
    """The description, in which objects have no other fields than the described ones."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._components = json.loads(json.dumps(page["components"]))
        for schema in self._components["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False

    def operation(self, method: str, path: str) -> Any:
        return self.page["paths"][path][method.lower()]

    def check(self, method: str, path: str, answer: Response) -> None:
        """Compare a response with the description of its route."""
        responses = self.operation(method, path)["responses"]
        assert str(answer.status) in responses, f"{answer.status} is not described for {path}"
        described = responses[str(answer.status)]
        for name in described["headers"]:
            is_required = self._components["headers"][name].get("required", False)
            assert name.lower() in answer.headers or not is_required
        ours = {"x-request-id", "x-stream-id", "server-timing", "retry-after", "www-authenticate"}
        assert ours & set(answer.headers) <= {name.lower() for name in described["headers"]}
        if "content" not in described:
            assert answer.body == b""
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = described["content"][media_type]["schema"]
        if media_type == "text/event-stream":
            self.check_events(method, path, answer.body)
        elif media_type == NDJSON:
            for line in ollama_wire.lines_of(answer.body):
                self._validate(schema["contentSchema"]["items"], line)
        elif "json" in media_type:
            self._validate(schema, answer.json())
            error = answer.json().get("error", answer.json())
            if isinstance(error, str):  # Ollama's form has the code beside it
                error = answer.json()
            if "code" in error:
                assert f"`{error['code']}`" in described["description"]

    def check_events(self, method: str, path: str, body: bytes) -> None:
        """Compare each event of a stream with its schema."""
        content = self.operation(method, path)["responses"]["200"]["content"]
        for data in data_of(body):
            self._validate(content["text/event-stream"]["schema"]["contentSchema"]["items"], data)

    def _validate(self, schema: Any, value: Any) -> None:
        jsonschema_rs.validate({**schema, "components": self._components}, value)


def data_of(body: bytes) -> list[Any]:
    """Return the data of each event: JSON, or the word `[DONE]`."""
    lines = [line[6:].decode() for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert lines
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def openai(path: str, *headers: str, **fields: Any) -> bytes:
    return post(json.dumps({"max_tokens": 12, **fields}).encode(), *headers, path=path)


USAGE = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
SHORT = {"num_predict": 9, "temperature": 0}
SPELLED = {"type": "function", "function": {"name": "get_time"}}
THINKING = {"type": "enabled", "budget_tokens": 8}
CALLED = {**CALLS, "max_tokens": 200, "tool_choice": NAMED, "reasoning_effort": "none"}
RIGHT = {
    ("POST", "/generate"): [
        generate(max_tokens=5),
        generate(max_tokens=5, stream=False),
        generate(max_tokens=5, resumable=True, seed=1),
        generate(max_tokens=5, timeout=1e-6),
    ],
    ("POST", CHAT): [
        openai(CHAT, messages=HELLO, n=2),
        openai(CHAT, messages=HELLO, n=2, **USAGE),
        openai(CHAT, RESUMABLE, messages=HELLO, stream=True),
        openai(CHAT, "X-Penstock-Timeout: 0.000001", messages=HELLO, stream=True),
        openai(CHAT, messages=HELLO, logprobs=True, top_logprobs=2, reasoning_effort="none"),
        openai(CHAT, messages=HELLO, logprobs=True, reasoning_effort="none", **USAGE),
        openai(CHAT, **CALLED),
        openai(CHAT, **CALLED, **USAGE),
    ],
    ("POST", COMPLETIONS): [
        openai(COMPLETIONS, prompt=["One", "Two"], echo=True),
        openai(COMPLETIONS, prompt=["One", "Two"], **USAGE),
        openai(COMPLETIONS, prompt="One", logprobs=2),
        openai(COMPLETIONS, prompt="One", logprobs=2, stream=True),
    ],
    ("POST", MESSAGES): [
        asks(),
        asks(RESUMABLE, stream=True),
        asks(thinking=THINKING, max_tokens=100),
        asks(thinking=THINKING, max_tokens=100, stream=True),
        asks(tools=[TIME], tool_choice={"type": "any"}, max_tokens=200),
        asks(tools=[TIME], tool_choice={"type": "any"}, max_tokens=200, stream=True),
        asks("X-Penstock-Timeout: 0.000001", stream=True),
    ],
    ("POST", COUNT_TOKENS): [asks(path=COUNT_TOKENS), asks(path=COUNT_TOKENS, tools=[TIME])],
    ("POST", ollama_wire.CHAT): [
        ollama_wire.asks(options={"num_predict": 40}),
        ollama_wire.asks(stream=False, options={"num_predict": 5}, logprobs=True, top_logprobs=1),
        ollama_wire.asks(logprobs=True, top_logprobs=1, think=False, options={"num_predict": 5}),
        ollama_wire.asks(RESUMABLE, tools=[SPELLED], options=SHORT),
        ollama_wire.asks(stream=False, tools=[SPELLED], options=SHORT),
        ollama_wire.asks("X-Penstock-Timeout: 0.000001"),
        ollama_wire.asks(messages=[]),
    ],
    ("POST", ollama_wire.GENERATE): [
        ollama_wire.asks(path=ollama_wire.GENERATE, options={"num_predict": 40}),
        ollama_wire.asks(path=ollama_wire.GENERATE, stream=False, raw=True, options=SHORT),
    ],
    ("POST", "/completion"): [
        openai("/completion", prompt="One"),
        openai("/completion", prompt="One", stream=True),
    ],
    ("POST", "/tokenize"): [
        openai("/tokenize", content="One"),
        post(b'{"messages": [{"role": "user"}]}', path="/tokenize"),
    ],
    ("POST", "/detokenize"): [post(b'{"tokens": [1, 2]}', path="/detokenize")],
    ("POST", "/apply-template"): [openai("/apply-template", messages=HELLO)],
    ("GET", "/props"): [request("GET", "/props")],
    ("GET", "/version"): [request("GET", "/version")],
    ("POST", "/api/show"): [post(b'{"model": "rill"}', path="/api/show")],
    ("POST", "/api/pull"): [
        post(b'{"name": "rill"}', path="/api/pull"),
        post(b'{"model": "rill", "stream": false}', path="/api/pull"),
    ],
    ("GET", "/api/version"): [request("GET", "/api/version")],
    ("GET", "/api/tags"): [request("GET", "/api/tags")],
    ("GET", "/api/ps"): [request("GET", "/api/ps")],
    ("GET", "/v1/models"): [
        request("GET", "/v1/models"),
        request("GET", "/v1/models", "anthropic-version: 2023-06-01"),
    ],
    ("GET", "/v1/models/{model}"): [
        request("GET", "/v1/models/rill"),
        request("GET", "/v1/models/rill", "anthropic-version: 2023-06-01"),
    ],
    ("GET", "/"): [request("GET", "/"), request("GET", "/", "Accept: text/html")],
    ("GET", "/health"): [request("GET", "/health")],
    ("GET", "/health/ready"): [request("GET", "/health/ready")],
    ("GET", "/health/live"): [request("GET", "/health/live")],
    ("GET", "/metrics"): [
        request("GET", "/metrics"),
        request("GET", "/metrics", "Accept: application/openmetrics-text; version=1.0.0"),
    ],
}
WRONG = {
    ("POST", "/generate"): [
        (400, post(b"{")),
        (400, request("POST", "/generate", "Content-Type: application/json", "Host: twice")),
        (403, generate().replace(b"Host: localhost", b"Host: elsewhere")),
        (413, request("POST", "/generate", "Content-Type: application/json",
                      "Content-Length: 99999999")),
        (415, request("POST", "/generate", "Content-Type: text/plain")),
        (422, generate(max_tokens=0, unknown=1)),
        (422, generate("Hello " * 5000)),
    ],
    ("POST", CHAT): [
        (400, openai(CHAT, messages=[])),
        (400, openai(CHAT, messages=[{"role": "user", "content": "Hello " * 5000}])),
        (400, openai(CHAT, "X-Penstock-Timeout: soon", messages=HELLO)),
        (404, openai(CHAT, messages=HELLO, model="another")),
        (504, openai(CHAT, "X-Penstock-Timeout: 0.000001", messages=HELLO)),
    ],
    ("POST", COMPLETIONS): [(400, openai(COMPLETIONS, prompt="One", suffix="end"))],
    ("POST", MESSAGES): [
        (400, asks(messages=[])),
        (400, asks(messages=[{"role": "user", "content": "Hello " * 5000}])),
        (400, asks("X-Penstock-Timeout: soon")),
        (404, asks(model="another")),
        (413, request("POST", MESSAGES, "Content-Type: application/json",
                      "Content-Length: 99999999")),
    ],
    ("POST", COUNT_TOKENS): [
        (400, asks(path=COUNT_TOKENS, messages=[])),
        (404, asks(path=COUNT_TOKENS, model="another")),
    ],
    ("POST", ollama_wire.CHAT): [
        (400, ollama_wire.asks(messages=5)),
        (400, ollama_wire.asks(messages=[{"role": "user", "content": "Hello " * 5000}])),
        (404, ollama_wire.asks(model="another")),
        (413, request("POST", ollama_wire.CHAT, "Content-Type: application/json",
                      "Content-Length: 99999999")),
    ],
    ("POST", ollama_wire.GENERATE): [
        (400, ollama_wire.asks(path=ollama_wire.GENERATE, suffix="end")),
        (504, ollama_wire.asks("X-Penstock-Timeout: 0.000001", path=ollama_wire.GENERATE,
                               stream=False)),
    ],
    ("POST", "/completion"): [(400, openai("/completion", prompt=["One", "Two"]))],
    ("POST", "/tokenize"): [
        (400, post(b"{}", path="/tokenize")),
        (400, openai("/tokenize", content="Hello " * 5000)),
    ],
    ("POST", "/detokenize"): [(400, post(b"{}", path="/detokenize"))],
    ("POST", "/apply-template"): [(400, post(b"{}", path="/apply-template"))],
    ("POST", "/api/show"): [(404, post(b'{"model": "another"}', path="/api/show"))],
    ("POST", "/api/pull"): [
        (400, post(b"[]", path="/api/pull")),
        (404, post(b'{"model": "another"}', path="/api/pull")),
    ],
    ("GET", "/v1/models/{model}"): [(404, request("GET", "/v1/models/another"))],
    ("GET", STREAM): [(404, request("GET", f"/streams/{UNKNOWN}"))],
    ("DELETE", STREAM): [(404, request("DELETE", f"/streams/{UNKNOWN}"))],
    ("POST", TOKEN): [(404, request("POST", f"/streams/{UNKNOWN}/token"))],
}  # fmt: skip


@pytest.mark.parametrize(("method", "path"), RIGHT)
def test_answers_are_as_described(
    rill: RunningServer, description: Description, method: str, path: str
) -> None:
    for data in RIGHT[method, path]:
        answer = ask(rill.port, data)
        assert answer.status == 200, answer.body
        description.check(method, path, answer)


@pytest.mark.parametrize(("method", "path"), WRONG)
def test_errors_are_as_described(
    rill: RunningServer, description: Description, method: str, path: str
) -> None:
    for status, data in WRONG[method, path]:
        answer = ask(rill.port, data)
        assert answer.status == status, answer.body
        description.check(method, path, answer)


def test_the_checked_answers_hold_every_described_kind_of_event(rill: RunningServer) -> None:
    answers = [ask(rill.port, data).body for data in RIGHT["POST", CHAT] + RIGHT["POST", MESSAGES]]
    for part in (b'"reasoning_content"', b'"tool_calls":[{"index"', b'"top_logprobs"', b'"usage"',
                 b'"stop_reason":"deadline"', b'"text_delta"', b'"thinking_delta"',
                 b'"signature_delta"', b'"input_json_delta"', b'"finish_reason":"deadline"',
                 b'"tool_use"', b'"type":"ping"'):  # fmt: skip
        assert any(part in body for body in answers), part


def test_resumed_and_cancelled_streams_are_as_described(
    mock: RunningServer, description: Description
) -> None:
    def read(stream_id: str, *headers: str, query: str = "") -> Response:
        answer = ask(mock.port, request("GET", f"/streams/{stream_id}{query}", *headers))
        description.check("GET", STREAM, answer)
        return answer

    def ended(data: bytes) -> str:
        return str(ask(mock.port, data).headers["x-stream-id"])

    stream_id = ended(generate(max_tokens=5, resumable=True))
    assert read(stream_id).status == 200
    assert read(stream_id, "Last-Event-ID: 3").status == 200
    assert read(stream_id, query="?after=5").status == 204
    assert read(stream_id, query="?after=6").status == 400
    assert read(stream_id, query="?after=x").status == 400
    assert read(ended(generate(max_tokens=1))).status == 409
    chat = ended(openai(CHAT, RESUMABLE, messages=HELLO, stream=True))
    assert read(chat, "Last-Event-ID: 3").status == 200
    assert read(ended(ollama_wire.asks(RESUMABLE, model=None)), "Last-Event-ID: 3").status == 200

    made = ask(mock.port, request("POST", f"/streams/{stream_id}/token"))
    description.check("POST", TOKEN, made)
    assert read(stream_id, query="?token=" + made.json()["token"]).status == 200

    cancelled = ask(mock.port, request("DELETE", f"/streams/{stream_id}"))
    description.check("DELETE", STREAM, cancelled)
    endless = generate(max_tokens=4000, ignore_eos=True, resumable=True)
    connection, running = open_stream(mock.port, endless)
    with connection:
        assert cancel_stream(mock.port, running) == "cancelled"
    assert b'"cancelled"' in read(running).body


def test_failures_in_a_stream_the_queue_and_lost_history_are_as_described(
    description: Description, tmp_path: Path
) -> None:
    hurry = Hurry(tmp_path / "hurry")
    arguments = [hurry.argument, "interval=0.5", "fail_at=10", "context_length=50"]
    with serve(engine=HURRIED, slots=1, max_queue=1, retain_bytes=0,
               engine_arg=arguments) as server:  # fmt: skip
        first, stream_id = open_stream(server.port, generate(resumable=True))
        second, _ = open_stream(server.port, generate(queue_events=True))
        full = ask(server.port, generate())
        assert full.status == 429
        description.check("POST", "/generate", full)
        full = ask(server.port, openai(CHAT, messages=HELLO))
        assert full.status == 429
        description.check("POST", CHAT, full)
        full = ask(server.port, asks())
        assert full.status == 529
        description.check("POST", MESSAGES, full)
        hurry.now()
        for connection in (first, second):
            with connection:
                body = connection.rest()
            description.check_events("POST", "/generate", body)
            assert b'"code":"mock_failure"' in body
        assert b"event: queue\n" in body
        lost = ask(server.port, request("GET", f"/streams/{stream_id}"))
        assert lost.status == 410
        description.check("GET", STREAM, lost)
        too_long = generate("Hello " * 100, stream=False)
        with hurry.over(), Connection(server.port) as waiting:
            running, running_id = open_stream(server.port, generate())
            with running:  # so that the engine sees the next request after its stream was opened
                waiting.send(too_long)
                scrape_until(server, lambda scrape: scrape("penstock_streams_waiting") == 1)
                cancel_stream(server.port, running_id)
                refused = waiting.response()
        assert refused.status == 422
        assert "x-stream-id" in refused.headers
        description.check("POST", "/generate", refused)
        for path, data in (
            ("/generate", generate(stream=False)),
            (CHAT, openai(CHAT, messages=HELLO)),
            (CHAT, openai(CHAT, messages=HELLO, stream=True)),
            (COMPLETIONS, openai(COMPLETIONS, prompt="One", stream=True)),
            (MESSAGES, asks(model=None)),
            (MESSAGES, asks(model=None, stream=True)),
            (ollama_wire.CHAT, ollama_wire.asks(model=None, stream=True)),
            ("/completion", openai("/completion", prompt="One", stream=True)),
        ):
            answer = ask(server.port, data)
            assert answer.status == (200 if b'"stream": true' in data else 500)
            assert b'"code":"mock_failure"' in answer.body
            description.check("POST", path, answer)


def test_keys_are_described(description: Description, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "keys.toml").write_text(key_table("ann", key, is_admin=False))
    with serve(engine="mock", keys=tmp_path / "keys.toml") as server:
        for path, methods in description.page["paths"].items():
            for method, operation in methods.items():
                target = path.replace("{stream_id}", UNKNOWN).replace("{model}", "x")
                answer = ask(server.port, request(method.upper(), target))
                is_open = operation.get("security") == []
                assert (answer.status == 401) == (not is_open)
                description.check(method, path, answer)
        ours = f"Authorization: Bearer {key}"
        answer = ask(server.port, request("GET", "/metrics", ours))
        assert answer.status == 403
        description.check("GET", "/metrics", answer)


def test_every_error_code_is_described_once_at_least(page: Any) -> None:
    text = json.dumps(page["paths"])
    for code, kind in PROBLEMS.items():
        assert (f": {kind.meaning}" in text) == (code not in CANNOT_BE_DESCRIBED), code


def test_names_and_summaries_are_public_and_complete(page: Any) -> None:
    names = page["components"]["schemas"]
    assert not [name for name in names if not re.fullmatch(r"([A-Z][a-z]+)+", name)]
    assert all(schema.get("description") for name, schema in names.items() if name != "JsonValue")
    assert "servers" not in page
    tags = {tag["name"] for tag in page["tags"]}
    for methods in page["paths"].values():
        for operation in methods.values():
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation["operationId"])
            assert re.fullmatch(r"[A-Z][^\n]+[^.\n]", operation["summary"])
            assert set(operation["tags"]) <= tags
            assert all(each["description"] for each in operation["parameters"])
    for used in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(page)):
        assert used in names


def test_the_parameters_of_the_protocols_are_described(description: Description) -> None:
    def names(method: str, path: str) -> set[str]:
        return {each["name"] for each in description.operation(method, path)["parameters"]}

    status = "X-Penstock-Status"
    reader = {"stream_id", "Last-Event-ID", "after", "token", "status_events", status}
    assert names("GET", STREAM) == {*reader, "X-Request-ID"}
    ours = {*RETRIES, "X-Penstock-Resumable", "X-Penstock-Timeout", "X-Request-ID"}
    for path in (CHAT, COMPLETIONS, MESSAGES):
        assert names("POST", path) == {*ours, status}
    for path in (ollama_wire.CHAT, ollama_wire.GENERATE):  # lines of JSON have no comments
        assert names("POST", path) == ours
    assert names("POST", "/generate") == {*RETRIES, status, "X-Request-ID"}
    assert names("GET", "/v1/models/{model}") == {"model", "X-Request-ID"}


class Poem(BaseModel):
    """A poem."""

    lines: list[str]


class Sorry(BaseModel):
    """An error."""

    sorry: str


DESCRIPTION = ApiDescription(
    "poems", "Poems.", Sorry, {"read_poem": Operation(answers={200: Answer("It.", {JSON: Poem})})}
)


async def test_an_api_is_described_by_its_own_folder_alone() -> None:
    def read_poem(http: HttpRequest) -> JSONResponse:
        """Read a poem."""
        raise NotImplementedError

    def sorry(problem: Problem) -> JSONResponse:
        return JSONResponse({"error": problem.code}, 418)

    poems = Api([Route("/poems", read_poem)], sorry, prefix="/poems/", description=__name__)
    page = json.loads((await openapi_route([poems], {}).endpoint(None)).body)
    operation = page["paths"]["/poems"]["get"]
    assert (operation["summary"], operation["tags"]) == ("Read a poem", ["poems"])
    assert operation["responses"].keys() == {"200", "418"}
    assert "`host_not_allowed`" in operation["responses"]["418"]["description"]
    assert page["components"]["schemas"].keys() == {"Poem", "Sorry"}


@pytest.mark.timeout(180)
def test_a_python_client_is_generated_and_works(
    mock: RunningServer, page: Any, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    python = [sys.executable, "-m"]
    run([*python, "pip", "install", "-q", "--target", str(tools), PYTHON_GENERATOR])
    (tmp_path / "openapi.json").write_text(json.dumps(page))
    environment = os.environ | {
        "PYTHONPATH": str(tools),
        "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    made = run(
        [
            *(*python, "openapi_python_client", "generate", "--path", "openapi.json"),
            *("--output-path", "penstock_api", "--meta", "none", "--fail-on-warning"),
        ],
        cwd=tmp_path,
        env=environment,
    )
    assert "Warning" not in made
    use = """
import sys
from penstock_api import Client
from penstock_api.api.native import generate, read_stream
from penstock_api.api.anthropic import count_message_tokens, create_message
from penstock_api.api.models import get_model
from penstock_api.api.openai import create_chat_completion
from penstock_api.api.server import get_health
from penstock_api.models import *

client = Client(sys.argv[1])
assert get_health.sync(client=client).status == HealthStatus.HEALTHY
answer = generate.sync(client=client, body=GenerateRequest(prompt="Hi", stream=False, max_tokens=3))
assert answer.usage.completion_tokens == 3 and answer.finish_reason == "length"
problem = generate.sync(client=client, body=GenerateRequest(max_tokens=3))
assert isinstance(problem, ProblemDetails) and problem.errors[0].code == "missing_field"
missing = read_stream.sync("A" * 22, client=client, last_event_id="1")
assert missing.code == "stream_not_found"
chat = create_chat_completion.sync(
    client=client,
    body=ChatRequest(messages=[ChatTurn(role=ChatTurnRole.USER, content="Hi")], max_tokens=3),
    x_penstock_timeout=30.0,
)
assert chat.choices[0].message.content and chat.usage.completion_tokens == 3
turn = MessageTurn(role=MessageTurnRole.USER, content="Hi there")
message = create_message.sync(client=client, body=MessagesRequest(messages=[turn], max_tokens=3))
assert message.content[0].text and message.stop_reason == "max_tokens"
counted = count_message_tokens.sync(client=client, body=CountTokensRequest(messages=[turn]))
assert counted.input_tokens == message.usage.input_tokens == 2
assert get_model.sync("mock", client=client).context_length == 8192
stream = read_stream.sync(sys.argv[2], client=client)
assert stream.count("data: ") == 4
"""
    ended = ask(mock.port, generate(max_tokens=3, resumable=True)).headers["x-stream-id"]
    run([sys.executable, "-c", use, mock.url, ended], cwd=tmp_path, env=environment)


@pytest.mark.timeout(180)
def test_typescript_types_are_generated_and_compile(page: Any, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("PENSTOCK_REQUIRE_NPM") == "1":
            pytest.fail(NO_NPM)
        pytest.skip(NO_NPM)
    quiet = ["--no-audit", "--no-fund", "--silent"]
    run([npm, "install", "--prefix", str(tmp_path), *quiet, *TYPESCRIPT_GENERATOR])
    (tmp_path / "openapi.json").write_text(json.dumps(page))
    bin_dir = tmp_path / "node_modules" / ".bin"
    run([str(bin_dir / "openapi-typescript"), "openapi.json", "--default-non-nullable=false",
         "-o", "penstock.ts"], cwd=tmp_path)  # fmt: skip
    (tmp_path / "use.ts").write_text(
        """
import type { components, operations, paths } from "./penstock";

type Event = components["schemas"]["GenerateEvent"];
const body: components["schemas"]["GenerateRequest"] = { prompt: "Once", resumable: true };
const chat: components["schemas"]["ChatRequest"] = { messages: [{ role: "user", content: "Hi" }] };
type Query = operations["read_stream"]["parameters"]["query"];
const query: Query = { after: 41 };
type Problem =
  paths["/generate"]["post"]["responses"][429]["content"]["application/problem+json"];
const seconds = (answer: operations["generate"]["responses"][429]["headers"]) =>
  answer["Retry-After"];

export function text(event: Event, problem: Problem): string {
  if ("state" in event) return event.state;
  if ("position" in event) return `place ${event.position}`;
  if (!event.finished) return event.token;
  // @ts-expect-error: there is no such finish reason
  if (event.finish_reason === "done") return "";
  return `${event.finish_reason} after ${event.usage.total_tokens}, ${problem.code}`;
}
// @ts-expect-error: a prompt is text
export const wrong: components["schemas"]["GenerateRequest"] = { prompt: 1 };
export const used = [body, chat, query, seconds];
"""
    )
    run([str(bin_dir / "tsc"), "--noEmit", "--strict", "use.ts"], cwd=tmp_path)


def run(command: list[str], **options: Any) -> str:
    """Run a command that must succeed. Returns what it printed."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    said = str(done.stdout + done.stderr)
    assert done.returncode == 0, f"{command[:3]} after {time.monotonic() - began:.1f} s:\n{said}"
    return said
