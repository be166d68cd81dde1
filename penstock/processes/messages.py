"""The messages between a supervisor and its server processes, and the link that carries them.

In: messages. Out: the same messages, in order, at the other end of a pair of sockets. Each is
MessagePack after its length. Both ends are ours and of the same version, so nothing is checked.
"""

import asyncio
import socket
from typing import Any, Generic, TypeVar

import msgspec

from penstock.engine.protocol import ModelInfo

LENGTH_BYTES = 4


class Family(msgspec.Struct, array_like=True):
    """A metric with its samples: each has a name, labels and a value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


class Start(msgspec.Struct, tag=True):
    """Serve with these settings, on these cores (all, if empty), as the process `number`.

    With `accepts_at_once` the process accepts connections while it loads the model. `loads` is the
    path of the file with every process's number of connections. A private log ends with all
    processes.
    """

    settings: dict[str, Any]
    number: int
    cores: tuple[int, ...]
    accepts_at_once: bool
    has_private_log: bool
    loads: str


class Stop(msgspec.Struct, tag=True):
    """Drain the streams and end; at once, if this is the second."""


class Reload(msgspec.Struct, tag=True):
    """Read the file of keys again."""


class Collect(msgspec.Struct, tag=True):
    """Send your metrics, as the answer to this question."""

    question: int


class Combined(msgspec.Struct, tag=True):
    """The metrics of all processes together, the answer to the `Wanted` of this question."""

    question: int
    families: list[Family]


class States(msgspec.Struct, tag=True):
    """The state of each process, by its number."""

    states: dict[int, str]


class Loading(msgspec.Struct, tag=True):
    """The engine's process `pid` begins to load the model."""

    pid: int


class Ready(msgspec.Struct, tag=True):
    """The model can be used."""

    info: ModelInfo


class NotStarted(msgspec.Struct, tag=True):
    """The server cannot start: the reason, and the next step."""

    text: str
    hint: str


class Beat(msgspec.Struct, tag=True):
    """The event loop runs, and the server is in this state and has this many open streams."""

    state: str
    num_streams: int


class Counts(msgspec.Struct, tag=True):
    """The metrics of a process, the answer to the `Collect` of this question."""

    question: int
    families: list[Family]


class Wanted(msgspec.Struct, tag=True):
    """Send the metrics of all processes together, as the answer to this question."""

    question: int


ToServer = Start | Stop | Reload | Collect | Combined | States
FromServer = Loading | Ready | NotStarted | Beat | Counts | Wanted
To = TypeVar("To")
From = TypeVar("From")

_encoder = msgspec.msgpack.Encoder()


def framed(message: object) -> bytes:
    """Return the bytes that carry a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def receive_start(connection: socket.socket) -> Start:
    """Return the first message that a server gets. Waits. Raises EOFError if none comes."""
    body = _exactly(connection, int.from_bytes(_exactly(connection, LENGTH_BYTES), "big"))
    return msgspec.msgpack.decode(body, type=Start)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = connection.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        raise EOFError
    return data


class Link(Generic[To, From]):
    """One end of the connection: sends messages `To` the other and receives those `From` it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: Any
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(kinds)

    def send(self, message: To) -> None:
        """Send a message. Never waits; after the link's end nothing is sent."""
        if not self._writer.is_closing():
            self._writer.write(framed(message))

    @property
    def is_congested(self) -> bool:
        """Return True while the other end has not taken what was sent."""
        return self._writer.transport.get_write_buffer_size() > 0

    async def receive(self) -> From | None:
        """Return the next message, or None at the link's end."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            message: From = self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    async def flush(self) -> None:
        """Wait until the kernel has everything that was sent."""
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=0)
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    def close(self) -> None:
        """End the link."""
        self._writer.close()


async def link_to_server(connection: socket.socket) -> Link[ToServer, FromServer]:
    """Return the supervisor's end of a link."""
    return Link(*await asyncio.open_connection(sock=connection), FromServer)


async def link_to_supervisor(connection: socket.socket) -> Link[FromServer, ToServer]:
    """Return a server's end of a link."""
    return Link(*await asyncio.open_connection(sock=connection), ToServer)
