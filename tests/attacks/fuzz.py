"""Fuzzers for HTTP/1.1, HTTP/2 and JSON bodies, and what they must see.

In: a server and a seed. Out: descriptions of wrong answers, each with what reproduces it. Whatever
is sent, the server lives, its answers are whole, none is an internal error, and none repeats what
was sent.
"""

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import Coroutine, Iterable

import hpack
import hypothesis
import hypothesis.strategies as st

from tests.support.answers import Answer
from tests.support.raw import ask, post
from tests.support.servers import RunningServer
from tests.support.wire import connected
from tests.wire.case import answers_in
from tests.wire.test_mutations import BASES, SPECIAL, WORDS, changed

MARK = "zQjXkVwY"
"""In everything that is sent, so it shows in an answer that repeats it."""
MAY_FAIL = {501, 503, 505}
"""The statuses from 500 that are right: an unknown coding or version, or an absent engine."""
SETTLE_S = 0.3
"""How long a connection is read after the last byte; most have ended by then."""
AT_ONCE = 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def wrong_about(answer: Answer) -> str:
    """Return what is wrong about an answer to anything, or ""."""
    if answer.status >= 500 and answer.status not in MAY_FAIL:
        return f"{answer.status}: {answer.body[:200]!r}"
    if MARK.encode() in answer.body:
        return f"{answer.status} repeats what was sent: {answer.body[:300]!r}"
    if answer.status >= 400 and answer.body:
        try:
            json.loads(answer.body)
        except ValueError:
            # Granian's own answers have no body, and ours are JSON.
            return f"{answer.status} is not JSON: {answer.body[:200]!r}"
    return ""


# HTTP/1.1: requests and rubbish, changed at random and cut into pieces.


def http1_bytes(chance: random.Random) -> list[bytes]:
    """Return the pieces of what a hostile client sends."""
    if chance.random() < 0.15:
        data = chance.randbytes(chance.randrange(1, 2000))
    else:
        data = b"".join(chance.choice(BASES) for _ in range(chance.randint(1, 3)))
        for _ in range(chance.randint(0, 6)):
            data = changed(data, chance) or b"\r\n"
    if chance.random() < 0.3:
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.choice([*SPECIAL, *WORDS]) * chance.randint(1, 50) + data[at:]
    data = data.replace(b"localhost", MARK.encode()) if chance.random() < 0.2 else data
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 1, 3, 30))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def http1(server: RunningServer, seed: int, context: ssl.SSLContext | None = None) -> str:
    """Send the bytes of a seed; return what was wrong about the answers."""
    chance = random.Random(seed)
    try:
        async with connected(server.address, context) as wire:
            for piece in http1_bytes(chance):
                if not wire.is_closed:
                    wire.send(piece)
                await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                await wire.until_closed(within=SETTLE_S)
            with contextlib.suppress(EOFError):
                for answer in answers_in(wire.received):
                    if wrong := wrong_about(answer):
                        return f"HTTP/1.1, seed {seed}: {wrong}"
    except ConnectionError:  # it may reset us
        pass
    except AssertionError as error:  # not a whole answer
        if wire.is_closed:
            return f"HTTP/1.1, seed {seed}: {error}"
    return ""


# HTTP/2: frames of all types, at first right ones.

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, END_HEADERS = 1, 4
_HEADERS = [
    [(":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "localhost")],
    [(":method", "POST"), (":path", "/generate"), (":scheme", "http"), (":authority", "localhost")],
    [(":method", MARK), (":path", "/" + MARK), (":scheme", "x"), (":authority", MARK)],
    [(":path", "*"), ("content-length", "-1"), ("Transfer-Encoding", "chunked")],
    [("x-" + MARK, "y" * 3000)] * 30,
]


def frame_of(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """Return a frame (RFC 9113, section 4.1), with a wrong `length` if it is given."""
    length = len(payload) if length < 0 else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def right_frames(chance: random.Random, encoder: hpack.Encoder, stream: int) -> bytes:
    """Return frames that a proper client may send: a request, or something between requests."""
    # Only what is sent may be encoded: both sides remember the headers.
    if chance.random() < 0.5:
        sent = frame_of(HEADERS, END_STREAM | END_HEADERS, stream, encoder.encode(_HEADERS[0]))
        return sent + frame_of(RST_STREAM, 0, stream, bytes(4)) * (chance.random() < 0.2)
    if chance.random() < 0.5:
        sent = frame_of(HEADERS, END_HEADERS, stream, encoder.encode(_HEADERS[1]))
        end = frame_of(DATA, END_STREAM, stream, b"{}")
        return sent + chance.choice((b"", end, frame_of(RST_STREAM, 0, stream, b"\0\0\0\x08")))
    return chance.choice(
        [
            frame_of(PING, 0, 0, bytes(8)),
            frame_of(SETTINGS, 0, 0, b"\0\x04\0\0" + chance.randbytes(2)),
            frame_of(WINDOW_UPDATE, 0, 0, b"\0\0\x10\0"),
            frame_of(PRIORITY, 0, stream, b"\0\0\0\0\x10"),
        ]
    )


def odd_frame(chance: random.Random, encoder: hpack.Encoder) -> bytes:
    """Return a frame with its type, flags, length, stream and payload at random."""
    kind = chance.choice([*range(10), HEADERS, HEADERS, DATA, chance.randrange(256)])
    stream = chance.choice((0, 1, 1, 3, 5, 2, 2**31 - 1, chance.randrange(2**31)))
    if kind == HEADERS and chance.random() < 0.8:
        payload = encoder.encode(chance.choice(_HEADERS))
    else:
        payload = chance.randbytes(chance.choice((0, 4, 5, 8, 6, chance.randrange(300))))
    flags = chance.choice((0, 1, 4, 5, 0x25, chance.randrange(256)))
    length = -1 if chance.random() < 0.9 else chance.randrange(2**24)
    return frame_of(kind, flags, stream, payload, length)


def http2_bytes(chance: random.Random) -> tuple[bytes, bytes]:
    """Return the preface with right frames, and the odd frames that follow."""
    encoder = hpack.Encoder()
    right = PREFACE + frame_of(SETTINGS, 0, 0)
    for number in range(chance.randint(0, 10)):
        right += right_frames(chance, encoder, 2 * number + 1)
    odd = b"".join(odd_frame(chance, encoder) for _ in range(chance.randint(1, 10)))
    return right, odd if chance.random() < 0.8 else odd[: chance.randrange(len(odd))]


async def http2(server: RunningServer, seed: int, context: ssl.SSLContext | None = None) -> str:
    """Send the frames of a seed over HTTP/2; return what was wrong."""
    chance = random.Random(seed)
    right, odd = http2_bytes(chance)
    received = b""
    with contextlib.suppress(ConnectionError):
        async with connected(server.address, context) as wire:
            wire.send(right)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    while not wire.is_closed:
                        received += await wire.take()
                        if chance.random() < 0.2:  # in the middle of the answers
                            break
            if not wire.is_closed:
                wire.send(odd)
            with contextlib.suppress(TimeoutError):
                await wire.until_closed(within=SETTLE_S)
            if MARK.encode() in received + wire.received:
                return f"HTTP/2, seed {seed}: an answer repeats what was sent"
    return ""


async def all_of(attempts: Iterable[Coroutine[None, None, str]]) -> list[str]:
    """Run the attempts, some at once; return what was wrong in them."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(attempt: Coroutine[None, None, str]) -> str:
        async with free:
            return await attempt

    return [wrong for wrong in await asyncio.gather(*map(one, attempts)) if wrong]


# JSON: bodies that are almost right.

_TEXTS = st.sampled_from(["", MARK, "a" * 300, "\0", "\u2028", "<|end|>", "{}", "[[", "\U0001f600"])
_NUMBERS = st.sampled_from([0, -1, 1, 2, 0.5, 1e308, -1e-308, 2**31, 2**53 + 1, 10**30, -(2**63)])
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)
_ROLES = st.sampled_from(["user", "system", "assistant", "tool", "developer", MARK])
_PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal", MARK])},
    optional={"text": _VALUES, "image_url": _VALUES},
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": _ROLES, "content": st.one_of(_TEXTS, st.lists(_PARTS, max_size=3), _VALUES)},
        optional={"name": _VALUES, "tool_calls": _VALUES, "tool_call_id": _VALUES},
    ),
    max_size=4,
)
_SCHEMAS = st.recursive(
    st.sampled_from([{"type": "string"}, {"const": MARK}, {"enum": [1, MARK]}, {"type": MARK}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"properties": st.dictionaries(_TEXTS, inner, max_size=3)}),
        st.fixed_dictionaries({"patternProperties": st.dictionaries(_TEXTS, inner, max_size=2)}),
        st.fixed_dictionaries({"pattern": st.sampled_from([MARK + "(", "(?=a)", "a{9}", ".*"])}),
        st.fixed_dictionaries({"allOf": st.lists(inner, max_size=3)}),
    ),
    max_leaves=6,
)
_FORMS = st.fixed_dictionaries(
    {"type": st.sampled_from(["json_schema", "json_object", "text", MARK])},
    optional={
        "json_schema": st.fixed_dictionaries(
            {"name": _TEXTS, "schema": _SCHEMAS}, optional={"strict": _SCALARS}
        )
    },
)
_TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["function", MARK]),
            "function": st.fixed_dictionaries({"name": _TEXTS, "parameters": _SCHEMAS}),
        }
    ),
    max_size=3,
)
_KNOWN: dict[str, st.SearchStrategy[object]] = {
    **dict.fromkeys(("temperature", "top_p", "seed", "n", "logprobs", "top_logprobs"), _SCALARS),
    **dict.fromkeys(("stop", "logit_bias", "user", "metadata", "stream_options"), _VALUES),
    **dict.fromkeys(("min_p", "top_k", "echo", "suffix", "timeout", "resumable"), _SCALARS),
    "tools": st.one_of(_TOOLS, _VALUES),
    "tool_choice": _VALUES,
    "response_format": st.one_of(_FORMS, _VALUES),
    MARK: _VALUES,
}
# No value that asks for an answer without end.
_FEW = st.sampled_from([1, 2, 2, "2", MARK, [2], {"a": 2}])
_OLLAMA: dict[str, st.SearchStrategy[object]] = {
    "format": st.one_of(_SCHEMAS, _VALUES),
    **dict.fromkeys(("model", "think", "raw", "keep_alive", "suffix", "logprobs"), _SCALARS),
    **dict.fromkeys(("images", "context", "template", "system", MARK), _VALUES),
    "tools": st.one_of(_TOOLS, _VALUES),
}
_OPTIONS = st.fixed_dictionaries(
    {"num_predict": _FEW},
    optional={
        **dict.fromkeys(("temperature", "top_k", "seed", "num_ctx"), _SCALARS),
        **dict.fromkeys(("stop", "num_gpu", MARK), _VALUES),
    },
)
BODIES = st.one_of(
    st.tuples(
        st.just("/api/chat"),
        st.fixed_dictionaries(
            {"messages": st.one_of(_MESSAGES, _VALUES), "options": _OPTIONS}, optional=_OLLAMA
        ),
    ),
    st.tuples(
        st.sampled_from(["/api/generate", "/api/show", "/api/pull"]),
        st.fixed_dictionaries(
            {"prompt": st.one_of(_TEXTS, _VALUES), "options": _OPTIONS}, optional=_OLLAMA
        ),
    ),
    st.tuples(
        st.just("/v1/chat/completions"),
        st.fixed_dictionaries(
            {"messages": st.one_of(_MESSAGES, _VALUES), "max_tokens": _FEW},
            optional=_KNOWN,
        ),
    ),
    st.tuples(
        st.sampled_from(["/tokenize", "/detokenize", "/apply-template"]),
        st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("content", "prompt"), st.one_of(_TEXTS, _VALUES)),
                "messages": st.one_of(_MESSAGES, _VALUES),
                "tokens": st.one_of(st.lists(st.integers(0, 1000), max_size=5), _VALUES),
                **_KNOWN,
            },
        ),
    ),
    st.tuples(
        st.sampled_from(["/v1/completions", "/generate", "/completion"]),
        st.fixed_dictionaries(
            {"prompt": st.one_of(_TEXTS, _VALUES), "max_tokens": _FEW},
            optional=_KNOWN,
        ),
    ),
)


def json_bodies(server: RunningServer, examples: int, *, derandomize: bool, key: str = "") -> None:
    """Send bodies that hypothesis makes. Raises AssertionError with the smallest wrong one."""

    @hypothesis.settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @hypothesis.given(BODIES)
    def send(case: tuple[str, dict[str, object]]) -> None:
        path, fields = case
        body = json.dumps({**fields, "stream": False}).encode()
        answer = ask(server.port, post(body, f"Authorization: Bearer {key}", path=path))
        assert answer.status < 500 or answer.status in MAY_FAIL, answer
        parsed = answer.json()
        if answer.status != 200:
            shown = json.dumps(parsed).replace(f'"{MARK}', "").replace(f".{MARK}", "")
            assert MARK not in shown, answer

    send()
