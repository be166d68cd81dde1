"""The straight path and the general path have the same results, whatever happens in between.

Two servers get the same steps: one takes the straight path where it can, the other never does.
Their streams are answered over real sockets with small buffers, so that clients fall behind.
"""

import asyncio
import contextlib
import re
import socket
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.api.anthropic.frames import PING, MessageForm
from penstock.api.dialect import Form
from penstock.api.native.frames import NativeForm
from penstock.api.ollama.frames import ChatForm as OllamaChatForm
from penstock.api.ollama.frames import GenerateForm, LineFrames
from penstock.api.openai.frames import ChatForm, CompletionForm
from penstock.engine.process.supervisor import deliver_singly
from penstock.engine.protocol import Addition, Deliver
from penstock.events import Usage
from penstock.observe.meter import Delivery, Meter
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.straight import StraightPath
from penstock.stream.stream import Stream
from penstock.web.delivery import HEARTBEAT, BodyWriter, ConnectedReader, queue_comment
from penstock.web.http1.response import LAST_CHUNK, chunk
from penstock.web.liveness import Liveness
from penstock.web.peer import Listener
from tests.support.scripted import ScriptedEngine, settle

SMALL_BUFFER = 4096
FORMS: tuple[tuple[Form, bool, dict[str, Any]], ...] = (
    (NativeForm(), False, {}),
    (NativeForm(), True, {}),
    (ChatForm("chatcmpl-x", 1, "rill"), False, {}),
    (CompletionForm("cmpl-x", 1, "rill", include_usage=True), True, {}),
    (ChatForm("chatcmpl-x", 1, "rill", continuous_usage=True, include_usage=True), False, {}),
    (NativeForm(), False, {"stop": ("qq",)}),
    (MessageForm("msg_x", "rill"), False, {}),
    (MessageForm("msg_x", "rill"), True, {}),
    (OllamaChatForm("rill", "now"), False, {}),
    (GenerateForm("rill", "now"), True, {}),
)
HEARTBEATS = (HEARTBEAT, PING, LineFrames.heartbeat)


class SocketPeer:
    """A client at the other end of a socket, in chunks of HTTP/1.1, as `Exchange` writes them."""

    holds_task = False

    def __init__(self) -> None:
        self._ours, self._client = socket.socketpair()
        for each in (self._ours, self._client):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        self.descriptor = self._ours.fileno()
        self.received = bytearray()
        self._unsent = b""
        self._listener: Listener | None = None
        self.num_straight = 0

    def write(self, data: bytes, is_last: bool) -> bool:
        assert not self._unsent, "nothing may be written until the client has taken all"
        return self.write_rest(chunk(data) + (LAST_CHUNK if is_last else b""))

    def write_rest(self, data: bytes) -> bool:
        self._unsent += data
        self._flush()
        return not self._unsent

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self._ours.send(self._unsent) :] if self._unsent else b""
        self.descriptor = -1 if self._unsent else self._ours.fileno()

    def read(self) -> None:
        """Let the client read all that its socket has, and ours write on."""
        while True:
            try:
                self.received += self._client.recv(65536)
            except BlockingIOError:
                if not self._unsent:
                    return
                self._flush()
                if not self._unsent and self._listener is not None:
                    self._listener.client_took()

    def close(self) -> None:
        self._ours.close()
        self._client.close()

    def tell(self, listener: Listener | None) -> None:
        self._listener = listener

    def take_whole_body(self) -> bytes | None:
        return None

    def abort(self) -> None:
        raise AssertionError("nothing is cut off here")


@dataclass
class Response:
    """A response to one reader of a stream, and whether it was sent to its end."""

    connected: ConnectedReader
    peer: SocketPeer
    writer: BodyWriter
    ends: list[bool] = field(default_factory=list)

    def body(self) -> bytes:
        """Return the body without its chunks."""
        return unchunked(bytes(self.peer.received))


class World:
    """A server whose engine's batches are delivered in one of the two ways."""

    def __init__(self, *, is_straight: bool) -> None:
        self.meter = Meter()
        self.engine = ScriptedEngine()
        self.streams = Streams([self.engine], meter=self.meter)
        self.liveness = Liveness(15, 30)
        self.deliver: Deliver = StraightPath(self.meter).deliver if is_straight else deliver_singly
        self.opened: list[Stream] = []
        self.responses: list[Response] = []
        self.num_lanes = 0
        self.usages: list[list[Usage]] = []
        self.lags: list[list[int] | None] = []
        """After each step; None while a client does not keep up, for the two ways differ in how
        much they had written by then."""
        for number, (form, is_resumable, fields) in enumerate(FORMS):
            request = Request(id=str(number), max_tokens=1000, prompt="x", **fields)
            stream = self.streams.open(
                StreamRecord(request, resumable=is_resumable, form=form.save())
            )
            stream.accepted((1, 2))
            stream.started()
            self.opened.append(stream)
            self.respond(number)

    def respond(self, number: int) -> None:
        """Answer one more reader of a stream, from its beginning."""
        form, is_resumable, _ = FORMS[number]
        stream = self.opened[number]
        peer = SocketPeer()
        connected = ConnectedReader(Reader(stream), peer)
        framer = form.framer([stream], with_ids=is_resumable)
        delivery = Delivery(self.meter, stream.admitted_at)
        writer = BodyWriter(connected, framer, delivery, self.liveness, b"", queue_comment)
        response = Response(connected, peer, writer)
        writer.begin(response.ends.append)
        self.responses.append(response)

    def tell(self, message: Any) -> None:
        """Do what the supervisor does with a message that is no addition."""
        kind, stream_id = message
        sink = self.engine.sinks.get(stream_id)
        if sink is not None and kind == "finish":
            self.engine.sinks.pop(stream_id)
            sink.finish("stop", self.opened[int(stream_id)].usage.completion_tokens)
        elif sink is not None and kind == "reasoning":
            sink.reasoning("hm", 1, (7,))
        elif sink is not None:
            sink.tool_call(0, "call", "f", "{}", 1)

    def step(self, step: tuple[Any, ...]) -> None:
        """Do one thing."""
        match step:
            case ("batch", messages):
                self.deliver(messages, self.engine.sinks, self.tell)
                self.num_lanes += sum(stream.lane is not None for stream in self.opened)
            case ("read", number):
                self.responses[number % len(self.responses)].peer.read()
            case ("sign of life", number):
                writer = self.responses[number % len(self.responses)].writer
                if not writer.is_sending:
                    writer.send_sign_of_life()
            case ("second reader", number):
                if self.opened[number].resumable and len(self.responses) < 12:
                    self.respond(number)
            case ("leave", number):
                response = self.responses[number % len(self.responses)]
                if response.connected.reader.stream.num_readers > 1:
                    response.connected.reader.close()
            case ("die", _):
                lost = list(self.engine.sinks.values())
                self.engine.sinks.clear()
                for sink in lost:
                    assert isinstance(sink, Stream)
                    if sink.can_continue:
                        self.engine.submit(sink.continuation(), sink)
                        sink.accepted((1, 2))
                        sink.started()
                    else:
                        sink.give_up("engine_died", "It died.")

    async def run(self, steps: list[tuple[Any, ...]]) -> None:
        for step in steps:
            self.step(step)
            await settle()
            self.usages.append([stream.usage for stream in self.opened])
            is_blocked = any(response.writer.is_sending for response in self.responses)
            self.lags.append(None if is_blocked else sorted(self.liveness.lags()))
        self.step(("batch", [("finish", stream.id) for stream in self.opened]))
        for _ in range(3):
            await settle()
            for response in self.responses:
                response.peer.read()
        await settle()
        for response in self.responses:
            response.peer.close()

    def results(self) -> dict[str, Any]:
        """Return everything that must not depend on the way."""
        meter = self.meter
        return {
            # A sign of life is left out while a client is behind, and the two ways differ in when
            # that is.
            "bodies": [without_heartbeats(timeless(each.body())) for each in self.responses],
            "ends": [each.ends for each in self.responses],
            "logs": [[repr(event) for event in each.log.after(0)][:-1] for each in self.opened],
            "usage after each step": self.usages,
            "usage": [each.usage for each in self.opened],
            "phases": [each.phase for each in self.opened],
            "events sent": meter.num_events_sent,
            "engine gaps": meter.engine_gap.count,
            "tokens": (meter.prompt_tokens, meter.completion_tokens),
            "ended": dict(meter.num_ended),
            "first tokens": (meter.first_token.count, meter.engine_first_token.count),
            "continued from": [request.generated for request in self.engine.submitted],
            "lags": sorted(self.liveness.lags()),
            "watched": len(self.liveness),
        }


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
    return body


def without_heartbeats(body: bytes) -> bytes:
    for each in HEARTBEATS:
        body = re.sub(rb"(?m)^(id: \d+\n)?(?:%b)+" % re.escape(each), b"", body)
    return body


def timeless(body: bytes) -> bytes:
    """Return the body without the times in its terminal event."""
    return re.sub(
        rb'"(queue_time|time_to_first_token|total_time|tokens_per_second|\w+_duration)":[^,}]+',
        b"",
        body,
    )


def addition(number: int, kind: str, token: int) -> Any:
    """Return the message with which the engine adds something to a stream."""
    stream_id = str(number)
    match kind:
        case "text":
            return Addition(stream_id, f" w{token}\n", 1, (token,))
        case "long text":
            return Addition(stream_id, "x" * 3000, 1, (token,))
        case "two tokens":
            return Addition(stream_id, "é☃", 2, (token, token + 1))
        case "bytes":
            return Addition(stream_id, "€".encode()[: token % 3 + 1], 1, (token,))
        case "no text":
            return Addition(stream_id, "", 1, (token,))
        case "no ids":
            return Addition(stream_id, " unnamed", 2, ())
        case "part of a stop string":
            return Addition(stream_id, "q", 1, (token,))
        case "unknown stream":
            return Addition("nobody", "x", 1, (token,))
    return kind, stream_id


NUMBERS = st.integers(0, len(FORMS) - 1)
KINDS = ["text"] * 8 + [
    "long text",
    "two tokens",
    "bytes",
    "no text",
    "no ids",
    "part of a stop string",
    "unknown stream",
    "reasoning",
    "tool call",
    "finish",
]
ADDITIONS = st.builds(addition, NUMBERS, st.sampled_from(KINDS), st.integers(0, 99))
A_WORD_FOR_EACH = st.just([addition(number, "text", 5) for number in range(len(FORMS))])
BATCHES = st.tuples(st.just("batch"), st.lists(ADDITIONS, max_size=12) | A_WORD_FOR_EACH)
OTHERS = st.tuples(
    st.sampled_from(["read", "sign of life", "second reader", "leave", "die"]), NUMBERS
)
STEPS = st.lists(BATCHES | BATCHES | BATCHES | OTHERS, max_size=40)


def results_of(steps: list[tuple[Any, ...]]) -> tuple[dict[str, Any], dict[str, Any], int]:
    async def run(*, is_straight: bool) -> World:
        world = World(is_straight=is_straight)
        await settle()
        await world.run(steps)
        return world

    straight = asyncio.run(run(is_straight=True))
    general = asyncio.run(run(is_straight=False))
    for ours, theirs in zip(straight.lags, general.lags, strict=True):
        assert ours is None or theirs is None or ours == theirs
    return straight.results(), general.results(), straight.num_lanes


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_both_paths_have_the_same_results(steps: list[tuple[Any, ...]]) -> None:
    straight, general, _ = results_of(steps)
    assert straight == general


def test_plain_text_takes_the_straight_path_and_comes_back_to_it() -> None:
    words = ("batch", [addition(number, "text", 5) for number in range(len(FORMS))])
    _, _, num_lanes = results_of([words] * 3)
    assert num_lanes == 16  # eight of the ten streams, in the two steps after the first
    _, _, num_lanes = results_of([words, ("die", 0), words, words, ("sign of life", 0), words])
    assert num_lanes == 15  # eight, then seven: the stream with the sign of life takes a detour


def test_a_client_that_falls_behind_takes_the_general_path_until_it_has_caught_up() -> None:
    much = ("batch", [addition(0, "long text", 5)])
    reads = [("read", 0)] * 2
    straight, general, _ = results_of([much] * 20 + reads + [much] * 20 + reads)
    assert straight == general
    body = straight["bodies"][0]
    assert [int(each) for each in re.findall(rb'"index":(\d+)', body)] == list(range(41))
