"""The record of a stream: what it was opened with, as one typed and versioned value.

A record holds everything that another process needs to continue the stream, together with its
log and its transcript. `encode` and `decode` are the only format; it is MessagePack.
"""

import time
from typing import Any

import msgspec

from penstock.request import Request
from penstock.stream.quotas import ANYBODY, Owner

RECORD_VERSION = 1


class SavedForm(msgspec.Struct, frozen=True):
    """How a stream is shown to its readers.

    `dialect` names the dialect that opened the stream (see `api.dialect`). `options` are that
    dialect's own choices for this answer, as JSON values.
    """

    dialect: str = ""
    options: dict[str, Any] = {}


class ChoiceGroup(msgspec.Struct, frozen=True):
    """The streams that are the choices of one answer.

    `first_id` is the id of the first stream, which names the whole group. `number` counts this
    stream from 0. Cancelling the first stream cancels all of them. `counts_prompt` is False if
    an earlier choice has the same prompt.
    """

    first_id: str
    number: int
    size: int
    counts_prompt: bool = True


class StreamRecord(msgspec.Struct, frozen=True):
    """What a stream was opened with.

    A `resumable` stream outlives its connection and can be read again. `timeout` is how long the
    stream may take from its admission to its end, in seconds; None means the server's limit.
    `form` says how readers see the stream. `choices` is set if the stream is one of several
    choices. `has_limit` is True if the client named the token limit. `name` is what other requests
    find the stream by (see `api.joining`), empty if it has none. `opened_at` is the wall-clock
    time of the admission, in seconds since 1970. `token_secret` proves the tokens that let others
    read the stream (see `web.stream_tokens`); it is empty if there can be none.
    """

    request: Request
    owner: Owner = ANYBODY
    resumable: bool = False
    timeout: float | None = None
    form: SavedForm = SavedForm()
    choices: ChoiceGroup | None = None
    has_limit: bool = True
    name: str = ""
    opened_at: float = msgspec.field(default_factory=time.time)
    token_secret: bytes = b""
    version: int = RECORD_VERSION

    @property
    def id(self) -> str:
        """Return the stream's unguessable id."""
        return self.request.id

    @property
    def first_id(self) -> str:
        """Return the id that names the answer: the first choice's, or the stream's own."""
        return self.id if self.choices is None else self.choices.first_id

    @property
    def counts_prompt(self) -> bool:
        """Return True if the prompt counts when the tokens of streams are added up."""
        return self.choices is None or self.choices.counts_prompt

    def encode(self) -> bytes:
        """Return the record as MessagePack."""
        return _encoder.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "StreamRecord":
        """Read a record. Raises ValueError if it is malformed or of an unknown version."""
        version = _version_decoder.decode(data).version
        if version != RECORD_VERSION:
            raise ValueError(
                f"The stream record has version {version}; this server reads only version"
                f" {RECORD_VERSION}."
            )
        return _decoder.decode(data)


class _Version(msgspec.Struct):
    version: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StreamRecord)
_version_decoder = msgspec.msgpack.Decoder(_Version)
