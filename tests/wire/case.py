"""A row of the tables: bytes to send, and what may come back.

After each case's bytes the same marker is sent: a request that asks to close the connection. So
every connection ends, and the outcome says in words what the server made of the bytes:

    "200 next"         one answer; then the marker was answered: the server found its first byte
    "400 close"        one answer; then the connection was closed, and the marker not read
    "close"            closed without an answer
    "400 gone"         as "400 close", but the answer did not say that the connection closes
    "HTTP/2"           frames of HTTP/2
    "408 open"         the answer said that the connection closes, and it did not
    "100 200 next"     an interim answer first
"""

import asyncio
import dataclasses
import json
from collections.abc import Iterable, Mapping

from tests.support.answers import Answer, first_answer
from tests.support.wire import Wire
from tests.wire.ends import End

CONCURRENT = 50
OPEN_FOR_S = 15.0  # longer than the server's own timeouts
BODY = json.dumps({"prompt": "a", "max_tokens": 1, "stream": False}).encode()

MARKER = (
    b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: marker\r\n"
    b"Connection: close\r\n\r\n"
)
INNER = b"GET /inner HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: inner\r\n\r\n"
"""A request that stands inside a body: no server may answer it."""

FINE = ("200 next",)
BAD = ("400 close",)
FINE_OR_BAD = (*FINE, *BAD)
NO_SUCH_CODING = ("501 close", "400 close")


def either(*statuses: int) -> tuple[str, ...]:
    """Return the outcomes of a refusal that may keep the connection or close it."""
    return tuple(f"{status} {then}" for status in statuses for then in ("next", "close"))


@dataclasses.dataclass(frozen=True)
class Case:
    """Bytes to send, and the outcomes that are right."""

    name: str
    sent: bytes
    right: tuple[str, ...]


def get(
    *lines: bytes,
    method: bytes = b"GET",
    target: bytes = b"/health",
    version: bytes = b"HTTP/1.1",
    host: bytes | None = b"localhost",
    body: bytes = b"",
) -> bytes:
    """Make a request. `lines` are further headers."""
    first = b" ".join((method, target, version))
    hosts = () if host is None else (b"Host: " + host,)
    return b"\r\n".join((first, *hosts, b"X-Request-ID: first", *lines, b"", body))


def post(*lines: bytes, body: bytes = BODY, target: bytes = b"/generate", **more: bytes) -> bytes:
    """Make a POST of JSON. `lines` must say how long its body is."""
    json = b"Content-Type: application/json"
    return get(json, *lines, method=b"POST", target=target, body=body, **more)


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


async def outcome_of(case: Case, end: End) -> tuple[str, list[Answer]]:
    """Send a case's bytes and the marker; return the outcome and the answers.

    Raises AssertionError if an answer is not HTTP, comes unasked or breaks its word.
    """
    is_head = case.sent.lstrip().startswith(b"HEAD ")
    async with end.connect() as wire:
        wire.send(case.sent + MARKER)
        is_closed = await _has_closed(wire, is_head)
        if wire.received.startswith(b"\0\0"):
            return "HTTP/2", []
        answers = list(answers_in(wire.received, to_head=is_head))
    words = [str(answer.status) for answer in answers]
    ids = [answer.request_id for answer in answers]
    assert "inner" not in ids, "bytes of a body were answered as a request"
    assert "marker" not in ids[:-1]
    assert not any(answer.closes for answer in answers[:-1]), "it went on after it said close"
    assert b"HTTP/1.0" in case.sent or not any(answer.is_old for answer in answers)
    if ids and ids[-1] == "marker":
        assert words.pop() == "404"
        assert answers[-1].closes
        words.append("next")
    elif not is_closed:
        words.append("open")
    else:
        words.append("close" if not answers or answers[-1].closes else "gone")
    return " ".join(words), answers


async def _has_closed(wire: Wire, is_head: bool) -> bool:
    """Wait until the server closes the connection, but not long after it said that it does."""
    try:
        await wire.until_closed(within=OPEN_FOR_S)
    except TimeoutError:
        answers = list(answers_in(wire.received, to_head=is_head))
        if not answers or not answers[-1].closes:
            raise
        return False
    return True


def answers_in(received: bytes, *, to_head: bool = False) -> Iterable[Answer]:
    """Yield the answers in all that a connection received. `to_head` is about the first one."""
    while received:
        found = first_answer(received, to_head=to_head, ended=True)
        assert found is not None
        answer, received = found
        to_head = to_head and answer.status < 200
        yield answer


async def outcomes_of(cases: Mapping[str, Case], end: End) -> dict[str, str]:
    """Run cases at once; return the outcome of each, or what was wrong about it."""
    free = asyncio.Semaphore(CONCURRENT)

    async def outcome(case: Case) -> str:
        async with free:
            try:
                words, _ = await outcome_of(case, end)
            except (AssertionError, OSError) as error:  # TimeoutError is an OSError
                return f"{type(error).__name__}: {error}"
            return words

    found = await asyncio.gather(*map(outcome, cases.values()))
    return dict(zip(cases, found, strict=True))
