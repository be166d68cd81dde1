"""What servers with OpenAI's API may send, and some do: each form is read as the same answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from penstock.request import Message
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, chunk, fakes
from tests.support.remote import ask, remote, text_from

LENGTH = 5
DONE = b"data: [DONE]\n\n"
EVENTS = b"Content-Type: text/event-stream"
CHAT: dict[str, Any] = {"prompt": None, "messages": (Message("user", "one two three"),)}

Fault = Callable[[Exchange], Awaitable[None]]
Event = dict[str, Any]


def events(exchange: Exchange, reason: str = "length") -> list[Event]:
    """Return the events of the whole answer."""
    tokens = [exchange.token(exchange.first + n) for n in range(exchange.length)]
    return [*tokens, {"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": reason}]}]


def encoded(event: Event, end: bytes = b"\n") -> bytes:
    return b"data: " + json.dumps(event).encode() + end + end


def lines(exchange: Exchange, end: bytes = b"\n") -> list[bytes]:
    """Return the body of the answer, an event in each item."""
    return [*(encoded(each, end) for each in events(exchange)), DONE]


def sends(body: Callable[[Exchange], Iterable[bytes]]) -> Fault:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(HEAD, *map(chunk, body(exchange)), END)

    return answer


def heads(*head: bytes, after: bytes = b"") -> Fault:
    """Return an answer with this head and no chunks; "LENGTH" stands for the body's length."""

    async def answer(exchange: Exchange) -> None:
        body = b"".join(lines(exchange))
        text = b"\r\n".join((*head, b"", b"")).replace(b"LENGTH", b"%d" % len(body))
        await exchange.send(text, body, after)
        exchange.cut()

    return answer


def changes(change: Callable[[Event], object]) -> Fault:
    """Return an answer in which `change` has changed each event."""

    def body(exchange: Exchange) -> Iterable[bytes]:
        for each in events(exchange):
            change(each)
            yield encoded(each)
        yield DONE

    return sends(body)


def changes_choices(change: Callable[[Event], object]) -> Fault:
    return changes(lambda event: change(event["choices"][0]))


def ends_with(reason: str) -> Fault:
    return sends(lambda exchange: [*map(encoded, events(exchange, reason)), DONE])


def adds(*first: Event, last: tuple[Event, ...] = ()) -> Fault:
    """Return an answer with other events before and after its own."""
    return sends(
        lambda exchange: [*map(encoded, (*first, *events(exchange), *last)), DONE],
    )


async def trailers(exchange: Exchange) -> None:
    trailer = b"0\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
    await exchange.send(HEAD, *map(chunk, lines(exchange)), trailer)


async def extensions(exchange: Exchange) -> None:
    chunks = (b'%x;a=b;c="d"\r\n%s\r\n' % (len(each), each) for each in lines(exchange))
    await exchange.send(HEAD, *chunks, END)


async def early_heads(exchange: Exchange) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Type: a/b\r\n\r\n"
    await exchange.send(early, HEAD, *map(chunk, lines(exchange)), END)


async def byte_by_byte(exchange: Exchange) -> None:
    for byte in HEAD + b"".join(map(chunk, lines(exchange))) + END:
        await exchange.send(bytes([byte]))
        await asyncio.sleep(0)


async def hangs(exchange: Exchange) -> None:
    await exchange.send(HEAD, *map(chunk, lines(exchange)))
    await exchange.until_gone()


def drop_nothing(choice: Event) -> None:
    """Put null where there is nothing."""
    for name in ("text", "delta"):
        if not choice.get(name):
            choice[name] = None


FORMS: dict[str, Fault] = {
    "trailers": trailers,
    "chunk extensions": extensions,
    "1xx before the head": early_heads,
    "byte by byte": byte_by_byte,
    "open after its end": hangs,
    "HTTP/1.0": heads(b"HTTP/1.0 200 OK", EVENTS),
    "until it closes": heads(b"HTTP/1.1 200 OK", EVENTS),
    "a length": heads(b"HTTP/1.1 200 OK", EVENTS, b"Content-Length: LENGTH"),
    "a length that is too long": heads(b"HTTP/1.1 200 OK", EVENTS, b"Content-Length: 1LENGTH"),
    "more than its length": heads(
        b"HTTP/1.1 200 OK", EVENTS, b"Content-Length: LENGTH", after=b"HTTP/1.1 200 OK\r\n\r\n"
    ),
    "a charset": heads(b"HTTP/1.1 200 OK", b"CONTENT-TYPE: Text/Event-Stream ; charset=UTF-8"),
    "CRLF": sends(lambda exchange: lines(exchange, b"\r\n")),
    "no space": sends(lambda e: (each.replace(b"data: ", b"data:") for each in lines(e))),
    "a byte order mark": sends(lambda exchange: [b"\xef\xbb\xbf", *lines(exchange)]),
    "comments and other fields": sends(
        lambda e: (b": x\n\nevent: x\nid: 5\nretry: 1\n" + each + b"data:\n\ndata\n\n"
                   for each in lines(e))
    ),
    "no [DONE]": sends(lambda exchange: lines(exchange)[:-1]),
    "no index": changes_choices(lambda choice: choice.pop("index")),
    "null as index": changes_choices(lambda choice: choice.update(index=None)),
    "null for nothing": changes_choices(drop_nothing),
    "an empty reason": changes_choices(lambda choice: choice.setdefault("finish_reason", "")),
    "Hugging Face's reasons": ends_with("eos_token"),
    "null as usage": changes(lambda event: event.update(usage=None)),
    "usage of nulls": changes(
        lambda event: event.update(usage={"prompt_tokens": None, "completion_tokens": None})
    ),
    "null as choices": adds(
        last=({"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": LENGTH}},)
    ),
    "a role without text": adds(
        {"choices": [{"index": 0, "text": "", "delta": {"role": "assistant", "content": None}}]},
        {"choices": []},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["vllm", "openai", "chat"])
@pytest.mark.parametrize("name", FORMS)
async def test_every_form_is_read_as_the_same_answer(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = FakeUpstream("vllm" if kind == "vllm" else "openai")
    async with fakes(one), remote(one) as engine:
        one.always = FORMS[name]
        sink = await ask(engine, "a", LENGTH, **(CHAT if kind == "chat" else {})).end()
    assert sink.failure is None
    assert sink.text() == text_from(3, LENGTH)
    assert (sink.completion_tokens, len(one.asked)) == (LENGTH, 1)
    assert "is left out" not in caplog.text


async def test_a_character_is_whole_however_its_bytes_are_cut() -> None:
    one = FakeUpstream("openai")
    text = "né 🙂 é"
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    body = b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"
    async with fakes(one), remote(one) as engine:
        one.always = sends(lambda _: (bytes([byte]) for byte in body))
        sink = await ask(engine, "a", 10).end()
    assert (sink.failure, sink.text()) == (None, text)


async def test_an_upstream_that_hangs_after_the_end_of_an_answer_holds_it_up_only_shortly(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.engine.remote.answering.LAST_WORDS_S", 0.1)

    async def hangs_without_done(exchange: Exchange) -> None:
        await exchange.send(HEAD, *map(chunk, lines(exchange)[:-1]))
        await exchange.until_gone()

    one = FakeUpstream()
    async with fakes(one), remote(one, silence=100.0) as engine:
        one.always = hangs_without_done
        sink = await ask(engine, "a", LENGTH).end(20)
    assert (sink.failure, sink.text()) == (None, text_from(3, LENGTH))
    assert "is left out" not in caplog.text
