"""The owner's side of stored streams: write before send.

In: an engine's batches, and the decisions of the server. Out: one write to the store for each
batch; when the store has it, the same batch goes to the streams, in the same order. So nothing is
shown that another replica would not show. Streams that are not stored do not wait.

The store confirms writes in their order, so everything about a stream stays in order, too: its
tokens, its end, the death of its engine.
"""

import asyncio
import collections
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from penstock.engine.protocol import Addition, Deliver, EngineFinish, LosableSink, Tell
from penstock.errors import Problem
from penstock.events import (
    Failure,
    PromptLogprobs,
    TerminalEvent,
    Timings,
    TokenLogprob,
    Usage,
)
from penstock.observe.meter import Meter
from penstock.store.protocol import Entry, LogStore, StoredLog
from penstock.stream import entries
from penstock.stream.entries import TEXT_TAG, encode
from penstock.stream.stream import Stream
from penstock.stream.trial import Trial

log = logging.getLogger(__name__)

ELAPSED_EVERY_S = 1.0
UNCONFIRMED_BYTES = 320
"""The memory of an engine's call that waits for the store, without its entry."""


class _Owned:
    """A stream and its log. `target` gets what the engine pushes: the stream, or its trial."""

    __slots__ = ("is_owned", "log", "num_entries", "stream", "target")

    def __init__(self, stream: Stream, stored: StoredLog, num_entries: int) -> None:
        self.stream = stream
        self.log = stored
        self.num_entries = num_entries
        self.target: LosableSink = stream
        self.is_owned = True


class Lost(NamedTuple):
    """A stream whose log has another owner now, and what of the log the stream has seen."""

    stream: Stream
    num_entries: int
    epoch: int


class StoredStreams:
    """The streams of this server whose logs are in `store` (see `protocol.Keeper`).

    `retain` is how long ended logs are kept, in seconds. `deliver` takes what the store has.
    """

    def __init__(self, store: LogStore, retain: float, deliver: Deliver, meter: Meter) -> None:
        self._store = store
        self._retain = retain
        self._deliver = deliver
        self._meter = meter
        self._owned: dict[str, _Owned] = {}
        self._targets: dict[str, LosableSink] = {}
        self._ending: dict[str, _Owned] = {}
        """Streams whose terminal events are on their way to the store."""
        # What the running call gathers: entries, and what to do when the store has them.
        self._entries: list[tuple[StoredLog, Entry]] = []
        self._calls: list[Any] = []
        self._is_gathering = False
        self._in_flight: collections.deque[list[tuple[StoredLog, Entry]]] = collections.deque()
        self._clock: asyncio.TimerHandle | None = None

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._owned

    def __len__(self) -> int:
        return len(self._owned)

    def owned(self) -> list[Stream]:
        """Return the streams whose logs this server owns."""
        return [each.stream for each in self._owned.values()]

    def find(self, stream_id: str) -> Stream | None:
        """Return a stream whose log this server owns."""
        owned = self._owned.get(stream_id)
        return None if owned is None else owned.stream

    def num_bytes(self) -> int:
        """Return the memory of entries, and of what waits until they are stored, in bytes."""
        num_waiting = sum([len(batch) for batch in self._in_flight])
        return self._store.num_bytes() + num_waiting * UNCONFIRMED_BYTES

    # How streams come and go.

    def begin(self, stream: Stream, model: str) -> None:
        """Begin the log of a new stream."""
        header = entries.Header(stream.record, model).encode()
        self._own(stream, self._store.open(stream.id, header), 0)

    def begin_late(self, stream: Stream, model: str) -> None:
        """Store a running stream, which was not stored until now."""
        self.begin(stream, model)
        owned = self._owned[stream.id]
        self._append(owned, entries.Snapshot.of(stream), None)
        self._append(owned, entries.Elapsed(stream.age), None)
        self.flush()

    def adopt(self, stream: Stream, stored: StoredLog, num_entries: int) -> None:
        """Own a stream that was claimed; its log has so many entries."""
        self._own(stream, stored, num_entries)

    def drop(self, stream: Stream) -> None:
        """Remove the log of a stream that has not begun."""
        owned = self._release(stream.id)
        if owned is not None:
            end = entries.Ended(_never_began())
            self._store.end(owned.log, encode(end), 0.0)

    def lose(self, stored: StoredLog) -> Lost | None:
        """Give up a log that has another owner now; None if it is not this server's any more."""
        owned = self._owned.get(stored.stream_id) or self._ending.get(stored.stream_id)
        if owned is None or owned.log is not stored:
            return None
        self._release(stored.stream_id)
        self._ending.pop(stored.stream_id, None)
        unseen = sum(each is stored for batch in self._in_flight for each, _ in batch)
        return Lost(owned.stream, owned.num_entries - unseen, stored.epoch)

    def lose_stream(self, stream: Stream) -> Lost | None:
        """Give up a stream's log, as `lose` does."""
        owned = self._owned.get(stream.id)
        return None if owned is None else self.lose(owned.log)

    def lose_all(self) -> list[Stream]:
        """Give up all logs: the store does not answer."""
        streams = [*self.owned(), *(each.stream for each in self._ending.values())]
        for stream in streams:
            self._release(stream.id)
        self._ending.clear()
        self._in_flight.clear()
        return streams

    def sink(self, stream: Stream, target: LosableSink | None = None) -> LosableSink:
        """Return what the engine must push into so that `target` gets what is stored.

        By default the target is the stream.
        """
        owned = self._owned.get(stream.id)
        if owned is None:
            return target or stream
        owned.target = target or stream
        self._targets[stream.id] = owned.target
        return _StoredSink(self, owned)

    # What engines push (see engine.protocol.Deliver).

    def deliver(self, batch: Sequence[Any], sinks: Mapping[str, LosableSink], tell: Tell) -> None:
        """Store a batch; deliver it when it is stored."""
        owned_logs = self._owned
        if not owned_logs:
            self._deliver(batch, sinks, tell)
            return
        find = owned_logs.get
        stored, calls = self._entries, self._calls
        others: list[Any] = []
        for message in batch:
            if message.__class__ is Addition:
                owned = find(message.request_id)
                if owned is not None:
                    owned.num_entries += 1
                    stored.append((owned.log, _entry_of(message)))
                    calls.append(message)
                    continue
            elif getattr(message, "request_id", "") in owned_logs:
                _tell(tell, message)  # this gathers its entry: the sink is a `_StoredSink`
                stored, calls = self._entries, self._calls  # it may also have written them
                continue
            others.append(message)
        if others:
            self._deliver(others, sinks, tell)
        self.flush()

    @contextlib.contextmanager
    def one_write(self) -> Iterator[None]:
        """Write everything that is stored in this context in one write, at its end."""
        self._is_gathering = True
        try:
            yield
        finally:
            self._is_gathering = False
            self.flush()

    def flush(self) -> None:
        """Write what was gathered, in one write; within `one_write`, later."""
        if not self._is_gathering:
            self._write()

    def _write(self) -> None:
        if not self._calls and not self._entries:
            return
        batch, self._entries = self._entries, []
        calls, self._calls = self._calls, []
        self._in_flight.append(batch)
        began = time.monotonic()
        self._store.append(batch, functools.partial(self._stored, batch, calls, began))

    def _stored(self, batch: list[Any], calls: list[Any], began: float) -> None:
        if not self._in_flight or self._in_flight.popleft() is not batch:
            log.error("the store confirmed a write out of order")
            return
        self._meter.store_ack.add(time.monotonic() - began)
        self._deliver(calls, self._targets, _call)

    def _note_elapsed(self) -> None:
        """Store now and then how old each stream is: another machine has another clock."""
        self._clock = None
        for owned in self._owned.values():
            self._append(owned, entries.Elapsed(round(owned.stream.age, 3)), None)
        self.flush()
        self._start_clock()

    def _start_clock(self) -> None:
        if self._clock is None and self._owned:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(ELAPSED_EVERY_S, self._note_elapsed)

    # The decisions of the server (see protocol.Keeper).

    def decide(self, stream: Stream, decision: entries.Decision) -> None:
        """Store a decision, and apply it to the stream then."""
        owned = self._owned.get(stream.id)
        if owned is not None:
            self._append(owned, decision, functools.partial(_apply, owned, decision, stream))
            self.flush()

    def note(self, stream: Stream, entry: entries.Submitted) -> None:
        """Store what was applied to the stream already."""
        owned = self._owned.get(stream.id)
        if owned is not None:
            self._append(owned, entry, None)
            self.flush()

    def conclude(self, stream: Stream, end: TerminalEvent, problem: Problem | None) -> None:
        """Store the terminal event, and end the stream with it then."""
        owned = self._release(stream.id)
        if owned is None:
            return
        self._write()  # the end comes after everything else
        self._ending[stream.id] = owned

        def finish() -> None:
            if self._ending.pop(stream.id, None) is not None:
                stream.end_with(end, problem)

        self._store.end(owned.log, encode(entries.Ended(end)), self._retain, finish)

    def hand_over(self, stream: Stream) -> None:
        """Store that the stream's next owner takes it over from a server that stops."""
        owned = self._owned.get(stream.id)
        if owned is not None:
            self._append(owned, entries.HandedOver(), None)

    def when_stored(self, then: Callable[[], None]) -> None:
        """Call `then` when everything that was written before is stored."""
        self._write()
        self._store.append([], then)

    async def confirm_owner(self, stream: Stream) -> None:
        """Learn whether this server still owns the stream's log, or its end. Raises StoreError.

        What it does not own is lost (see `lose`) when this returns.
        """
        owned = self._owned.get(stream.id) or self._ending.get(stream.id)
        if owned is not None:
            self._write()
            await self._store.confirm_owner(owned.log)

    # Details.

    def gather(self, owned: _Owned, entry: Any) -> None:
        """Store an engine's call with the next write, and make it then."""
        self._append(owned, entry, functools.partial(_apply, owned, entry, owned.target))

    def _append(self, owned: _Owned, entry: Any, then: Callable[[], None] | None) -> None:
        owned.num_entries += 1
        self._entries.append((owned.log, encode(entry)))
        if then is not None:
            self._calls.append(then)

    def _own(self, stream: Stream, stored: StoredLog, num_entries: int) -> None:
        self._owned[stream.id] = _Owned(stream, stored, num_entries)
        self._targets[stream.id] = stream
        stream.keeper = self
        self._start_clock()

    def _release(self, stream_id: str) -> _Owned | None:
        self._targets.pop(stream_id, None)
        owned = self._owned.pop(stream_id, None)
        if owned is not None:
            owned.is_owned = False
        return owned


class _StoredSink:
    """What an engine pushes into for a stored stream: each call is stored before it is made."""

    lane = None
    """The straight path sends nothing that is not stored (see `straight`)."""

    def __init__(self, streams: StoredStreams, owned: _Owned) -> None:
        self._streams = streams
        self._owned = owned

    def _gather(self, entry: Any) -> None:
        if self._owned.is_owned:
            self._streams.gather(self._owned, entry)

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        self._gather(entries.Accepted(prompt_ids, notes))

    def started(self) -> None:
        self._gather(entries.Started())

    def working(self, num_read: int = 0) -> None:
        self._owned.target.working(num_read)  # a status, which is no part of the log

    def interrupted(self, *, waits: bool) -> None:
        # After the tokens that came before: they would end the interruption.
        target = self._owned.target
        self._streams.when_stored(functools.partial(target.interrupted, waits=waits))

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self._gather(entries.Cached(num_tokens, prompt_tokens))

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self._gather(entries.Prompted(logprobs))

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self._gather(entries.Text(piece, num_tokens, token_ids, logprobs))

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self._gather(entries.Reasoned(text, num_tokens, token_ids))

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        self._gather(entries.Called(number, call_id, name, arguments, num_tokens))

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        target = self._owned.target
        if isinstance(target, Trial) and target.is_cut_by(reason, completion_tokens):
            # The stream goes on: this is not part of its log.
            self._streams.when_stored(functools.partial(target.finish, reason, completion_tokens))
        else:
            self._gather(entries.Finished(reason, completion_tokens))

    def fail(self, code: str, message: str) -> None:
        self._gather(entries.Failed(code, message))

    def lost(self) -> None:
        if self._owned.is_owned:
            self._streams.when_stored(self._owned.target.lost)

    def silent(self, seconds: float, limit: float) -> None:
        self._owned.target.silent(seconds, limit)


def _entry_of(message: Addition) -> Entry:
    if message.logprobs:
        return encode(
            entries.Text(message.piece, message.num_tokens, message.token_ids, message.logprobs)
        )
    return encode((TEXT_TAG, message.piece, message.num_tokens, message.token_ids))


def _apply(owned: _Owned, entry: Any, target: Any) -> None:
    if owned.is_owned:
        entry.apply(target)


def _call(then: Callable[[], None]) -> None:
    then()


def _tell(tell: Tell, message: Any) -> None:
    try:
        tell(message)
    except Exception:  # a bug with one stream must not reach the others
        log.exception("a message from the engine could not be handled")


def _never_began() -> TerminalEvent:
    message = "The request was not taken. Send it again."
    return Failure("engine_down", message, True, Usage(0, 0), Timings(0.0, None, 0.0, None))
