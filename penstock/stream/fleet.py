"""What a server does as one of several replicas that share a store of logs.

- It shows streams that other replicas own (`find`) and cancels them (`cancel`).
- It takes over the streams of a replica that died, or that stops: it claims a log, and then the
  stream goes on here, in front of the line (`logs_orphaned`).
- It lets go of streams that another replica has claimed, and shows them from then on
  (`log_lost`). So a client at this server sees no difference.
- When it stops, it hands its streams over (`hand_over`).

Who owns a log is decided by the store alone (see `store.protocol`).
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent, finish_reason_of
from penstock.store.protocol import LogStore, StoredLog, StoreError
from penstock.stream.copies import Copies, ReadElsewhereError
from penstock.stream.entries import FORMAT_VERSION
from penstock.stream.following import Followed, Nobody
from penstock.stream.quotas import Owner
from penstock.stream.stored import Lost, StoredStreams
from penstock.stream.stream import Stream
from penstock.stream.takeovers import Adopter, TakeOvers

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_AFTER_S = 2
# How long a client waits for the store, in seconds.
CLAIM_TIMEOUT_S = 10.0


class Host(Adopter, Protocol):
    """The streams of this server (see `registry`)."""

    draining: bool
    is_handing_over: bool

    def let_go(self, stream: Stream) -> None:
        """Forget a stream that another replica owns now, and stop its engine's work."""

    def open_streams(self) -> list[Stream]:
        """Return the streams of this server that have not ended."""


class _Told(msgspec.Struct, array_like=True, frozen=True):
    """The message with which a replica describes itself to the others.

    `models` has a line for each model whose streams the replica can continue now. Replicas of the
    same `group` stop together. `value` is for `Fleet.exchange`. `format` is that of the entries
    that the replica reads and writes.
    """

    models: str = ""
    group: str = ""
    value: bytes = b""
    format: int = 1  # the first servers do not tell it

    @classmethod
    def decode(cls, data: bytes) -> "_Told":
        """Read what a replica told; nothing if one of another version did."""
        try:
            return _decode_told(data)
        except msgspec.MsgspecError:
            return cls()


_decode_told = msgspec.msgpack.Decoder(_Told).decode


class Fleet:
    """The streams of other replicas, as this one sees them (see `store.protocol.StoreWatcher`).

    `lineages` tells what this server serves: a text for each model, by the model's name, which is
    the same at every server that can continue the model's streams. There is none while it can take
    no streams. Streams of other models are claimed after `patience` seconds, and end with an error.
    Replicas of the same `group` stop together, unless it is "". Without `outlives`, the store ends
    with them all.
    """

    def __init__(
        self,
        store: LogStore,
        stored: StoredStreams,
        lineages: Callable[[], Mapping[str, str]],
        patience: float,
        group: str = "",
        *,
        outlives: bool = True,
    ) -> None:
        self._store = store
        self._stored = stored
        self._lineages = lineages
        self._group = group
        self._outlives = outlives
        self._last_told = b""
        self._host: Host | None = None
        self._copies = Copies(store, self._is_unreadable)
        self._takeovers = TakeOvers(store, stored, self._copies, lineages, patience)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_idle = self._copies.are_none
        """Set while this server shows no stream of another replica."""
        self.num_lost = 0

    def attach(self, host: Host) -> None:
        """Adopt streams for `host` from now on."""
        self._host = host
        self._takeovers.attach(host)

    @property
    def host(self) -> Host:
        """The streams of this server."""
        assert self._host is not None
        return self._host

    @property
    def num_stored(self) -> int:
        """How many open streams of this server are stored."""
        return len(self._stored)

    @property
    def num_followed(self) -> int:
        """How many streams of other replicas this server shows."""
        return len(self._copies)

    @property
    def num_taken_over(self) -> int:
        """How many streams of other replicas this server has continued."""
        return self._takeovers.num_taken_over

    def lineage_of(self, stream: Stream) -> str:
        """Return what a server must serve to continue the stream; "" while this one cannot."""
        return self._lineages().get(stream.record.request.model, "")

    @property
    def problem(self) -> str:
        """Why the store does not answer, or ""."""
        return self._store.problem

    # The memory that it holds (see memory.Holders).

    def bytes_by_state(self) -> dict[str, int]:
        """Return the memory of other replicas' streams, and of what is stored or on its way."""
        return {"followed": self._copies.num_bytes(), "stored": self._stored.num_bytes()}

    def cut_followed(self, num_bytes: int) -> tuple[int, int]:
        """Cut readers of other replicas' streams: they can go on there (see `Copies`)."""
        return self._copies.cut_largest(num_bytes)

    def shows(self, stream_id: str) -> bool:
        """Return True if this server shows a stream of another replica."""
        return self._copies.shows(stream_id)

    # What clients ask for.

    async def find(self, stream_id: str, *, afresh: bool = False) -> Stream | None:
        """Return a stream of another replica, running or ended. Raises Problem.

        Read it at once: otherwise it is forgotten again. With `afresh`, it has everything that was
        stored before the call; without, it may be 50 ms behind.
        """
        async with _asking_the_store():
            copy = await self._copies.hold(stream_id)
            if copy is not None and afresh:
                copy = await self._caught_up(copy)
        if copy is None:
            return None
        asyncio.get_running_loop().call_soon(copy.release)
        return copy.stream

    async def confirm_owner(self, stream: Stream) -> None:
        """Let go of a stream of this server if another replica has claimed it. Raises Problem.

        Everything that happened to the stream before is stored when this returns.
        """
        async with _asking_the_store():
            await self._stored.confirm_owner(stream)

    async def _caught_up(self, copy: Followed) -> Followed | None:
        """Return a held copy that has everything which is stored now."""
        try:
            await copy.catch_up(self._store)
        finally:
            copy.release()
        return await self._copies.hold(copy.stream.id)  # it may have been forgotten meanwhile

    async def cancel(self, stream_id: str, owner: Owner) -> str | None:
        """Cancel a stream of another replica; return how it ended, or None if it is unknown.

        The claim ends whatever its owner does for it. Raises Problem.
        """
        async with _asking_the_store():
            copy = await self._copies.hold(stream_id)
            if copy is None:
                return None
            if not owner.may_see(copy.stream.record.owner):
                copy.release()
                return None
            # A task of its own: a claim must not stay halfway because the client leaves.
            cancelling = self._run(self._claim_and_cancel(copy))
            end = await asyncio.shield(cancelling)
        return finish_reason_of(end)

    async def _claim_and_cancel(self, copy: Followed) -> TerminalEvent:
        stream = copy.stream
        try:
            while True:
                if (own := self._stored.find(stream.id)) is not None:
                    own.cancel()  # claimed for this task, or by another one here
                    return await own.end()
                if copy.is_ahead:
                    raise StoreError("The store has just lost a part of the log.")
                if stream.ended is not None:
                    return stream.ended
                if not await self._takeovers.claim(copy) and not await copy.catch_up(self._store):
                    raise StoreError("The log is gone.")
        finally:
            copy.release()

    # What the store reports.

    def log_lost(self, lost: StoredLog) -> None:
        """Show a stream from now on that another replica has claimed."""
        self._takeovers.lose(lost)
        found = self._stored.lose(lost)
        if found is not None:
            self.num_lost += 1
            self._move(found)

    def _move(self, lost: Lost) -> None:
        """Show a stream that was this server's own as long as somebody reads it."""
        self.host.let_go(lost.stream)
        self._copies.show(lost)

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None:
        """Take over streams that have no owner."""
        self._takeovers.take_over(orphans)

    def _is_unreadable(self, stream_id: str) -> None:
        self._takeovers.leave_alone(stream_id, math.inf)

    def store_changed(self) -> None:
        """Log what the store's state is now."""
        if problem := self._store.problem:
            log.error("the store of logs does not answer: %s", problem)
        else:
            log.warning("the store of logs answers again")

    def logs_unreachable(self) -> None:
        """Let go of everything: nobody can say any more how these streams go on.

        Connections are cut without an end, because another replica may continue the streams.
        Requests for whole answers, which have shown nothing, get an error.
        """
        self._takeovers.lose_all()
        streams = self._stored.lose_all()
        if streams:
            log.error("the store of logs is out of reach: %d streams wait for it", len(streams))
        for stream in streams:
            self._abandon(stream)
            problem = store_unavailable()
            usage, timings = stream.usage, stream.timings_now()
            stream.end_with(
                Failure(problem.code, problem.detail, problem.retry_safe, usage, timings), problem
            )
        self._copies.cut()

    def unless_read(self, stream: Stream, then: Callable[[Stream], None]) -> None:
        """Cancel a stream that nobody reads; call `then` if somebody reads it elsewhere."""
        self._run(self._cancel_unless_read(stream, then))

    async def _cancel_unless_read(self, stream: Stream, then: Callable[[Stream], None]) -> None:
        try:
            is_read = await self._store.is_followed(stream.id)
        except StoreError:
            is_read = True  # nobody knows
        if stream.num_readers or stream.is_over or stream.id not in self._stored:
            return
        if is_read:
            then(stream)
        else:
            stream.cancel(client_gone=True)

    # What replicas tell each other.

    async def exchange(self, mine: bytes) -> Mapping[str, bytes]:
        """Exchange a value with the other replicas (see `LogStore.exchange`). Raises StoreError.

        Beside it, each replica says which streams it can continue.
        """
        self._last_told = mine
        return {replica: told.value for replica, told in (await self._tell()).items()}

    async def announce(self) -> None:
        """Tell the other replicas now what this one can continue, if the store answers."""
        with contextlib.suppress(StoreError):
            await self._tell()

    async def _tell(self) -> dict[str, _Told]:
        lineages = set() if self.host.draining else self._lineages().values()
        told = _Told("\n".join(sorted(set(lineages))), self._group, self._last_told, FORMAT_VERSION)
        mine = msgspec.msgpack.encode(told)
        found = await self._store.exchange(mine)
        return {replica: _Told.decode(data) for replica, data in found.items()}

    async def _has_heir(self) -> bool:
        """Return True if another replica can continue this one's streams, and does not stop, too.

        Replicas of other models, of other formats, and of other versions of what they tell, cannot.
        """
        try:
            others = await self._tell()
        except StoreError:
            return False
        mine = set(self._lineages().values())
        return any(
            mine <= set(told.models.split("\n"))
            and told.format == FORMAT_VERSION
            and (not told.group or told.group != self._group)
            for told in others.values()
        )

    # Stopping.

    async def hand_over(self) -> None:
        """Give all streams to the other replicas, and show them here until their readers leave.

        Also those that were not stored. Without another replica that goes on, nothing happens.
        """
        if not self._lineages() or not await self._has_heir():
            return
        self.host.is_handing_over = True
        await self._until_free()
        with self._stored.one_write():
            for stream in self.host.open_streams():
                is_new = stream.keeper is None and not stream.is_over
                if is_new and stream.can_continue:
                    self._stored.begin_late(stream, self.lineage_of(stream))
            streams = self._stored.owned()
            for stream in streams:
                self._stored.hand_over(stream)
        stored = asyncio.Event()
        self._stored.when_stored(stored.set)
        await stored.wait()
        await self._store.release()
        for stream in streams:
            if (found := self._stored.lose_stream(stream)) is not None:
                self._move(found)
        if streams:
            log.info("handed %d streams over to other replicas", len(streams))

    async def _until_free(self) -> None:
        """Wait for stored streams that no other replica could continue: all logs go at once."""
        while bound := [each for each in self._stored.owned() if not each.can_continue]:
            await bound[0].end()

    def leave(self) -> int:
        """Leave the stored streams to the next server, if there may be one; return their number.

        Readers of other replicas' streams are cut: they go on at another replica.
        """
        self._copies.cut()
        if not self._outlives:
            return 0
        streams = self._stored.lose_all()
        for stream in streams:
            self._abandon(stream)
        return len(streams)

    def _abandon(self, stream: Stream) -> None:
        """Let go of a stream whose log is out of reach, and cut its readers."""
        self.host.let_go(stream)
        stream.cut_readers()
        Nobody(stream)

    def close(self) -> None:
        """Stop everything."""
        for task in list(self._tasks):
            task.cancel()
        self._takeovers.close()
        self._copies.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@contextlib.asynccontextmanager
async def _asking_the_store() -> AsyncIterator[None]:
    """Ask the store for a client, which waits `CLAIM_TIMEOUT_S` at most. Raises Problem."""
    try:
        async with asyncio.timeout(CLAIM_TIMEOUT_S):
            yield
    except ReadElsewhereError:
        raise read_elsewhere() from None
    except (StoreError, TimeoutError):
        raise store_unavailable() from None


def read_elsewhere() -> Problem:
    """Return the problem of a stream that only servers of another version can show."""
    return store_unavailable("Servers of another version have this stream. Try again soon.")


def store_unavailable(
    detail: str = "The store of the streams' logs does not answer. Try again in a moment.",
) -> Problem:
    """Return the problem for requests that need the store while it does not answer."""
    return Problem("store_unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_S)})
