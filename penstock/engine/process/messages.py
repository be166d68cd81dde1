"""The messages between the server and an engine's process, and their framing.

In each direction frames follow each other: a length (4 bytes, big-endian), then that many bytes of
MessagePack. A frame from the engine contains a batch: everything that happened since the last
frame. The engine sends one frame per step, never one per token. Several messages share their names
with `penstock.events`, so code always qualifies them: `messages.Delta`.
"""

from typing import Any

import msgspec

from penstock.engine.protocol import Addition, EngineFinish, ModelInfo, UpstreamState
from penstock.events import PromptLogprobs
from penstock.request import Request


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


class Start(_Message, tag="start"):
    """Load the engine `target` ("module:Class") with the keyword arguments `options`.

    Pass on `pace` tokens per second of each request; 0 passes all of them on at once.
    """

    target: str
    options: dict[str, Any]
    pace: float = 0.0


class Submit(_Message, tag="submit"):
    """Begin `request`."""

    request: Request


class Cancel(_Message, tag="cancel"):
    """Stop the request `request_id`."""

    request_id: str


class Probe(_Message, tag="probe"):
    """Answer `Alive` once the engine itself has answered (see `Engine.check`)."""

    tries: bool


class Ready(_Message, tag="ready"):
    """The model is loaded and serves requests."""

    info: ModelInfo


class Described(_Message, tag="described"):
    """The models of the engine, which is ready, or their slots have changed."""

    info: ModelInfo


class Upstreams(_Message, tag="upstreams"):
    """The present states of the engine's upstreams. Counts begin at 0 with the process."""

    states: tuple[UpstreamState, ...]


class NotStarted(_Message, tag="not-started"):
    """The model cannot be loaded, with the reason and a hint. The process ends afterwards."""

    message: str
    hint: str


class Accepted(_Message, tag="accepted"):
    """A call of `Sink.accepted`."""

    request_id: str
    prompt_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


class Started(_Message, tag="started"):
    """A call of `Sink.started`."""

    request_id: str


class Working(_Message, tag="working"):
    """A call of `Sink.working`."""

    request_id: str
    num_read: int = 0


class Interrupted(_Message, tag="interrupted"):
    """A call of `Sink.interrupted`."""

    request_id: str
    waits: bool


class Cached(_Message, tag="cached"):
    """A call of `Sink.cached`."""

    request_id: str
    num_tokens: int
    prompt_tokens: int = 0


class Prompt(_Message, tag="prompt"):
    """A call of `Sink.prompt_logprobs`."""

    request_id: str
    logprobs: PromptLogprobs


class Reasoning(_Message, tag="reasoning"):
    """A call of `Sink.reasoning`."""

    request_id: str
    text: str
    num_tokens: int
    token_ids: tuple[int, ...]


class ToolCall(_Message, tag="tool-call"):
    """A call of `Sink.tool_call`."""

    request_id: str
    number: int
    call_id: str
    name: str
    arguments: str
    num_tokens: int


class Finish(_Message, tag="finish"):
    """A call of `Sink.finish`."""

    request_id: str
    reason: EngineFinish
    completion_tokens: int


class Fail(_Message, tag="fail"):
    """A call of `Sink.fail`."""

    request_id: str
    code: str
    message: str


class Stopped(_Message, tag="stopped"):
    """The engine works no more on the request that `Cancel` named."""

    request_id: str


class Alive(_Message, tag="alive"):
    """The engine has answered a `Probe`."""


class Paused(_Message, tag="paused"):
    """The engine takes no new requests for now, or takes them again."""

    is_paused: bool


class Notice(_Message, tag="notice"):
    """A line for the server's log, with one of `logging`'s levels."""

    level: int
    text: str


ToEngine = Start | Submit | Cancel | Probe
Fact = (
    Ready
    | Described
    | Upstreams
    | NotStarted
    | Accepted
    | Started
    | Working
    | Interrupted
    | Cached
    | Prompt
    | Reasoning
    | ToolCall
    | Finish
    | Fail
    | Stopped
    | Alive
    | Paused
    | Notice
)
Delta = Addition
FromEngine = Delta | Fact

MAX_FRAME_BYTES = 256 * 1024 * 1024
_HEAD = 4
_encoder = msgspec.msgpack.Encoder()


def frame(messages: list[Any]) -> bytes:
    """Return one frame that contains `messages`."""
    body = _encoder.encode(messages)
    return len(body).to_bytes(_HEAD, "big") + body


class Deframer:
    """Splits a byte stream, which may be cut anywhere, into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add `data` and return the body of every frame that is now complete.

        Raises ValueError if a frame is longer than `MAX_FRAME_BYTES`.
        """
        self._buffer += data
        bodies = []
        start = 0
        while len(self._buffer) - start >= _HEAD:
            length = int.from_bytes(self._buffer[start : start + _HEAD], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is too long")
            end = start + _HEAD + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _HEAD : end]))
            start = end
        del self._buffer[:start]
        return bodies


def to_engine_decoder() -> msgspec.msgpack.Decoder[list[ToEngine]]:
    """Return a decoder for the bodies of frames from the server."""
    return msgspec.msgpack.Decoder(list[ToEngine])


def from_engine_decoder() -> msgspec.msgpack.Decoder[list[FromEngine]]:
    """Return a decoder for the bodies of frames from the engine."""
    return msgspec.msgpack.Decoder(list[FromEngine])
