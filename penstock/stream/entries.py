"""The entries of a stored log: what happened to a stream, as values.

A stream is a fold over its entries. There is one entry for each call of its sink
(`engine.protocol.Sink`) and one for each decision of the server. Whoever applies the same entries
in the same order gets the same stream: its owner, a replica that only shows it, and a replica that
continues it after its owner's death. So an entry is stored first and applied then.

The header of a log is a `Header`. All of them are MessagePack. Servers of two releases share logs
while `FORMAT_VERSION` is the same (docs/stores.md, "Upgrades"). A field with a default may be added
without a new format: older servers ignore it. Raise the format if an older server would then show
or continue a stream wrongly, and for every other change of the header, the record or the entries.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from penstock import text
from penstock.engine.protocol import EngineFinish
from penstock.errors import Problem
from penstock.events import (
    Delta,
    PromptLogprobs,
    Reasoning,
    TerminalEvent,
    TokenLogprob,
    ToolCall,
)
from penstock.request import UnnamedTokens
from penstock.store.protocol import CLAIMED, TORN, Entry
from penstock.stream.record import StreamRecord

if TYPE_CHECKING:
    from penstock.stream.stream import Stream

FORMAT_VERSION = 1


class OtherFormatError(ValueError):
    """A log is of a format that this server does not know. Servers of another version do."""


class Header(msgspec.Struct, frozen=True):
    """What a log begins with. `model` tells which engines can continue the stream."""

    record: StreamRecord
    model: str
    version: int = FORMAT_VERSION

    def encode(self) -> Entry:
        """Return the header as MessagePack."""
        return _encode(self)

    @classmethod
    def decode(cls, data: Entry) -> "Header":
        """Read a header. Raises OtherFormatError, or ValueError if it is malformed."""
        version = _version_decoder.decode(data).version
        if version != FORMAT_VERSION:
            raise OtherFormatError(
                f"The log has format {version}; this server reads {FORMAT_VERSION}."
            )
        return _header_decoder.decode(data)


class _Version(msgspec.Struct):
    version: int


class _Call(msgspec.Struct, array_like=True, frozen=True, gc=False):
    def apply(self, stream: "Stream") -> None:
        """Do to the stream what the entry says."""
        raise NotImplementedError


# The calls of the engine. Tags are short because each token has one.


class Text(_Call, frozen=True, tag="d"):
    """A call of `delta`."""

    piece: Any  # str or bytes; msgspec does not support that union
    num_tokens: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()

    def apply(self, stream: "Stream") -> None:
        stream.delta(self.piece, self.num_tokens, self.token_ids, self.logprobs)


class Reasoned(_Call, frozen=True, tag="r"):
    """A call of `reasoning`."""

    text: str
    num_tokens: int
    token_ids: tuple[int, ...]

    def apply(self, stream: "Stream") -> None:
        stream.reasoning(self.text, self.num_tokens, self.token_ids)


class Called(_Call, frozen=True, tag="t"):
    """A call of `tool_call`."""

    number: int
    call_id: str
    name: str
    arguments: str
    num_tokens: int

    def apply(self, stream: "Stream") -> None:
        stream.tool_call(self.number, self.call_id, self.name, self.arguments, self.num_tokens)


class Accepted(_Call, frozen=True, tag="accepted"):
    """A call of `accepted`."""

    prompt_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def apply(self, stream: "Stream") -> None:
        stream.accepted(self.prompt_ids, self.notes)


class Started(_Call, frozen=True, tag="started"):
    """A call of `started`."""

    def apply(self, stream: "Stream") -> None:
        stream.started()


class Cached(_Call, frozen=True, tag="cached"):
    """A call of `cached`."""

    num_tokens: int
    prompt_tokens: int = 0

    def apply(self, stream: "Stream") -> None:
        stream.cached(self.num_tokens, self.prompt_tokens)


class Prompted(_Call, frozen=True, tag="prompt"):
    """A call of `prompt_logprobs`."""

    logprobs: PromptLogprobs

    def apply(self, stream: "Stream") -> None:
        stream.prompt_logprobs(self.logprobs)


class Finished(_Call, frozen=True, tag="finish"):
    """A call of `finish`."""

    reason: EngineFinish
    completion_tokens: int

    def apply(self, stream: "Stream") -> None:
        stream.finish(self.reason, self.completion_tokens)


class Failed(_Call, frozen=True, tag="fail"):
    """A call of `fail`."""

    code: str
    message: str

    def apply(self, stream: "Stream") -> None:
        stream.fail(self.code, self.message)


# The decisions of the server.


class Submitted(_Call, frozen=True, tag="submit"):
    """The stream was given to an engine, from its beginning or to continue.

    The engine has died so often while it worked on the stream (see `recovery`).
    """

    deaths: int
    deaths_alone: int

    def apply(self, stream: "Stream") -> None:
        if not stream.is_over:
            stream.resubmit()
            stream.deaths, stream.deaths_alone = self.deaths, self.deaths_alone


class Elapsed(_Call, frozen=True, tag="time"):
    """So many seconds have passed since the stream's admission. Clocks of machines may differ."""

    seconds: float

    def apply(self, stream: "Stream") -> None:
        stream.timer.set_age(self.seconds)


class Cancelled(_Call, frozen=True, tag="cancel"):
    """A client cancelled the stream, or nobody reads it (`client_gone`)."""

    client_gone: bool

    def apply(self, stream: "Stream") -> None:
        if not stream.is_over:
            stream.client_gone = self.client_gone
            stream.end_as("cancelled", engine_done=False)


class Expired(_Call, frozen=True, tag="expire"):
    """The stream's time is up."""

    def apply(self, stream: "Stream") -> None:
        stream.end_as("deadline", engine_done=False)


class Refused(_Call, frozen=True, tag="refuse"):
    """The server ends the stream with a problem."""

    code: str
    detail: str
    retry_safe: bool
    headers: dict[str, str] = {}

    def apply(self, stream: "Stream") -> None:
        headers = dict(self.headers)
        problem = Problem(self.code, self.detail, retry_safe=self.retry_safe, headers=headers)
        stream.end_as_failed(problem, engine_done=False)


def refused(problem: Problem) -> Refused:
    """Return the decision to end a stream with this problem."""
    return Refused(problem.code, problem.detail, problem.retry_safe, problem.headers)


class HandedOver(_Call, frozen=True, tag="hand-over"):
    """The owner stops and gives the stream away: the next claim is no sign of its death."""

    def apply(self, stream: "Stream") -> None:
        if stream.phase == "progressed":
            stream.lost_before_token = 0
        stream.phase = "queued"


class Snapshot(_Call, frozen=True, tag="snapshot"):
    """Everything about a stream that was not stored from its beginning."""

    events: tuple[Delta | Reasoning | ToolCall, ...]
    prompt_ids: tuple[int, ...] | None
    generated: tuple[int | UnnamedTokens, ...]
    completion_tokens: int
    cached_tokens: int
    pending_tokens: int
    held: str
    has_called: bool
    reproducible: bool
    notes: tuple[str, ...]
    prompt_tokens: int = 0

    @classmethod
    def of(cls, stream: "Stream") -> "Snapshot":
        """Return everything about a running stream."""
        stream.leave_lane()
        transcript = stream.transcript
        return cls(
            events=tuple(event for event in stream.log.events if isinstance(event, Delta)),
            prompt_ids=None if transcript.prompt_ids is None else tuple(transcript.prompt_ids),
            generated=tuple(transcript.generated),
            completion_tokens=transcript.completion_tokens - transcript.num_textless,
            cached_tokens=transcript.cached_tokens,
            pending_tokens=transcript.pending_tokens - transcript.num_textless,
            held="" if stream.text is None else stream.text.held,
            has_called=transcript.has_called,
            reproducible=transcript.reproducible,
            notes=stream.notes,
            prompt_tokens=transcript.prompt_tokens,
        )

    def apply(self, stream: "Stream") -> None:
        """Give a new stream the state of the stream of which the snapshot was taken."""
        for event in self.events:
            stream.log.append(event)
        transcript = stream.transcript
        if self.prompt_ids is not None:
            transcript.accept(self.prompt_ids)
        transcript.generated = list(self.generated)
        transcript.completion_tokens = self.completion_tokens
        transcript.prompt_tokens = self.prompt_tokens
        transcript.cached_tokens = self.cached_tokens
        transcript.pending_tokens = self.pending_tokens
        transcript.has_called = self.has_called
        transcript.reproducible = self.reproducible
        stream.notes = self.notes
        if self.held:
            stream.text = stream.text or text.Text(stream.record.request.stop)
            stream.text.push(self.held)
        if self.completion_tokens:
            stream.phase = "progressed"


class Ended(_Call, frozen=True, tag="end"):
    """The stream has this terminal event. It is the last entry."""

    event: TerminalEvent

    def apply(self, stream: "Stream") -> None:
        stream.end_with(self.event)


Decision = Cancelled | Expired | Refused | Finished
"""What the server decides about a running stream."""

Call = (
    Text
    | Reasoned
    | Called
    | Accepted
    | Started
    | Cached
    | Prompted
    | Finished
    | Failed
    | Submitted
    | Elapsed
    | Cancelled
    | Expired
    | Refused
    | HandedOver
    | Snapshot
    | Ended
)

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Call)
_header_decoder = msgspec.msgpack.Decoder(Header)
_version_decoder = msgspec.msgpack.Decoder(_Version)

TEXT_TAG = "d"
encode = _encode
"""Turns an entry into bytes. The tuple `(TEXT_TAG, piece, num_tokens, token_ids)` is a `Text`."""


def apply(stream: "Stream", data: Entry) -> None:
    """Apply one entry of the stream's log. Raises ValueError if it is malformed."""
    if data == CLAIMED:
        stream.was_claimed()
    elif data == TORN:
        stream.was_torn()
        stream.was_claimed()
    else:
        _decoder.decode(data).apply(stream)
