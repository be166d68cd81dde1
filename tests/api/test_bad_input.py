"""Bad input gets a clear answer that echoes nothing of it, and the server survives.

Each row is a request in bytes, with the answer it must get.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.errors import Problem
from penstock.web.body import check_content_type
from penstock.web.strict_json import MAX_DEPTH, parse_object
from tests.support.anthropic_wire import COUNT_TOKENS, MESSAGES
from tests.support.raw import Connection, ask, generate, post, request
from tests.support.servers import RunningServer, serve

MARK = "zqxj"
"""A word in the bad part of every row, which no answer may contain."""

MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 3.0  # a busy machine may read a megabyte slowly
CONTEXT_LENGTH = 50
ANSWER_WITHIN_S = 10.0  # most answers take a millisecond, but a machine may be busy


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A strict server with one slot, which shows at the end that no row left a stream behind."""
    with serve(
        "--strict",
        engine="mock",
        mock_interval=0,
        max_body_bytes=MAX_BODY_BYTES,
        body_timeout=BODY_TIMEOUT_S,
        engine_arg=["slots=1", "length=3", f"context_length={CONTEXT_LENGTH}"],
    ) as server:
        yield server
        assert ask(server.port, request("GET", "/health")).status == 200
        after = ask(server.port, generate(stream=False))
        assert after.json()["text"] == " Water comes down"
        assert "Traceback" not in "".join(server.output)


@dataclass
class Row:
    """Bytes to send, and the statuses that may come back.

    If `code` is None, the HTTP library answers instead of Penstock, or just closes the connection.
    """

    name: str
    sent: bytes
    status: set[int]
    code: str | None = None
    header: str = ""

    def __str__(self) -> str:
        return self.name


def body(name: str, sent: bytes, status: int, code: str) -> Row:
    return Row(name, post(sent), {status}, code)


def field(name: str, code: str, *values: object) -> list[Row]:
    """Make a row for each of these values of the field."""
    rows = []
    for value in values:
        shown = repr(value)[:40]
        sent = json.dumps({"prompt": MARK, name: value}).encode()
        rows.append(Row(f"{name}={shown}", post(sent), {422}, code))
    return rows


def messages(name: str, value: object, code: str) -> Row:
    return Row(name, post(json.dumps({"messages": value}).encode()), {422}, code)


def media_type(value: str | None, *more: str) -> Row:
    headers = ["Content-Length: 15"] + ([f"Content-Type: {value}"] if value is not None else [])
    sent = request("POST", "/generate", *headers, *more) + b'{"prompt": "a"}'
    name = ", ".join([f"content type {value}"[:60], *more])
    return Row(name, sent, {415}, "unsupported_media_type")


def wire(name: str, sent: bytes) -> Row:
    return Row(name, sent, {400, 408, 414, 431, 501, 505})


def framed(name: str, *headers: str, body: bytes = b'{"prompt":"a"}') -> Row:
    """Make a row for a body whose length is declared wrongly."""
    return wire(
        name, request("POST", "/generate", "Content-Type: application/json", *headers) + body
    )


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


A_CHUNK = chunked(b'{"prompt":"a"}') + b"0\r\n\r\n"
TURN = {"role": "user", "content": MARK}
LOOSE_JSON = b"""
{'prompt':'zqxj'} {"prompt":"zqxj",} {"prompt":"zqxj"}{} {prompt:"zqxj"} {"prompt":"zqxj\t"}
{"prompt":"zqxj\\x41"} {"prompt":"zqxj","seed":01} {"prompt":"zqxj","seed":+1}
{"prompt":"zqxj","temperature":.5} {"prompt":"zqxj","temperature":1.} {"prompt":"zqxj","seed":0x1}
{"prompt":"zqxj","stream":True} {"prompt":"zqxj","seed":nil} {"prompt":"zqxj"}// {"prompt"
"""

ROWS = [
    # JSON
    body("empty body", b"", 400, "invalid_json"),
    body("blank body", b" \r\n\t", 400, "invalid_json"),
    body("cut", b'{"prompt":"zqxj"', 400, "invalid_json"),
    body("cut in a string", b'{"prompt":"zqxj', 400, "invalid_json"),
    *(body(f"JSON {n}", text, 400, "invalid_json") for n, text in enumerate(LOOSE_JSON.split())),
    *(
        body(repr(text), text, 400, "not_an_object")
        for text in (b"[]", b"null", b'"zqxj"', b"1", b"true", b"-0.0", b'[{"prompt":"zqxj"}]')
    ),
    body("UTF-16 with a mark", '{"prompt":"zqxj"}'.encode("utf-16"), 400, "invalid_utf8"),
    body("UTF-16", '{"prompt":"zqxj"}'.encode("utf-16-le"), 400, "invalid_json"),
    body("Latin-1", '{"prompt":"zqxjé"}'.encode("latin-1"), 400, "invalid_utf8"),
    body("overlong UTF-8", b'{"prompt":"zqxj\xc0\xaf"}', 400, "invalid_utf8"),
    body("a surrogate in UTF-8", b'{"prompt":"zqxj\xed\xa0\x80"}', 400, "invalid_utf8"),
    body("byte order mark", b'\xef\xbb\xbf{"prompt":"zqxj"}', 400, "invalid_json"),
    body("NUL in a string", b'{"prompt":"zqxj\0"}', 400, "invalid_json"),
    body("nested 60,000 deep", b"[" * 60_000, 400, "too_deep"),
    body("nested 100,000 deep", b"[" * 100_000, 400, "too_many_values"),
    body("300,000 lists", b'{"a":[' + b"[]," * 300_000 + b"0]}", 400, "too_many_values"),
    body(
        "2,000 names",
        json.dumps({MARK + str(n): 1 for n in range(2000)}).encode(),
        400,
        "too_many_names",
    ),
    body("objects nested 50,000 deep", b'{"zqxj":' * 50_000, 400, "too_deep"),
    body("nested 900 deep", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", 400, "too_deep"),
    body("one too deep", b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", 400, "too_deep"),
    body("as deep as may be", b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", 422, "unknown_field"),
    body("a name twice", b'{"prompt":"zqxj","prompt":"a"}', 400, "duplicate_name"),
    *(
        body(f"number {text.decode()}", b'{"prompt":"zqxj","temperature":%b}' % text, 400, code)
        for text, code in (
            (b"NaN", "invalid_json"),
            (b"Infinity", "invalid_json"),
            (b"-Infinity", "invalid_json"),
            (b"1e999", "invalid_json"),
            (b"-1e999", "invalid_json"),
        )
    ),
    body("half a surrogate pair", b'{"prompt":"zqxj\\ud800"}', 422, "invalid_unicode"),
    body("the other half", b'{"prompt":"\\udfffzqxj"}', 422, "invalid_unicode"),
    body("halves swapped", b'{"prompt":"\\ude00\\ud83d"}', 422, "invalid_unicode"),
    body("half a pair in a name", b'{"prompt":"zqxj","\\ud800":1}', 422, "invalid_unicode"),
    body("half a pair for a number", b'{"prompt":"zqxj","seed":"\\ud800"}', 422, "invalid_unicode"),
    body("5,000 digits", b'{"prompt":"a","seed":%b}' % (b"7" * 5000), 400, "number_too_long"),
    body("4,000 digits", b'{"prompt":"a","seed":%b}' % (b"7" * 4000), 400, "number_too_long"),
    body("900 digits", b'{"prompt":"a","seed":%b}' % (b"7" * 900), 422, "out_of_range"),
    body("-900 digits", b'{"prompt":"a","seed":-%b}' % (b"7" * 900), 422, "out_of_range"),
    body("900 digits, real", b'{"prompt":"a","top_p":%b}' % (b"7" * 900), 422, "invalid_type"),
    # Fields
    *field("seed", "out_of_range", -2, 2**63, 2**70),
    *field("seed", "invalid_type", True, "7", 1.0, 7.5, [], {}),
    *field("temperature", "out_of_range", -0.1, 2.1, 10**30),
    *field("temperature", "invalid_type", True, "1", None, [1]),
    *field("top_p", "out_of_range", -0.0001, 1.0001),
    *field("top_k", "out_of_range", -2),
    *field("top_k", "out_of_range", 100_001),
    *field("top_k", "invalid_type", 0.01),
    *field("max_tokens", "out_of_range", 0, -1, 2**31, 2**64),
    *field("max_tokens", "invalid_type", "5", 5.0, True, None),
    *field("n", "unknown_field", 0, -1, 129, 10**6),
    *field("best_of", "unknown_field", 10**6),
    *field("temprature", "unknown_field", 0.7),
    *field("a b\n" + MARK, "unknown_field", 1),
    *field(MARK * 100, "unknown_field", 1),
    body("model", b'{"prompt":"zqxj","model":"http://zqxj"}', 404, "model_not_found"),
    *field("model", "invalid_type", 1, True, []),
    *field("model", "too_short", ""),
    *field("model", "too_long", MARK * 100),
    *field("api_base", "unknown_field", "http://" + MARK),
    *field("resumable", "invalid_type", 1, "yes", None),
    *field("timeout", "out_of_range", 0, -1, 604_801, 10**30),
    *field("timeout", "invalid_type", "5", True, [5], {}),
    *field("queue_events", "invalid_type", 1, "yes", None),
    *field("stop", "invalid_type", [1], {}, 1, [None], [[MARK]], True),
    *field("stop", "too_short", ""),
    *field("stop", "too_short", ["a", ""]),
    *field("stop", "too_long", MARK * 65),
    *field("stop", "too_many_items", ["a"] * 65),
    *field("stop", "too_many_items", [MARK] * 100_000),
    *field("stream", "invalid_type", "yes", 1, 0, None, []),
    *field("prompt", "invalid_type", 1, True, [MARK], {"a": MARK}),
    *field("prompt", "prompt_too_long", "a " * CONTEXT_LENGTH),
    *field("messages", "invalid_value", [TURN]),
    body("neither prompt nor messages", b"{}", 422, "missing_field"),
    body("prompt null", b'{"prompt":null}', 422, "missing_field"),
    messages("messages null", None, "missing_field"),
    messages("no messages", [], "too_few_items"),
    messages("20,000 messages", [TURN] * 20_000, "too_many_items"),
    messages("messages an object", TURN, "invalid_type"),
    messages("messages a string", MARK, "invalid_type"),
    messages("a message a string", [MARK], "invalid_type"),
    messages("role root", [{**TURN, "role": "root"}], "invalid_value"),
    messages("role a number", [{**TURN, "role": 1}], "invalid_value"),
    messages("no role", [{"content": MARK}], "missing_field"),
    messages("no content", [{"role": "user"}], "missing_field"),
    messages("content a number", [{"role": "user", "content": 1}], "invalid_type"),
    messages("content in parts", [{"role": "user", "content": [MARK]}], "invalid_type"),
    messages("a field of a message", [{**TURN, MARK + "!": 1}], "unknown_field"),
    # The body's media type and size
    *(
        media_type(value)
        for value in (
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded; charset=latin-1",
            f"multipart/form-data; boundary={MARK}",
            "application/json; charset=utf-16",
            "application/json; charset=latin-1",
            f"application/json; charset={MARK}",
            "application/json, application/json",
            "application/json; charset*=utf-8''zqxj; charset*0=zqxj",
        )
    ),
    *(
        media_type(value, "Sec-Fetch-Site: none")
        for value in (None, "", "application/x-www-form-urlencoded")
    ),
    Row(
        "declared too large",
        request("POST", "/generate", "Content-Type: application/json", "Content-Length: 99999999"),
        {413},
        "body_too_large",
    ),
    Row(
        "one byte too large",
        post(b'{"prompt":"%b"}' % (b"a" * (MAX_BODY_BYTES - 12)))[: -MAX_BODY_BYTES - 1],
        {413},
        "body_too_large",
    ),
    Row(
        "too large, in chunks",
        request("POST", "/generate", "Content-Type: application/json", "Transfer-Encoding: chunked")
        + chunked(b'{"prompt":"', *[b"a" * 65536] * 16),
        {413},
        "body_too_large",
    ),
    Row("shorter than declared", post(b'{"prompt":"zqxj"}')[:-3], {408}, "body_timeout"),
    Row(
        "refused before 100 Continue",
        request("POST", "/generate", "Content-Type: text/plain", "Content-Length: 5")[:-2]
        + b"Expect: 100-continue\r\n\r\n",
        {415},
        "unsupported_media_type",
    ),
    # HTTP
    framed("two lengths", "Content-Length: 14", "Content-Length: 3"),
    framed("length +14", "Content-Length: +14"),
    framed("length -1", "Content-Length: -1"),
    framed("length 0x0e", "Content-Length: 0x0e"),
    framed("length 14, 3", "Content-Length: 14, 3"),
    framed("length of 30 digits", "Content-Length: " + "9" * 30),
    framed("xchunked", "Transfer-Encoding: xchunked", body=A_CHUNK),
    framed("chunked, identity", "Transfer-Encoding: chunked, identity", body=A_CHUNK),
    framed("a space before the colon", "Transfer-Encoding : chunked", body=A_CHUNK),
    framed("bad end of a chunk", "Transfer-Encoding: chunked", body=b"2\r\n{}zqxj0\r\n\r\n"),
    framed("bad size of a chunk", "Transfer-Encoding: chunked", body=b"zqxj\r\n{}\r\n0\r\n\r\n"),
    framed("huge size of a chunk", "Transfer-Encoding: chunked", body=b"f" * 18 + b"\r\n{}"),
    wire("a header without colon", b"GET / HTTP/1.1\r\nHost: a\r\nzqxj\r\n\r\n"),
    wire("NUL in a header", b"GET / HTTP/1.1\r\nHost: a\r\nX: zqxj\0\r\n\r\n"),
    wire("a folded header", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n zqxj\r\n\r\n"),
    wire("a space in the path", b"GET /zqxj a HTTP/1.1\r\nHost: a\r\n\r\n"),
    *(
        Row(f"host {text!r}", b"GET / HTTP/1.1\r\n%b\r\n" % text, {400}, "bad_host")
        for text in (
            b"",
            b"Host: a\r\nHost: a\r\n",
            b"Host:\r\n",
            b"Host: zqxj/admin?\r\n",
            b"Host: zqxj@a\r\n",
            b"Host: a:zqxj\r\n",
            b"Host: [::1\r\n",
            b"Host: a b\r\n",
        )
    ),
    # Hosts and origins that are not this machine
    *(
        Row(f"host {host!r}", b"GET /%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host), {403}, code)
        for path in (b"", b"health", b"metrics", b"generate")
        for host, code in (
            (b"zqxj.example", "host_not_allowed"),
            (b"zqxj.example:8000", "host_not_allowed"),
            (b"localhost.zqxj.example", "host_not_allowed"),
            (b"127.0.0.1.zqxj", "host_not_allowed"),
            (b"zqxj-localhost", "host_not_allowed"),
            (b"192.168.0.1", "host_not_allowed"),
            (b"0.0.0.0", "host_not_allowed"),
            (b"2130706433", "host_not_allowed"),
            (b"[2001:db8::1]", "host_not_allowed"),
        )
    ),
    *(
        Row(
            f"origin {origin}",
            request(method, path, f"Origin: {origin}", "Content-Length: 0"),
            {403},
            "origin_not_allowed",
        )
        for method, path in (("GET", "/health"), ("POST", "/generate"), ("OPTIONS", "/generate"))
        for origin in (
            "null",
            "",
            "https://zqxj.example",
            "http://localhost.zqxj.example",
            "http://127.0.0.1@zqxj.example",
            "http://zqxj.example:80/127.0.0.1",
            "file://",
            "chrome-extension://zqxj",
            "http://localhost\tzqxj",
        )
    ),
    wire("HTTP/0.9", b"GET /zqxj\r\n"),
    wire("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    wire("the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    wire("TLS", bytes.fromhex("160301020001 0001fc0303") + os.urandom(500)),
    wire("noise", b"\x00\xff" * 50 + b"\r\n\r\n"),
    wire("URL of 1 MiB", b"GET /" + b"zqxj" * 2**18 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    wire("header of 1 MiB", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"zqxj" * 2**18 + b"\r\n\r\n"),
    wire("1,000 headers", request("GET", "/", *(f"X-{n}: zqxj" for n in range(1000)))),
    # Methods and paths
    *(
        Row(
            f"{method} {path}",
            request(method, path, "Content-Length: 0"),
            {405},
            "method_not_allowed",
            f"allow: {allowed}",
        )
        for method, path, allowed in (
            ("GET", "/generate", "POST"),
            ("PUT", "/generate", "POST"),
            ("POST", "/", "GET, HEAD"),
            ("DELETE", "/health", "GET, HEAD"),
            ("POST", "/health/ready", "GET, HEAD"),
            ("POST", "/page/index.html", "GET, HEAD"),
            ("POST", "/openapi.json", "GET, HEAD"),
            ("PUT", "/streams/a", "DELETE, GET"),
            ("TRACE", "/", "GET, HEAD"),
        )
    ),
    *(
        Row(f"{method} {path}", request(method, path, "Content-Length: 0"), {501}, "unknown_method")
        for method, path in (("BREW", "/generate"), ("CONNECT", "zqxj:80"), ("get", "/"))
    ),
    *(
        Row(f"{method} {path}", request(method, path, "Content-Length: 0"), {404}, code)
        for method, path, code in (
            ("GET", "/zqxj", "no_such_route"),
            ("GET", "//", "no_such_route"),
            ("POST", "/generate//", "no_such_route"),
            ("POST", "/Generate", "no_such_route"),
            ("GET", "/redoc", "no_such_route"),
            ("OPTIONS", "*", "no_such_route"),
            ("GET", "/page/zqxj", "no_such_file"),
            ("GET", "/page/%00", "no_such_file"),
            ("GET", "/page/%ff%zz", "no_such_file"),
            ("GET", "/page/", "no_such_file"),
            ("GET", "/page/..%2fsettings.py", "no_such_file"),
            ("GET", "/page/../settings.py", "no_such_file"),
            ("GET", "/page/%2e%2e/settings.py", "no_such_file"),
            ("DELETE", "/streams/zqxj", "stream_not_found"),
            ("DELETE", "/streams/%f0%9f", "stream_not_found"),
            ("DELETE", "/streams/" + MARK * 10_000, "stream_not_found"),
        )
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bad_input_gets_a_clear_answer_and_nothing_of_it_is_echoed(
    server: RunningServer, row: Row
) -> None:
    began = time.monotonic()
    with Connection(server.port) as connection:
        with contextlib.suppress(ConnectionError):  # the server may refuse before it has read all
            connection.send(row.sent)
        try:
            answer = connection.response()
        except (EOFError, ConnectionError):
            assert row.code is None, "the connection was closed without an answer"
            return
    assert time.monotonic() - began < ANSWER_WITHIN_S
    assert answer.status in row.status
    assert MARK.encode() not in answer.body
    assert MARK not in str(answer.headers)
    if row.code is not None:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == row.code
        assert problem["retry_safe"] is (answer.status in (429, 503))
        assert problem["status"] == answer.status
        assert problem["type"].endswith(row.code)
        assert 10 < len(problem["detail"]) < 500
    if row.header:
        name, _, value = row.header.partition(": ")
        assert sorted(answer.headers[name].split(", ")) == value.split(", ")


def test_field_errors_name_the_field_and_each_has_a_sentence(server: RunningServer) -> None:
    sent = {"prompt": 5, "max_tokens": 0, "stop": ["a", 7], "temprature": 1}
    problem = ask(server.port, post(json.dumps(sent).encode())).json()
    assert problem["status"] == 422
    assert {(error["field"], error["code"]) for error in problem["errors"]} == {
        ("prompt", "invalid_type"),
        ("max_tokens", "out_of_range"),
        ("stop.1", "invalid_type"),
        ("temprature", "unknown_field"),
    }
    turn = {"role": "wizard", "content": "Hello"}
    problem = ask(server.port, post(json.dumps({"messages": [turn]}).encode())).json()
    assert [error["field"] for error in problem["errors"]] == ["messages.0.role"]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0},
        {"top_p": 1},
        {"temperature": 0},
        {"temperature": 2},
        {"top_k": 0},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"max_tokens": 2**31 - 1},
        {"stop": []},
        {"stop": None},
        {"stop": ["a", "b", "c", "d"]},
        {"seed": -1},
        {"top_k": -1},
        {"prompt": ""},
        {"prompt": "\0\u2028\ufeff\U0010ffff"},
        {"prompt": None, "messages": [{"role": "user", "content": ""}]},
    ],
    ids=str,
)
def test_values_on_the_bounds_are_accepted(
    server: RunningServer, fields: dict[str, object]
) -> None:
    sent = {"prompt": "a", "stream": False, **fields}
    assert ask(server.port, post(json.dumps(sent).encode())).status == 200


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "APPLICATION/JSON;charset=UTF-8", 'application/json ; charset="utf-8"'],
)
def test_every_content_type_of_json_in_utf_8_is_accepted(
    server: RunningServer, content_type: str
) -> None:
    sent = request("POST", "/generate", f"Content-Type: {content_type}", "Content-Length: 29")
    assert ask(server.port, sent + b'{"prompt":"a","stream":false}').status == 200


def test_ranges_are_ignored(server: RunningServer) -> None:
    whole = ask(server.port, request("GET", "/page/base.css"))
    many = "Range: bytes=" + ",".join(["0-"] * 5000)
    began = time.monotonic()
    answer = ask(server.port, request("GET", "/page/base.css", many))
    assert time.monotonic() - began < ANSWER_WITHIN_S
    assert answer.status == 200
    assert answer.body == whole.body


def test_both_length_and_chunks_are_refused_and_the_connection_closes(
    server: RunningServer,
) -> None:
    """This is a form of request smuggling."""
    sent = request(
        "POST",
        "/generate",
        "Content-Type: application/json",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ) + chunked(b'{"prompt":"a","stream":false}')
    with Connection(server.port) as connection:
        connection.send(sent + b"0\r\n\r\n" + request("GET", "/health"))
        assert connection.response().status == 400
        assert connection.is_closed()
        assert connection._buffer == b""


def test_pages_of_other_origins_may_not_read_answers(server: RunningServer) -> None:
    for origin in ("null", "https://example.org", "http://127.0.0.1:1"):
        answer = ask(server.port, request("GET", "/health", f"Origin: {origin}"))
        assert "access-control-allow-origin" not in answer.headers
        preflight = request(
            "OPTIONS", "/generate", f"Origin: {origin}", "Access-Control-Request-Method: POST"
        )
        assert "access-control-allow-origin" not in ask(server.port, preflight).headers


def test_slow_and_silent_connections_are_closed_while_others_are_served(
    server: RunningServer,
) -> None:
    began = time.monotonic()
    with (
        Connection(server.port) as silent,
        Connection(server.port) as halfway,
        Connection(server.port) as dripping,
    ):
        halfway.send(b"GET / HTTP/1.1\r\nHost:")
        dripping.socket.settimeout(0.5)
        dripping.send(b"GET / HTTP/1.1\r\nX: ")
        while True:
            try:
                dripping.send(b"a")
                dripping._more()
            except TimeoutError:
                assert time.monotonic() - began < 60, "the dripping connection is still open"
                assert ask(server.port, request("GET", "/health")).status == 200
            except (EOFError, ConnectionError):
                break
        assert halfway.is_closed()
        assert silent.is_closed()
    assert 8 < time.monotonic() - began < 60


# Properties of the parser.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
fields = st.dictionaries(
    st.sampled_from(
        ["prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop"]
    )
    | st.text(),
    json_values | st.sampled_from([0, 1, 0.5, "a", [TURN], ["a"]]),
    max_size=8,
)


@given(st.binary())
@example(b"[" * 200_000)
@example(b'{"":' * 200_000)
@example(b'{"a":-' + b"1" * 5000 + b"}")
@example(b'{"a":' + b"1" * 5000 + b"e-5000}")
@example(b'{"\\ud800":"\\ud800"}')
def test_no_bytes_make_the_parser_raise_anything_but_a_bad_request(data: bytes) -> None:
    with contextlib.suppress(Problem):
        assert isinstance(parse_object(data), dict)


@settings(deadline=None)  # a machine may be busy
@given(fields, st.data())
def test_no_damage_to_json_makes_the_parser_raise_anything_but_a_bad_request(
    value: dict[str, object], data: st.DataObject
) -> None:
    sent = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(sent)))
        drop = data.draw(st.integers(0, 3))
        sent[at : at + drop] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"[", b"}", b"\\ud83d", b"1e999", b"\xff", b"NaN"])
        )
    with contextlib.suppress(Problem):
        assert isinstance(parse_object(bytes(sent)), dict)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values))
def test_the_parser_agrees_with_json_on_every_value_it_accepts(value: dict[str, object]) -> None:
    try:
        sent = json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return  # NaN or infinite
    if re.search(r"\\ud[89a-f]", json.dumps(value)):
        return  # may be half of a surrogate pair
    assert parse_object(sent) == value


def test_the_depth_limit_is_exact() -> None:
    deepest = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_object(deepest)
    with pytest.raises(Problem, match="64 levels"):
        parse_object(deepest.replace(b"[]", b"[[]]"))


@given(st.text(st.sampled_from("abc;=*\"'%\\ /,0utf-8()")))
def test_no_content_type_makes_its_check_raise_anything_but_a_bad_request(text: str) -> None:
    for value in (text, "application/json;" + text, "application/json; charset" + text):
        with contextlib.suppress(Problem):
            check_content_type({"content-type": value})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields, st.sampled_from(["/generate", MESSAGES, COUNT_TOKENS]))
def test_no_json_object_gets_an_internal_error(
    server: RunningServer, value: dict[str, object], path: str
) -> None:
    sent = json.dumps({"stream": False, "max_tokens": 3, **value}).encode()
    answer = ask(server.port, post(sent, path=path))
    assert answer.status in (200, 400, 422)
