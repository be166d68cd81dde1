"""The readers of the fault tests, against a small server that speaks the protocol."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import pytest

from tests.faults.checker import judge
from tests.faults.history import Got, History, Refused, numbered
from tests.faults.proxy import CLOSES, Address, Faults, Proxy, cut, sometimes
from tests.faults.reading import Reader, RefusedError, ask_how_it_ended, cancel
from tests.support.tcp_server import tcp_server

PATIENCE_S = 20.0
LENGTH = 30


class SmallServer:
    """A server whose streams send their first `length` tokens at once.

    A stream shorter than LENGTH then waits until its client leaves or it is cancelled.
    """

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.length = LENGTH
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.left = asyncio.Event()
        self.goes_on = asyncio.Event()  # cleared: streams pause at their half
        self.goes_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((f"{method} {path}", headers))
        path, _, query = path.partition("?after=")
        if method == "POST":
            stream = f"s{len(self.words)}"
            self.words[stream] = json.loads(body)["prompt"].split()[0]
        else:
            stream = path.rpartition("/")[2]
        if stream not in self.words:
            _whole(writer, "404 Not Found", {"code": "stream_not_found"})
        elif method == "DELETE":
            self.cancelled.add(stream)
            _whole(writer, "200 OK", {"id": stream, "finish_reason": "cancelled"})
        else:
            after = int(headers.get("last-event-id", query or "-1").rpartition(".")[2])
            await self._stream(stream, after, reader, writer)

    async def _stream(
        self, stream: str, after: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nX-Stream-ID: %b\r\n\r\n" % stream.encode()
        )
        word = self.words[stream]
        for index in range(after + 1, self.length):
            if index == LENGTH // 2:
                await self.goes_on.wait()
            event = {"token": f"{word}:{index} ", "index": index, "finished": False}
            _chunk(
                writer,
                b": ping\nid: %b.%d\ndata: %b\n\n"
                % (stream.encode(), index, json.dumps(event).encode()),
            )
        await writer.drain()
        if self.length < LENGTH and stream not in self.cancelled:
            assert await reader.read() == b""
            self.left.set()
            return
        end = {
            "token": "",
            "index": self.length,
            "finished": True,
            "finish_reason": "cancelled" if stream in self.cancelled else "stop",
            "usage": {"completion_tokens": self.length},
        }
        _chunk(
            writer,
            b"id: %b.%d\ndata: %b\n\n" % (stream.encode(), self.length, json.dumps(end).encode()),
        )
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, status: str, fields: dict[str, str]) -> None:
    body = json.dumps(fields).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[SmallServer, Address]]:
    small = SmallServer()
    async with tcp_server(small.serve) as address, asyncio.timeout(PATIENCE_S):
        yield small, address


TRUTH = numbered("plum", length=LENGTH, max_tokens=100)


async def test_a_stream_is_read_to_its_end() -> None:
    history = History()
    async with listening() as (_, address):
        reader = Reader(address, history)
        await reader.open(TRUTH)
        ended = await reader.read_through()
    assert (ended.reason, ended.event_id) == ("stop", LENGTH)
    assert reader.num_comments == LENGTH
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["events"] == LENGTH + 1


async def test_cuts_at_any_byte_are_resumed_by_header_and_by_query() -> None:
    def cut_anywhere(chance: random.Random) -> Faults:
        fault = cut(chance.randrange(700), chance.choice(CLOSES))
        return Faults(down=sometimes(chance, 0.9, fault))

    history = History()
    async with listening() as (small, address), Proxy(address, cut_anywhere, seed=3) as proxy:
        for _ in range(20):
            reader = Reader(proxy.address, history)
            with contextlib.suppress(OSError):  # cut before the reader knew its stream
                await reader.open(TRUTH)
                await reader.read_through()
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["resumed"] >= 20
    asked = [(line, headers) for line, headers in small.requests if line.startswith("GET")]
    assert any("?after=" in line for line, _ in asked)
    assert any("last-event-id" in headers for _, headers in asked)


async def test_waiting_for_an_event_ends_when_it_comes_or_cannot_come() -> None:
    async with listening() as (small, address):
        small.length = 5
        reader = Reader(address, History())
        await reader.open(TRUTH)
        await reader.got(4)
        assert reader.cursor == 4
        waiting = asyncio.create_task(reader.got(9))
        await asyncio.sleep(0)
        reader.leave("RST")
        with pytest.raises(ConnectionError):
            await waiting


async def test_a_reader_that_leaves_is_gone_and_comes_back_where_it_was() -> None:
    history = History()
    async with listening() as (small, address):
        small.length = 5
        reader = Reader(address, history)
        await reader.open(TRUTH)
        await reader.got(4)
        reader.leave()
        await small.left.wait()
        small.length = LENGTH
        await reader.read_through()
    verdict = judge(history)
    assert verdict.holds, verdict
    assert (verdict.counts["left"], verdict.counts["resumed"]) == (1, 1)


async def test_a_cancel_and_what_delete_tells_are_recorded() -> None:
    history = History()
    async with listening() as (small, address):
        small.length = 5
        reader = Reader(address, history)
        await reader.open(TRUTH)
        await reader.got(4)
        assert await cancel(address, history, reader.stream) == "cancelled"
        assert await ask_how_it_ended(address, history, reader.stream) == "cancelled"
        reader.leave()
        assert (await reader.read_through()).reason == "cancelled"
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"cancelled": 1}


async def test_a_refusal_is_raised_and_recorded() -> None:
    history = History()
    async with listening() as (_, address):
        reader = Reader(address, history)
        with pytest.raises(RefusedError) as refused:
            await reader.attach("nowhere")
        assert (refused.value.status, refused.value.code) == (404, "stream_not_found")
        with pytest.raises(RefusedError):
            await cancel(address, history, "nowhere")
    history.open("nowhere", TRUTH)
    (entry, *_) = history.streams["nowhere"].entries
    assert isinstance(entry, Refused)
    assert entry.code == "stream_not_found"


async def test_a_reader_that_stops_reading_gets_the_rest_when_it_reads_on() -> None:
    history = History()
    async with listening() as (small, address):
        small.goes_on.clear()
        reader = Reader(address, history)
        await reader.open(TRUTH)
        await reader.got(LENGTH // 2 - 1)
        reader.stop_reading()
        small.goes_on.set()
        another = Reader(address, history)
        await another.attach(reader.stream)
        await another.read_through()
        assert reader.cursor == LENGTH // 2 - 1
        reader.read_on()
        await reader.read_through()
    assert judge(history).holds
    deltas = [entry for entry in history.streams["s0"].entries if isinstance(entry, Got)]
    assert len(deltas) == 2 * LENGTH
