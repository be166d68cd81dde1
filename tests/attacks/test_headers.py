"""Every header of every route with odd values (D17): no internal error, and nothing echoed."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.attacks.certificates import TlsFiles, good, trusting
from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import Connection, Response, ask, request
from tests.support.servers import RunningServer, serve

ODD = "oDdVaLuE"
"""Must not be in any answer."""
HEADERS = (
    *("Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Access-Control-Max-Age"),
    *("Access-Control-Request-Headers", "Access-Control-Request-Method", "Authorization"),
    *("Access-Control-Request-Private-Network", "Cache-Control", "Content-Encoding"),
    *("Content-Language", "Content-Length", "Content-Range", "Content-Type", "Cookie", "Date"),
    *("Forwarded", "From", "Host", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range"),
    *("If-Unmodified-Since", "Keep-Alive", "Last-Event-ID", "Max-Forwards", "Origin", "Pragma"),
    *("Prefer", "Priority", "Range", "Referer", "Sec-Fetch-Site", "TE", "Traceparent", "Trailer"),
    *("Transfer-Encoding", "Upgrade", "User-Agent", "Via", "X-API-Key", "X-Forwarded-For"),
    *("X-Forwarded-Host", "X-HTTP-Method-Override", "X-Penstock-Resumable", "X-Penstock-Timeout"),
    *("X-Request-ID", "X-Stainless-Timeout"),
)
VALUES = (
    *(b"", b",", b";", b"=", b'"', b'"\\', b"*", b"*/*;q=0", b"a/b;q=", b"a/b;version=1;;=;", b"%"),
    *(b"application/openmetrics-text; version=x", b"application/openmetrics-text;version=1.0+a"),
    *(b"application/openmetrics-text;q=0", b"application/json;charset=", b'application/json;="'),
    *(b"-1", b"1e400", b"nan", b"0" * 5000 + b"5", b"9" * 5000, b"\xb2", b"\xff\xfe", b"1,1"),
    *(b"for=", b'for="[', b'for="[::1', b"for=unknown;for=_x", b"[::1", b"1.2.3.4.5", b"::1%x"),
    *(b"Bearer", b"Bearer  ", b"Basic " + b"x" * 5000, b"null", b"http://[", b"http://a:b@c"),
    *(b"bytes=0-0,-1", b'W/"', b"Mon, 99 Foo 99999 99:99:99 GMT", b"gzip;q=", b"a=b; c"),
    *(ODD.encode(), b"x" * 30_000, b"(" * 500, b"\t", b"a" * 50 + b"!"),
)
# These say how a body is read, so they are tried with one.
OF_BODIES = ("Content-Encoding", "Content-Length", "Content-Type", "Transfer-Encoding")
# A handshake for each request takes long, and the server's own code is the same.
EVERY_NTH_OVER_TLS = 11
BODY = b'{"prompt":"a","max_tokens":1,"options":{"num_predict":1},"stream":false}'
ROUTES = (
    *(b"GET /metrics", b"GET /", b"GET /health/ready", b"GET /v1/models", b"GET /openapi.json"),
    *(
        b"GET /streams/x?token=0123456789ab.%s" % (b"A" * 43),
        b"POST /generate",
        b"POST /v1/completions",
        b"OPTIONS /generate",
    ),
    *(b"POST /api/generate", b"GET /api/tags"),
    *(b"DELETE /streams/x", b"GET /page/index.html", b"HEAD /docs", b"GET /nope?after=\xb2"),
)


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningServer]:
    with serve("--trusted-proxy", "127.0.0.1", **STEADY) as server:
        yield server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = TlsFiles(tmp_path_factory.mktemp("tls"), good()).flags()
    with serve("--trusted-proxy", "127.0.0.1", **STEADY, **flags) as server:
        yield server


def built(route: bytes, name: str, value: bytes) -> bytes:
    """Return a request with this header, instead of its own if it has one."""
    lines = {b"Host": b"localhost", b"Connection": b"close"}
    has_body = route.startswith(b"POST")
    if has_body:
        lines |= {b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(BODY)}
    lines[name.encode()] = value
    head = b"".join(b"%b: %b\r\n" % line for line in lines.items())
    return route + b" HTTP/1.1\r\n" + head + b"\r\n" + BODY * has_body


def answer_to(server: RunningServer, sent: bytes) -> Response | None:
    """Return the answer, or None if there is none."""
    context = trusting() if server.url.startswith("https") else None
    with Connection(server.port, context=context) as connection:
        try:
            connection.send(sent)
            with contextlib.suppress(OSError):
                connection.half_close() if context is None else None
            answer = connection.head()
            if not sent.startswith(b"HEAD"):
                answer.body = (
                    connection.rest()
                    if connection._is_chunked
                    else connection._exactly(connection._length)
                )
        except (EOFError, OSError):
            return None
    return answer


@pytest.mark.parametrize("name", ["plain", "tls"])
def test_an_odd_value_of_any_header_is_no_internal_error(
    request: pytest.FixtureRequest, name: str
) -> None:
    server: RunningServer = request.getfixturevalue(name)
    context = trusting() if server.url.startswith("https") else None
    routes = itertools.cycle(ROUTES)
    cases = [(next(routes), *each) for each in itertools.product(HEADERS, VALUES)][::2]
    cases += [(b"POST /generate", *each) for each in itertools.product(OF_BODIES, VALUES)]
    with honest_client(server, context=context):
        for route, name, value in cases[:: EVERY_NTH_OVER_TLS if context else 1]:
            answer = answer_to(server, built(route, name, value))
            where = f"{route.decode('latin-1')} with {name}: {value[:60]!r}"
            if answer is None:
                continue
            assert answer.status < 500 or answer.status == 501, where  # 501: an unknown coding
            if name != "X-Request-ID":
                assert ODD.encode() not in answer.body, where
                assert ODD not in str(answer.headers).replace("access-control-", ""), where
    assert "Traceback" not in "".join(server.output)
    assert not [line for line in server.output if "a request failed" in line]


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain", True),
        ("text/plain, application/openmetrics-text;q=0.001", True),
        ("application/openmetrics-text; version=x", False),
        ("application/openmetrics-text; version=99999999999999999999.0", False),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=1.0.0+oDdVaLuE", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.000", False),
        ("application/openmetrics-text;q=x", False),
        ("text/plain;version=x", False),
        ("*/*", False),
        (";;;,,,===", False),
        ("application/openmetrics-text;" + "version=x;" * 3000, False),
    ],
)
def test_metrics_have_a_form_for_every_client(
    plain: RunningServer, accept: str, is_openmetrics: bool
) -> None:
    answer = ask(plain.port, request("GET", "/metrics", f"Accept: {accept}"))
    assert answer.status == 200
    assert answer.headers["vary"] == "Accept"
    kind = "application/openmetrics-text; version=1.0.0" if is_openmetrics else "text/plain"
    assert answer.headers["content-type"].startswith(kind)
    assert answer.body.endswith(b"# EOF\n") == is_openmetrics


@pytest.mark.parametrize("path", [b"/generate", b"/nope"])
def test_a_length_may_begin_with_thousands_of_zeros(plain: RunningServer, path: bytes) -> None:
    length = b"0" * 5000 + b"%d" % len(BODY)
    answer = ask(plain.port, built(b"POST " + path, "Content-Length", length))
    assert answer.status == (200 if path == b"/generate" else 404)
