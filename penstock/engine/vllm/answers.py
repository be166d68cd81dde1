"""What vLLM answers, as it comes, told to a sink.

In: vLLM's outputs, one for each step. Out: calls of a `Sink`. Where an answer may call tools, or
has its reasoning in a form that vLLM alone knows, its text goes through a `ParsingSink`. Not known
here: how vLLM is asked, and which of its parsers finds the calls.
"""

import uuid
from collections.abc import Iterable
from typing import Any, Protocol

from penstock.engine.protocol import EngineFinish, Sink
from penstock.events import TokenLogprob


async def pass_on(outputs: Any, sink: Sink, num_top: int = 0) -> None:
    """Tell `sink` what vLLM puts into `outputs`, to the end. Raises what vLLM raises."""
    num_tokens = 0
    while True:
        output = outputs.get_nowait() or await outputs.get()
        (answer,) = output.outputs
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
            sink.fail("engine_error", f"vLLM gave up on the request ({reason}).")
        return


def logprobs_of(
    token_ids: tuple[int, ...], positions: Any, num_top: int
) -> tuple[TokenLogprob, ...]:
    """vLLM's log probabilities in our words. It tells tokens as text: the parts of a character
    that several tokens make up are not whole there."""
    words = []
    for token_id, position in zip(token_ids, positions, strict=True):
        chosen = position[token_id]
        likeliest = sorted(position.values(), key=lambda each: each.rank)[:num_top]
        top = tuple(((each.decoded_token or "").encode(), each.logprob) for each in likeliest)
        if chosen.decoded_token:  # the token that ends the text has none
            words.append(TokenLogprob(chosen.decoded_token.encode(), chosen.logprob, top))
    return tuple(words)


class SecondCallError(Exception):
    """The model begins a second call where there may be only one: its answer ends here, after
    `completion_tokens` tokens."""

    def __init__(self, completion_tokens: int) -> None:
        super().__init__(completion_tokens)
        self.completion_tokens = completion_tokens


class Called(Protocol):
    """A part of a call, as vLLM's parsers tell it."""

    index: int
    id: str | None
    function: Any


class Parsed(Protocol):
    """What one of vLLM's parsers makes of a piece of text (vLLM's `DeltaMessage`)."""

    reasoning: str | None
    content: str | None
    tool_calls: list[Called]


class Parse(Protocol):
    """`parse_delta` of one of vLLM's parsers, made for one answer: text and its tokens go in."""

    def __call__(self, text: str, token_ids: list[int], *, finished: bool) -> Parsed | None: ...


class ParsingSink:
    """Between vLLM's outputs and the request's sink: finds calls, and reasoning, in the text.

    Tokens of which nothing can be told yet are told without text, as those of half a character are.
    Raises SecondCallError where there may be no `parallel_calls` and the model goes on to another:
    not every parser can bind it to one.
    """

    def __init__(self, sink: Sink, parse: Parse, *, parallel_calls: bool) -> None:
        self._sink = sink
        self._parse = parse
        self._parallel_calls = parallel_calls
        self._numbers: dict[int, int] = {}
        """vLLM's indices of the calls that have begun → ours."""
        self._num_tokens = 0
        self._untold: tuple[int, tuple[int, ...]] = (0, ())
        self.accepted = sink.accepted
        self.started = sink.started
        self.working = sink.working
        self.tool_call = sink.tool_call
        self.fail = sink.fail

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Tell what is certain. The log probabilities are the answer's."""
        assert isinstance(piece, str)
        self._num_tokens += num_tokens
        self._untold = num_tokens, token_ids
        self._tell(self._parse(piece, list(token_ids), finished=False), logprobs)
        if self._untold[0]:
            self._sink.delta("", *self._take_untold())

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """What was told apart already."""
        self._num_tokens += num_tokens
        self._sink.reasoning(text, num_tokens, token_ids)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Tell what the parser held back, and the end."""
        self._tell(self._parse("", [], finished=True), ())
        self._sink.finish(reason, completion_tokens)

    def _tell(self, parsed: Parsed | None, logprobs: tuple[TokenLogprob, ...]) -> None:
        """The tokens go with the first of what there is."""
        if parsed is None:
            return
        if parsed.reasoning:
            self._sink.reasoning(parsed.reasoning, *self._take_untold())
        if parsed.content:
            self._sink.delta(parsed.content, *self._take_untold(), logprobs)
        self._tell_calls(parsed.tool_calls)

    def _tell_calls(self, calls: Iterable[Called]) -> None:
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
                self._sink.tool_call(number, call_id, name, arguments, self._take_untold()[0])
            elif arguments:
                self._sink.tool_call(number, "", "", arguments, self._take_untold()[0])

    def _take_untold(self) -> tuple[int, tuple[int, ...]]:
        untold, self._untold = self._untold, (0, ())
        return untold
