"""Holds tokens back in the engine's process, so that a fast engine streams at a reading speed.

In: the calls of a request's sink, as fast as the engine makes them. Out: the same calls in the same
order, each token no earlier than the rate allows. The server sees a slow engine: the request keeps
its slot until its last token was due. Not known here: which engine runs, messages.

A request's held tokens are bounded by its `max_tokens`, because the engine generates no more.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from penstock.engine.protocol import EngineFinish, Sink
from penstock.events import PromptLogprobs, TokenLogprob


class Pacer:
    """Paces the requests of an engine, each at `tokens_per_s`; 0 holds nothing back."""

    def __init__(self, tokens_per_s: float) -> None:
        self._rate = tokens_per_s
        self._sinks: dict[str, PacedSink] = {}

    def paced(self, request_id: str, sink: Sink) -> Sink:
        """Return the sink for the engine. It passes everything on to `sink`, in time."""
        if not self._rate:
            return sink
        paced = PacedSink(sink, 1 / self._rate, partial(self._sinks.pop, request_id, None))
        self._sinks[request_id] = paced
        return paced

    def drop(self, request_id: str) -> None:
        """Forget what is held back for a cancelled request. Ignores unknown ids."""
        if paced := self._sinks.pop(request_id, None):
            paced.drop()


class PacedSink:
    """A sink that passes calls on to `sink`, with `interval` seconds after each token.

    It calls `ended` after it has passed on `finish` or `fail`.
    """

    def __init__(self, sink: Sink, interval: float, ended: Callable[[], object]) -> None:
        self._sink = sink
        self._interval = interval
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[int, Callable[[], None]]] = deque()
        """The calls that wait: how many tokens each has, and the call."""
        self._due = self._loop.time()
        """When the next token may go, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_dropped = False
        self.accepted = sink.accepted
        self.started = sink.started
        self.working = sink.working

    def interrupted(self, *, waits: bool) -> None:
        self._hold(0, partial(self._sink.interrupted, waits=waits))

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self._hold(0, partial(self._sink.cached, num_tokens, prompt_tokens))

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self._hold(0, partial(self._sink.prompt_logprobs, logprobs))

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self._hold(num_tokens, partial(self._sink.delta, piece, num_tokens, token_ids, logprobs))

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self._hold(num_tokens, partial(self._sink.reasoning, text, num_tokens, token_ids))

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        call = partial(self._sink.tool_call, number, call_id, name, arguments, num_tokens)
        self._hold(num_tokens, call)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        self._hold(0, partial(self._end, partial(self._sink.finish, reason, completion_tokens)))

    def fail(self, code: str, message: str) -> None:
        self._hold(0, partial(self._end, partial(self._sink.fail, code, message)))

    def drop(self) -> None:
        """Pass nothing on any more."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._is_dropped = True

    def _hold(self, num_tokens: int, call: Callable[[], None]) -> None:
        if self._is_dropped:  # the engine still pushes the step that it was working on
            return
        self._held.append((num_tokens, call))
        if self._timer is None:
            self._pass_on()

    def _pass_on(self) -> None:
        """Pass on the calls that are due, and wait for the next one."""
        self._timer = None
        now = self._loop.time()
        # A token that the engine makes late does not let the tokens after it come faster.
        self._due = max(self._due, now - self._interval)
        while self._held:
            num_tokens, call = self._held[0]
            if num_tokens and self._due > now:
                self._timer = self._loop.call_at(self._due, self._pass_on)
                return
            self._held.popleft()
            self._due += num_tokens * self._interval
            call()

    def _end(self, call: Callable[[], None]) -> None:
        self._ended()
        call()
