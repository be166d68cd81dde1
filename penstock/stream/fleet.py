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
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent, finish_reason_of
from penstock.store.protocol import LogStore, StoredLog, StoreError
from penstock.stream.following import Followed, Nobody
from penstock.stream.quotas import Owner
from penstock.stream.recovery import MAX_DEATHS
from penstock.stream.stored import StoredStreams
from penstock.stream.stream import Stream

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_CLAIMS_AT_ONCE = 64
RETRY_AFTER_S = 2
# How long a client waits for the store, in seconds.
CLAIM_TIMEOUT_S = 10.0
MAX_LIVES = 2
MAX_LEFT_ALONE = 100_000
MAX_SHORT_LIVES = 6


class Host(Protocol):
    """The streams of this server (see `registry`)."""

    draining: bool
    is_handing_over: bool

    def adopt(self, stream: Stream) -> None:
        """Take in a stream whose log this server owns now."""

    def go_on(self, stream: Stream) -> None:
        """Continue an adopted stream, in front of the line."""

    def let_go(self, stream: Stream) -> None:
        """Forget a stream that another replica owns now, and stop its engine's work."""

    def open_streams(self) -> list[Stream]:
        """Return the streams of this server that have not ended."""


class Fleet:
    """The streams of other replicas, as this one sees them (see `store.protocol.StoreWatcher`).

    `model` tells which model this server serves, or "" while it can take no streams. Streams of
    other models are claimed after `patience` seconds, and end with an error. `num_siblings` of the
    other replicas stop whenever this one does. Without `outlives`, the store ends with them all.
    """

    def __init__(
        self,
        store: LogStore,
        stored: StoredStreams,
        model: Callable[[], str],
        patience: float,
        num_siblings: int = 0,
        *,
        outlives: bool = True,
    ) -> None:
        self._store = store
        self._stored = stored
        self._model = model
        self._patience = patience
        self._num_siblings = num_siblings
        self._outlives = outlives
        self._host: Host | None = None
        self._followed: dict[str, Followed] = {}
        self._opening: dict[str, asyncio.Future[Followed | None]] = {}
        self._claiming: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._claims = asyncio.Semaphore(MAX_CLAIMS_AT_ONCE)
        self._left_until: dict[str, float] = {}
        """Until when to leave streams alone that have no owner, and that another replica must
        continue."""
        self._has_told = False
        self.is_idle = asyncio.Event()
        """Set while this server shows no stream of another replica."""
        self.is_idle.set()
        self.num_taken_over = 0
        self.num_lost = 0

    def attach(self, host: Host) -> None:
        """Adopt streams for `host` from now on."""
        self._host = host

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
        return len(self._followed)

    @property
    def model(self) -> str:
        """The model that this server serves, or "" while it can take no streams."""
        return self._model()

    @property
    def problem(self) -> str:
        """Why the store does not answer, or ""."""
        return self._store.problem

    # What clients ask for.

    async def find(self, stream_id: str, *, afresh: bool = False) -> Stream | None:
        """Return a stream of another replica, running or ended. Raises Problem.

        Read it at once: otherwise it is forgotten again. With `afresh`, it has everything that was
        stored before the call; without, it may be 50 ms behind.
        """
        try:
            followed = await self._follow(stream_id)
            if followed is not None and afresh:
                async with asyncio.timeout(CLAIM_TIMEOUT_S):
                    await followed.catch_up(self._store)
                followed = await self._follow(stream_id)  # it may have been forgotten meanwhile
        except (StoreError, TimeoutError):
            raise store_unavailable() from None
        if followed is None:
            return None
        asyncio.get_running_loop().call_soon(self._drop_if_idle, followed)
        return followed.stream

    async def cancel(self, stream_id: str, owner: Owner) -> str | None:
        """Cancel a stream of another replica; return how it ended, or None if it is unknown.

        The claim ends whatever its owner does for it. Raises Problem.
        """
        try:
            followed = await self._follow(stream_id)
            if followed is None:
                return None
            if not owner.may_see(followed.stream.record.owner):
                self._drop_if_idle(followed)
                return None
            # A task of its own: a claim must not stay halfway because the client leaves.
            cancelling = self._run(self._claim_and_cancel(followed))
            with followed.held():
                async with asyncio.timeout(CLAIM_TIMEOUT_S):
                    return finish_reason_of(await asyncio.shield(cancelling))
        except (StoreError, TimeoutError):
            raise store_unavailable() from None

    async def _claim_and_cancel(self, followed: Followed) -> TerminalEvent:
        stream = followed.stream
        with followed.held():
            while stream.ended is None:
                if stream.id in self._stored:  # claimed by this task, or by another one here
                    stream.cancel()
                    await stream.end()
                elif await self._claim(followed, followed.epoch):
                    self.host.adopt(stream)
                elif not await followed.catch_up(self._store):
                    raise StoreError("The log is gone.")
            return stream.ended

    # What the store reports.

    def log_lost(self, lost: StoredLog) -> None:
        """Show a stream from now on that another replica has claimed."""
        found = self._stored.lose(lost)
        if found is not None:
            self.num_lost += 1
            self._move(*found)

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None:
        """Take over streams that have no owner."""
        if self.host.draining or not self._model():
            return
        new = [
            (stream_id, epoch)
            for stream_id, epoch in orphans
            if stream_id not in self._claiming
            and stream_id not in self._stored
            and time.monotonic() >= self._left_until.get(stream_id, 0.0)
        ]
        for stream_id, epoch in new:
            self._claiming.add(stream_id)
            self._run(self._take_over(stream_id, epoch))

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
        for followed in list(self._followed.values()):
            followed.stream.cut_readers()

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

    # Stopping.

    async def hand_over(self) -> None:
        """Give all streams to the other replicas, and show them here until their readers leave.

        Also those that were not stored. Without another replica that goes on, nothing happens.
        """
        model = self._model()
        if self._store.num_others <= self._num_siblings or not model:
            return
        self.host.is_handing_over = True
        await self._until_free()
        for stream in self.host.open_streams():
            is_new = stream.keeper is None and not stream.is_over
            if is_new and stream.can_continue:
                self._stored.begin_late(stream, model)
        streams = self._stored.owned()
        for stream in streams:
            self._stored.hand_over(stream)
        stored = asyncio.Event()
        self._stored.when_stored(stored.set)
        await stored.wait()
        await self._store.release()
        for stream in streams:
            if (found := self._stored.lose_stream(stream)) is not None:
                self._move(*found)
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
        for followed in list(self._followed.values()):
            followed.stream.cut_readers()
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
        for followed in list(self._followed.values()):
            followed.stream.cut_readers()
            followed.close()

    # Following.

    async def _follow(self, stream_id: str) -> Followed | None:
        """Return the followed stream; follow its log if that is new."""
        while (followed := self._followed.get(stream_id)) is None:
            opening = self._opening.get(stream_id)
            if opening is None:
                return await self._open(stream_id)
            if await asyncio.shield(opening) is None:
                return None
        return followed

    async def _open(self, stream_id: str) -> Followed | None:
        opening = self._opening[stream_id] = asyncio.get_running_loop().create_future()
        try:
            followed = await self._begin(Followed(self._drop_if_idle, None), stream_id)
        except BaseException as error:
            if isinstance(error, Exception):
                opening.set_exception(error)
                opening.exception()  # it may be that nobody else waits for it
            else:
                opening.cancel()
            raise
        else:
            opening.set_result(followed)
            return followed
        finally:
            del self._opening[stream_id]

    async def _begin(self, followed: Followed, stream_id: str) -> Followed | None:
        try:
            if not await followed.begin(self._store, stream_id):
                return None
        except ValueError as error:
            log.error("the log of a stream cannot be read: %s", error)
            self._leave_alone(stream_id, math.inf)
            followed.close()
            return None
        self._followed[stream_id] = followed
        self.is_idle.clear()
        return followed

    def _drop_if_idle(self, followed: Followed) -> None:
        if followed.is_idle:
            self._drop(followed)

    def _drop(self, followed: Followed) -> None:
        followed.close()
        if self._followed.get(followed.stream.id) is followed:
            del self._followed[followed.stream.id]
        if not self._followed:
            self.is_idle.set()

    def _move(self, stream: Stream, num_seen: int) -> None:
        """Show a stream that was this server's own as long as somebody reads it."""
        self.host.let_go(stream)
        followed = Followed(self._drop_if_idle, stream, num_seen)
        if not followed.is_idle:
            self.is_idle.clear()
            self._run(self._show_on(followed))

    async def _show_on(self, followed: Followed) -> None:
        stream = followed.stream
        try:
            if await self._begin(followed, stream.id) is None:
                stream.cut_readers()
        except StoreError:
            stream.cut_readers()
        finally:
            if not self._followed:
                self.is_idle.set()

    # Taking over.

    async def _take_over(self, stream_id: str, epoch: int) -> None:
        try:
            async with self._claims:
                followed = await self._follow(stream_id)
                if followed is not None:
                    with followed.held():
                        await self._claim_and_continue(followed, epoch)
        except StoreError as error:
            log.warning("a stream could not be taken over now: %s", error)
        finally:
            self._claiming.discard(stream_id)

    async def _claim_and_continue(self, followed: Followed, epoch: int) -> None:
        stream = followed.stream
        is_other = followed.model != self._model()
        if stream.ended is not None or (is_other and self._leaves_alone(stream.id)):
            return
        if await self._claim(followed, epoch):
            self.num_taken_over += 1
            num_tokens = stream.usage.completion_tokens
            fields = {"stream_id": stream.id, "completion_tokens": num_tokens}
            log.info("took over a stream", extra={"fields": fields})
            self._continue(followed, is_other=is_other)

    async def _claim(self, followed: Followed, epoch: int) -> bool:
        """Become the owner of a followed stream; return False if another replica was quicker."""
        stream = followed.stream
        claimed = await self._store.claim(stream.id, epoch)
        if claimed is None:
            return False
        # However long it takes: until then, this stream is nobody's.
        await followed.until_epoch(claimed.epoch)
        self._drop(followed)
        self._stored.adopt(stream, claimed, followed.num_entries)
        if followed.end is not None:
            self._stored.conclude(stream, *followed.end)
        return True

    def _continue(self, followed: Followed, *, is_other: bool) -> None:
        """Continue a stream that is this server's now, or end it."""
        stream = followed.stream
        self.host.adopt(stream)
        if stream.is_over:
            return
        if is_other:
            stream.give_up(
                "replica_lost",
                "The server that ran this stream is gone, and no other serves its model. Send the"
                " request again.",
            )
        elif (
            stream.lives >= MAX_LIVES
            or stream.short_lives >= MAX_SHORT_LIVES
            or stream.deaths >= MAX_DEATHS
        ):
            num_lost = max(stream.short_lives, stream.deaths)
            stream.give_up(
                "replica_lost",
                f"{num_lost} servers were lost while they worked on this request. The request"
                " itself may be the cause.",
                retry_safe=False,
            )
        elif not stream.can_continue:
            stream.give_up(
                "replica_lost",
                "The server that ran this stream is gone. An answer with a JSON schema or a tool"
                " call cannot continue from its middle. Send the request again.",
            )
        else:
            self.host.go_on(stream)

    def _leaves_alone(self, stream_id: str) -> bool:
        """Return True if another replica may still come that can continue the stream."""
        if stream_id in self._left_until:
            return False  # they had their time
        if not self._has_told:
            self._has_told = True
            log.warning(
                "streams of another model wait in the store; without a server for it, they end with"
                " an error in %g s",
                self._patience,
            )
        self._leave_alone(stream_id, self._patience)
        return True

    def _leave_alone(self, stream_id: str, seconds: float) -> None:
        if len(self._left_until) > MAX_LEFT_ALONE:
            self._left_until.clear()
        self._left_until[stream_id] = time.monotonic() + seconds

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def store_unavailable() -> Problem:
    """Return the problem for requests that need the store while it does not answer."""
    return Problem(
        "store_unavailable",
        "The store of the streams' logs does not answer. Try again in a moment.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
