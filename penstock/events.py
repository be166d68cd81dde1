"""The language of the whole system: what a stream's log holds.

In: nothing; these are words. Out: frozen values that every layer passes on unchanged. Not known
here: HTTP, engines, text rules. A log is any number of `Delta`s and then exactly one terminal
event, a `Finish` or a `Failure`.

They hold only plain values, so they cannot be part of a cycle: the garbage collector need not look
at them (`gc=False`), however many a server keeps.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a stream ended well: the model or a stop string ended it; a limit of tokens did; somebody
asked for it to end; the time that it was given was up."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens, counted by the engine itself, never estimated from words."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt and of the answer together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Where a stream's time went, in seconds of the server's monotonic clock.

    `queue_time`: from admission to a slot. `time_to_first_token`: from admission to the first
    delta in the log, None where none came. `total_time`: from admission to the terminal event.
    `tokens_per_second`: (tokens - 1) / (last delta - first delta), None below two tokens.
    """

    queue_time: float
    time_to_first_token: float | None
    total_time: float
    tokens_per_second: float | None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How likely a token was when it was chosen: its UTF-8 bytes, its log probability, and those
    of the likeliest tokens in its place."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class Delta(msgspec.Struct, frozen=True, gc=False):
    """Text added by one step: whole characters only, at least one of them.

    `num_tokens` counts the tokens generated since the last delta. `logprobs` is empty where they
    were not asked for.
    """

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The terminal event of a stream that ended as it should, or as it was asked to.

    `reproducible` is False where the stream was sampled with a seed and the engine died meanwhile:
    the seed alone does not give this text again.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    reproducible: bool = True


class Failure(msgspec.Struct, frozen=True, gc=False):
    """The terminal event of a stream that could not be brought to its end.

    `code` is a short stable label (see `errors`); `message` says what went wrong and what to do;
    `retry_safe` says whether the same request may simply be sent again.
    """

    code: str
    message: str
    retry_safe: bool
    usage: Usage
    timings: Timings


TerminalEvent = Finish | Failure
Event = Delta | Finish | Failure
