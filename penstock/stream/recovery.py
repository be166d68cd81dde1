"""Continues the streams of an engine whose process died, once the engine is back.

Each lost stream is submitted again as a continuation, or given up. How an engine restarts is not
known here.

The request that killed the engine may be among the lost ones. A stream is a *suspect* if the
engine was working on it and

- it got no token since it was last submitted, or
- the engine has died `SUSPECT_DEATHS` times while working on it.

Suspects are tried first: one at a time and alone in the engine, the youngest first, each for one
token more than twice the tokens that it got before the death (at most `MAX_TRIAL_TOKENS`). If the
engine dies during a trial, the stream on trial is to blame: it is given up if it got no token, or
at its second death alone. Then the other suspects are cleared, and their deaths are forgotten.
A stream that no trial convicts is given up when the engine has died `MAX_DEATHS` times. So whatever
progress a request makes, it ends after few deaths, and streams beside it go on.

Part of a JSON value or of a tool call cannot continue from its middle, because no engine's
grammar can. It is given up at once, and its client may send the request again.
"""

import asyncio
import collections
import logging
from collections.abc import Callable
from dataclasses import dataclass

from penstock.engine.protocol import EngineHandle
from penstock.errors import EngineUnavailable
from penstock.stream.stream import Stream
from penstock.stream.trial import Trial
from penstock.supervision import keep

log = logging.getLogger(__name__)

SUSPECT_DEATHS = 2
MAX_DEATHS_ALONE = 2
MAX_DEATHS = 6
MAX_TRIAL_TOKENS = 256
NOT_BACK = "The engine stopped and did not come back in time. Send the request again later."


@dataclass(frozen=True, eq=False)
class _Suspect:
    """A stream that will be tried for `num_tokens` tokens."""

    stream: Stream
    num_tokens: int


class Recovery:
    """The streams that one engine has lost.

    They are given up after `timeout` seconds without an engine; then `on_give_up` is called.
    `on_end` is called when the recovery is over.
    """

    def __init__(
        self,
        engine: EngineHandle,
        timeout: float,
        on_give_up: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._timeout = timeout
        self._on_give_up = on_give_up
        self._on_end = on_end
        self._suspects: list[_Suspect] = []
        self._waiting: collections.deque[Stream] = collections.deque()
        self._trial: Trial | None = None
        self._company: list[Stream] = []
        """Streams that went on in the engine after their trial, because they cannot pause."""
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Return True while the engine is away or streams wait to continue on it.

        No new stream should start before them.
        """
        return self._task is not None

    def add(self, stream: Stream) -> None:
        """Start a stream that the engine could not take any more."""
        self._waiting.append(stream)
        self._begin_anew()

    def lost(self, stream: Stream) -> None:
        """Continue a stream that the engine has just lost, or give it up."""
        num_tokens = stream.num_new_tokens
        is_tried = self._trial is not None and stream is self._trial.stream
        is_alone = is_tried and not self._company
        stream.deaths += stream.phase != "accepted"  # the engine has not begun with such a stream
        stream.deaths_alone += is_alone
        is_convicted = is_alone and (
            stream.phase != "progressed" or stream.deaths_alone >= MAX_DEATHS_ALONE
        )
        if is_convicted or stream.deaths >= MAX_DEATHS:
            self._blame(stream)
        elif not stream.can_continue:
            stream.give_up(
                "engine_died",
                "The engine stopped. An answer with a JSON schema or a tool call cannot continue"
                " from its middle. Send the request again.",
            )
        elif is_tried or _is_suspect(stream):
            self._suspects.append(_Suspect(stream, min(2 * num_tokens + 1, MAX_TRIAL_TOKENS)))
        else:
            self._waiting.append(stream)
        self._begin_anew()

    def forget(self, stream: Stream) -> None:
        """Leave out a stream that goes on elsewhere."""
        self._suspects = [each for each in self._suspects if each.stream is not stream]
        if stream in self._waiting:
            self._waiting.remove(stream)
        if self._trial is not None and self._trial.stream is stream:
            self._trial.stop()

    def begin(self) -> None:
        """Wait for the engine, and then continue its streams, if it has any."""
        if self._task is None:
            self._task = keep("recovery", self._recover)

    def stop(self) -> None:
        """Forget every stream."""
        self._suspects.clear()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def _begin_anew(self) -> None:
        """Begin when every stream that was lost together is here."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.begin()

    def _blame(self, stream: Stream) -> None:
        """Give up the stream that killed the engine, and clear the others."""
        stream.give_up(
            "engine_died",
            f"The engine stopped {max(2, stream.deaths)} times while working on this request and is"
            " restarting. The request itself may be the cause.",
            retry_safe=False,
        )
        self._waiting.extend(suspect.stream for suspect in self._suspects)
        self._suspects.clear()
        for each in self._waiting:
            each.deaths = 0

    async def _recover(self) -> None:
        self._trial = None
        self._company.clear()
        while await self._engine_is_back():
            suspect = max(self._suspects, key=_rank, default=None)
            if suspect is None and not self._waiting:
                break
            stream = self._waiting[0] if suspect is None else suspect.stream
            try:
                if suspect is not None:
                    await self._try(suspect)
                else:
                    self._continue(stream)
                    self._waiting.popleft()
            except EngineUnavailable:  # it died again before this task ran
                continue
            except Exception:  # a bug with one stream must not stop the others
                log.exception("a stream could not continue")
                self._drop(stream)
        self._task = None
        try:
            self._on_end()
        except Exception:
            log.exception("the queue could not go on after the engine's death")

    def _drop(self, stream: Stream) -> None:
        self.forget(stream)
        stream.give_up("internal_error", "The answer could not continue after the engine's death.")

    async def _engine_is_back(self) -> bool:
        """Wait for the engine; give up every stream and return False if it does not come back."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._engine.until_ready()
        except TimeoutError:
            self._give_up()
            return False
        return True

    async def _try(self, suspect: _Suspect) -> None:
        """Try a suspect, and then let it wait with the others, if it can pause."""
        stream = suspect.stream
        if stream.is_over:  # cancelled meanwhile
            self._suspects.remove(suspect)
            return
        others_wait = len(self._suspects) > 1 or bool(self._waiting)
        trial = Trial(stream, suspect.num_tokens, pauses=others_wait or suspect.num_tokens > 1)
        if trial.request.max_tokens > 0:
            self._engine.submit(trial.request, stream.sink(trial))
        else:
            stream.finish_at_limit()
        self._suspects.remove(suspect)
        self._trial = trial
        await trial.until_over()
        self._trial = None
        if trial.goes_on:
            self._company.append(stream)
        elif trial.was_survived:
            self._waiting.append(stream)

    def _continue(self, stream: Stream) -> None:
        if stream.is_over:  # cancelled meanwhile
            return
        request = stream.continuation()
        if request.max_tokens <= 0:  # the engine died between the last token and the end
            stream.finish_at_limit()
        else:
            self._engine.submit(request, stream.sink())

    def _give_up(self) -> None:
        streams = [*(suspect.stream for suspect in self._suspects), *self._waiting]
        self._suspects.clear()
        self._waiting.clear()
        for stream in streams:
            stream.give_up("engine_died", NOT_BACK)
        self._on_give_up()


def _is_suspect(stream: Stream) -> bool:
    return stream.phase in ("submitted", "running") or stream.deaths >= SUSPECT_DEATHS


def _rank(suspect: _Suspect) -> tuple[int, float]:
    """Return the rank of a suspect: the highest one is tried next."""
    return suspect.stream.deaths_alone, suspect.stream.admitted_at
