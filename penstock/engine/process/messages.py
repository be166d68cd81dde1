"""The messages between the server and an engine's process.

Each direction is a sequence of frames: a length (4 bytes, big-endian), then that many bytes of
MessagePack. A frame from the engine holds the *batch* of everything that happened since the last
one: one frame per step of the engine, never one per token.
"""

from typing import Any

import msgspec

from penstock.engine.protocol import EngineFinish, ModelInfo
from penstock.events import TokenLogprob
from penstock.request import Request


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


class Start(_Message, tag="start"):
    """Load the engine `target` ("module:Class") with these keyword arguments."""

    target: str
    options: dict[str, Any]


class Submit(_Message, tag="submit"):
    """Begin a request."""

    request: Request


class Cancel(_Message, tag="cancel"):
    """Stop a request."""

    request_id: str


class Ready(_Message, tag="ready"):
    """The model is loaded."""

    info: ModelInfo


class NotStarted(_Message, tag="not-started"):
    """The model cannot be loaded, and why; the process ends after this."""

    message: str
    hint: str


class Accepted(_Message, tag="accepted"):
    """`Sink.accepted`."""

    request_id: str
    prompt_ids: tuple[int, ...]


class Started(_Message, tag="started"):
    """`Sink.started`."""

    request_id: str


class Working(_Message, tag="working"):
    """`Sink.working`; that it came is all that it says."""


class Delta(_Message, tag="delta"):
    """`Sink.delta`."""

    request_id: str
    piece: Any  # str or bytes, which msgspec does not take as a union
    num_tokens: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class Reasoning(_Message, tag="reasoning"):
    """`Sink.reasoning`."""

    request_id: str
    text: str
    num_tokens: int
    token_ids: tuple[int, ...]


class ToolCall(_Message, tag="tool-call"):
    """`Sink.tool_call`."""

    request_id: str
    number: int
    call_id: str
    name: str
    arguments: str
    num_tokens: int


class Finish(_Message, tag="finish"):
    """`Sink.finish`."""

    request_id: str
    reason: EngineFinish
    completion_tokens: int


class Fail(_Message, tag="fail"):
    """`Sink.fail`."""

    request_id: str
    code: str
    message: str


class Cancelled(_Message, tag="cancelled"):
    """The engine has stopped a request, as `Cancel` asked."""

    request_id: str


ToEngine = Start | Submit | Cancel
Fact = (
    Ready
    | NotStarted
    | Accepted
    | Started
    | Working
    | Reasoning
    | ToolCall
    | Finish
    | Fail
    | Cancelled
)
FromEngine = Delta | Fact

MAX_FRAME_BYTES = 256 * 1024 * 1024
_HEAD = 4
_encoder = msgspec.msgpack.Encoder()


def frame(messages: list[Any]) -> bytes:
    """One frame that holds these messages."""
    body = _encoder.encode(messages)
    return len(body).to_bytes(_HEAD, "big") + body


class Deframer:
    """Bytes in, cut anywhere; the bodies of whole frames out. Raises ValueError on a huge frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take `data` and give every frame that is complete now."""
        self._buffer += data
        bodies = []
        start = 0
        while len(self._buffer) - start >= _HEAD:
            length = int.from_bytes(self._buffer[start : start + _HEAD], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is not ours")
            end = start + _HEAD + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _HEAD : end]))
            start = end
        del self._buffer[:start]
        return bodies


def to_engine_decoder() -> msgspec.msgpack.Decoder[list[ToEngine]]:
    """Decodes the body of a frame from the server."""
    return msgspec.msgpack.Decoder(list[ToEngine])


def from_engine_decoder() -> msgspec.msgpack.Decoder[list[FromEngine]]:
    """Decodes the body of a frame from the engine."""
    return msgspec.msgpack.Decoder(list[FromEngine])
