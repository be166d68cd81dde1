"""The events of a stream's log, as frozen plain values.

A log holds any number of `Delta`s (some of them `Reasoning` or `ToolCall`s), then exactly one
terminal event: a `Finish` or a `Failure`. Every layer passes these values on unchanged.

The events hold only plain values, so they cannot be part of a reference cycle. `gc=False` tells
the garbage collector to skip them, however many a server keeps.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a stream finished: "stop" (the model or a stop string ended it), "length" (the token limit
or the context was reached), "cancelled" (a client asked), "deadline" (its time was up)."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts, taken from the engine and never estimated.

    `cached_tokens` is how many of the prompt's tokens the engine had in its cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Return the tokens of the prompt and the answer together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(msgspec.Struct, frozen=True, gc=False):
    """The times of a stream, in seconds.

    All times count from the stream's admission: `queue_time` to its slot, `time_to_first_token` to
    the first delta in the log (None if there was no delta), `total_time` to the terminal event.
    `tokens_per_second` is (tokens - 1) / (last delta - first delta), None below two tokens.
    """

    queue_time: float
    time_to_first_token: float | None
    total_time: float
    tokens_per_second: float | None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The log probability of a generated token.

    `token` is its UTF-8 bytes. `top` holds the likeliest tokens at its position, each with its log
    probability.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class RankedToken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token that is possible at a place of the prompt.

    `rank` counts from 1, the likeliest. The first token of a prompt has no `logprob`.
    """

    id: int
    text: str
    logprob: float | None = None
    rank: int = 0


PromptLogprobs = tuple[tuple[RankedToken, ...], ...]
"""For each token of a prompt: the token itself, then the likeliest tokens at its place."""


class _WithIds(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    token_ids: tuple[int, ...] = ()


class Delta(_WithIds, frozen=True, gc=False, tag="delta"):
    """Text that one step added to the answer: whole characters, at least one.

    `num_tokens` counts the tokens generated since the last delta. `logprobs` is empty unless the
    request asked for log probabilities. `token_ids` is empty unless the request asked for ids; it
    has fewer ids than tokens if the engine did not name them all.
    """

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Reasoning(Delta, frozen=True, gc=False, tag="reasoning"):
    """Text of the model's reasoning, which is not part of the answer."""


class ToolCall(Delta, frozen=True, gc=False, tag="tool-call"):
    """Part of a tool call: its text is appended to the call's arguments, and may be empty.

    `number` counts the answer's calls from 0. Only the first part of a call has its `id` and the
    tool's `name`.
    """

    number: int = 0
    id: str = ""
    name: str = ""


class Finish(msgspec.Struct, frozen=True, gc=False, tag="finish"):
    """The terminal event of a stream that finished or was ended on purpose.

    `stop_string` is the stop string that ended the answer, if one did. `late_notes` is what the
    engine changed in the request, if that was known only after the response had begun.

    `reproducible` is False if the stream was sampled with a seed and the engine died meanwhile:
    the seed alone does not give this text again. `token_ids` are the ids of the last tokens, which
    have no text, if the request asked for ids.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    reproducible: bool = True
    token_ids: tuple[int, ...] = ()
    stop_string: str | None = None
    late_notes: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, gc=False, tag="failure"):
    """The terminal event of a stream that failed.

    `code` is an error code (see `errors.PROBLEMS`). `message` says what went wrong and what to do.
    `retry_safe` says whether the client may send the same request again.
    """

    code: str
    message: str
    retry_safe: bool
    usage: Usage
    timings: Timings


def num_reasoning_tokens(events: Iterable["Event"]) -> int:
    """Return the tokens of the model's reasoning; a mark counts with the text after it."""
    return sum(event.num_tokens for event in events if isinstance(event, Reasoning))


TerminalEvent = Finish | Failure
Event = Delta | Finish | Failure


def finish_reason_of(event: TerminalEvent) -> str:
    """Return the finish reason that clients see: the event's own, or "error" for a failure."""
    return "error" if isinstance(event, Failure) else event.reason
