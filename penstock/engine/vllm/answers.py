"""Passes vLLM's outputs to a sink.

In: vLLM's outputs, one per step. Out: calls of a `Sink`. If an answer may call tools, or has its
reasoning in a form that only vLLM knows, its text goes through a `ParsingSink`. Not known here:
how vLLM gets a request, and which of its parsers finds the tool calls. Does not import vLLM.
"""

import uuid
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from penstock.engine.protocol import EngineFinish, Sink
from penstock.engine.reasoning import FilterSink
from penstock.events import PromptLogprobs, RankedToken, TokenLogprob

# OpenAI's log probability of an impossible token.
LOWEST_LOGPROB = -9999.0


async def pass_on(
    outputs: Any, sink: Sink, num_top: int = 0, text_of: Callable[[int], str] = str
) -> None:
    """Pass everything from vLLM's queue `outputs` to `sink`, until the answer ends.

    `num_top` is the number of likeliest tokens to report for each token. `text_of` decodes a token.
    Raises what vLLM raises.
    """
    num_tokens = 0
    while True:
        output = outputs.get_nowait() or await outputs.get()
        (answer,) = output.outputs
        if output.prompt_logprobs:
            ids = tuple(output.prompt_token_ids)
            sink.prompt_logprobs(prompt_logprobs_of(ids, output.prompt_logprobs, text_of))
        if answer.token_ids or answer.text:
            num_tokens += len(answer.token_ids)
            ids = tuple(answer.token_ids)
            logprobs = logprobs_of(ids, answer.logprobs, num_top) if answer.logprobs else ()
            sink.delta(answer.text, len(ids), ids, logprobs)
        if not output.finished:
            continue
        reason = answer.finish_reason
        if reason in ("stop", "length"):
            sink.finish(reason, num_tokens)
        else:
            sink.fail("engine_error", f"vLLM failed the request ({reason}).")
        return


def logprobs_of(
    token_ids: tuple[int, ...], positions: Any, num_top: int
) -> tuple[TokenLogprob, ...]:
    """Convert vLLM's log probabilities.

    vLLM reports tokens as text, so a token that is only part of a character has no right bytes.
    """
    logprobs = []
    for token_id, position in zip(token_ids, positions, strict=True):
        chosen = position[token_id]
        likeliest = sorted(position.values(), key=lambda each: each.rank)[:num_top]
        top = tuple(((each.decoded_token or "").encode(), each.logprob) for each in likeliest)
        if chosen.decoded_token:  # the token that ends the text has no text
            logprobs.append(TokenLogprob(chosen.decoded_token.encode(), chosen.logprob, top))
    return tuple(logprobs)


def prompt_logprobs_of(
    token_ids: tuple[int, ...], positions: Any, text_of: Callable[[int], str]
) -> PromptLogprobs:
    """Convert vLLM's log probabilities of a prompt; the first token has none."""

    def ranked(token_id: int, each: Any) -> RankedToken:
        logprob = max(each.logprob, LOWEST_LOGPROB)
        return RankedToken(token_id, each.decoded_token or "", logprob, each.rank)

    places: list[tuple[RankedToken, ...]] = []
    for token_id, position in zip(token_ids, positions, strict=True):
        if position is None:
            places.append((RankedToken(token_id, text_of(token_id)),))
        else:
            others = sorted(position.items(), key=lambda item: item[1].rank)
            itself = ranked(token_id, position[token_id])
            places.append((itself, *(ranked(i, each) for i, each in others if i != token_id)))
    return tuple(places)


class SecondCallError(Exception):
    """The model began a second tool call although only one is allowed.

    The answer ends here, after `completion_tokens` tokens.
    """

    def __init__(self, completion_tokens: int) -> None:
        super().__init__(completion_tokens)
        self.completion_tokens = completion_tokens


class Called(Protocol):
    """A part of a tool call from one of vLLM's parsers."""

    index: int
    id: str | None
    function: Any


class Parsed(Protocol):
    """The parts that a parser found in a piece of text (vLLM's `DeltaMessage`)."""

    reasoning: str | None
    content: str | None
    tool_calls: list[Called]


class Parse(Protocol):
    """The method `parse_delta` of one of vLLM's parsers, for one answer."""

    def __call__(self, text: str, token_ids: list[int], *, finished: bool) -> Parsed | None: ...


class ParsingSink(FilterSink):
    """A sink that finds tool calls and reasoning in vLLM's text.

    Raises SecondCallError if the model begins a second call without `parallel_calls`: not every
    parser can stop the model from doing that.
    """

    def __init__(self, sink: Sink, parse: Parse, *, parallel_calls: bool) -> None:
        super().__init__(sink)
        self._parse = parse
        self._parallel_calls = parallel_calls
        self._numbers: dict[int, int] = {}
        """vLLM's index of each call that has begun → its number in the answer."""
        self._num_tokens = 0
        self._pending: tuple[int, tuple[int, ...]] = (0, ())
        """The number and the ids of the tokens that no call of the sink has reported."""
        self.reasoning = self._reasoning

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Pass on the parts that are certain. Only text of the answer has log probabilities."""
        assert isinstance(piece, str)
        self._num_tokens += num_tokens
        self._pending = num_tokens, token_ids
        self._push(self._parse(piece, list(token_ids), finished=False), logprobs)
        if self._pending[0]:
            self._sink.delta("", *self._take_pending())

    def _reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """Pass on reasoning that a `SplitSink` has separated already."""
        self._num_tokens += num_tokens
        self._sink.reasoning(text, num_tokens, token_ids)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Pass on the text that the parser held back, then the end."""
        self._push(self._parse("", [], finished=True), ())
        self._sink.finish(reason, completion_tokens)

    def _push(self, parsed: Parsed | None, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Pass on the parts; the pending tokens count for the first part."""
        if parsed is None:
            return
        if parsed.reasoning:
            self._sink.reasoning(parsed.reasoning, *self._take_pending())
        if parsed.content:
            self._sink.delta(parsed.content, *self._take_pending(), logprobs)
        self._push_calls(parsed.tool_calls)

    def _push_calls(self, calls: Iterable[Called]) -> None:
        for call in calls:
            begins = call.index not in self._numbers
            if begins and self._numbers and not self._parallel_calls:
                raise SecondCallError(self._num_tokens)
            number = self._numbers.setdefault(call.index, len(self._numbers))
            name, arguments = "", ""
            if call.function is not None:
                name, arguments = call.function.name or "", call.function.arguments or ""
            if begins:
                call_id = call.id or f"call_{uuid.uuid4().hex}"
                self._sink.tool_call(number, call_id, name, arguments, self._take_pending()[0])
            elif arguments:
                self._sink.tool_call(number, "", "", arguments, self._take_pending()[0])

    def _take_pending(self) -> tuple[int, tuple[int, ...]]:
        pending, self._pending = self._pending, (0, ())
        return pending
