"""Claims the logs of streams, in groups, and continues the streams here.

In: orphans, which the store reports, and streams that a client cancels here. Out: streams that this
server owns from then on. One task makes all claims, one group after the other, so no stream is
claimed twice at once. Streams that clients read here go first.

Who owns a log is decided by the store alone (see `store.protocol`).
"""

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from penstock import supervision
from penstock.store.protocol import MAX_GROUP, Entry, LogStore, StoredLog, StoreError
from penstock.stream.copies import Copies
from penstock.stream.entries import Header
from penstock.stream.following import Followed
from penstock.stream.recovery import MAX_DEATHS
from penstock.stream.stored import StoredStreams
from penstock.stream.stream import Stream

log = logging.getLogger(__name__)

RETRY_S = 0.2
MAX_LOST_BEFORE_TOKEN = 2
MAX_LOST_EARLY = 6
MAX_LEFT_ALONE = 100_000


class Adopter(Protocol):
    """The streams of this server (see `registry`)."""

    @property
    def may_adopt(self) -> bool:
        """Return True unless this server gives its streams away or ends them."""

    def adopt(self, stream: Stream) -> None:
        """Take in a stream whose log this server owns now."""

    def go_on(self, stream: Stream) -> None:
        """Continue an adopted stream, in front of the line."""


class TakeOvers:
    """The claims of this server. `lineages` and `patience` are those of `fleet.Fleet`."""

    def __init__(
        self,
        store: LogStore,
        stored: StoredStreams,
        copies: Copies,
        lineages: Callable[[], Mapping[str, str]],
        patience: float,
    ) -> None:
        self._store = store
        self._stored = stored
        self._copies = copies
        self._lineages = lineages
        self._patience = patience
        self._host: Adopter | None = None
        self._wanted: dict[str, int] = {}
        """The logs to claim, with their epochs."""
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        """Those whose end somebody waits for (`claim`)."""
        self._claimed: dict[str, StoredLog] = {}
        """Logs that were claimed, and whose streams are not adopted yet."""
        self._task: asyncio.Task[None] | None = None
        self._left_until: dict[str, float] = {}
        """Until when to leave streams alone that have no owner, and that another replica must
        continue."""
        self._has_told = False
        self.num_taken_over = 0

    def attach(self, host: Adopter) -> None:
        """Adopt streams for `host` from now on."""
        self._host = host

    @property
    def host(self) -> Adopter:
        """The streams of this server."""
        assert self._host is not None
        return self._host

    def take_over(self, orphans: Sequence[tuple[str, int]]) -> None:
        """Claim and continue streams that have no owner."""
        if not self._can_continue:
            return
        now = time.monotonic()
        new = [
            (stream_id, epoch)
            for stream_id, epoch in orphans
            if stream_id not in self._wanted
            and stream_id not in self._stored
            and now >= self._left_until.get(stream_id, 0.0)
        ]
        random.shuffle(new)  # so that two replicas do not claim the same logs in the same order
        self._want(new)

    async def claim(self, copy: Followed) -> bool:
        """Own a stream that this server shows, without continuing it.

        Returns False if another replica was quicker. Raises StoreError.
        """
        stream_id = copy.stream.id
        waiting = self._waiting.get(stream_id)
        if waiting is None:
            waiting = self._waiting[stream_id] = asyncio.get_running_loop().create_future()
            self._want([(stream_id, copy.epoch)])
        return await asyncio.shield(waiting)

    def leave_alone(self, stream_id: str, seconds: float) -> None:
        """Do not claim a stream for so long."""
        if len(self._left_until) > MAX_LEFT_ALONE:
            self._left_until.clear()
        self._left_until[stream_id] = time.monotonic() + seconds

    def close(self) -> None:
        """Claim nothing any more."""
        if self._task is not None:
            self._task.cancel()

    @property
    def _can_continue(self) -> bool:
        return self.host.may_adopt and bool(self._lineages())

    # In groups.

    def _want(self, logs: Sequence[tuple[str, int]]) -> None:
        self._wanted |= dict(logs)
        if self._wanted and self._task is None:
            self._task = supervision.keep("takeovers", self._take_groups)

    async def _take_groups(self) -> None:
        while group := self._next_group():
            failure = None
            try:
                await self._take(group)
            except StoreError as error:
                failure = error
                log.warning("%d streams could not be taken over now: %s", len(group), error)
            finally:
                for stream_id in group:
                    self._settle(stream_id, failure)
        self._task = None

    def _next_group(self) -> dict[str, int]:
        """Return logs to claim together: those that clients read here go first."""
        read_here = [each for each in self._copies.read_here() if each in self._wanted]
        ids = itertools.chain(self._waiting, read_here[:MAX_GROUP], self._wanted)
        group: dict[str, int] = {}
        for stream_id in ids:
            group[stream_id] = self._wanted[stream_id]
            if len(group) == MAX_GROUP:
                break
        return group

    def _settle(self, stream_id: str, failure: StoreError | None) -> None:
        """A claim is over. If it has failed, the store reports the orphan again."""
        self._wanted.pop(stream_id, None)
        waiting = self._waiting.pop(stream_id, None)
        if waiting is None:
            return
        if failure is None:
            waiting.set_result(stream_id in self._stored)
        else:
            waiting.set_exception(failure)
            waiting.exception()  # it may be that nobody waits for it any more

    async def _take(self, group: dict[str, int]) -> None:
        """Claim a group of logs, read them then, and continue their streams. Raises StoreError."""
        headers = await self._store.headers(list(group))
        free = [
            (stream_id, epoch)
            for (stream_id, epoch), header in zip(group.items(), headers, strict=True)
            if header is not None and self._may_claim(stream_id, header)
        ]
        claimed = await self._store.claim(free) if free else ()
        self._claimed = {log.stream_id: log for log in claimed if log is not None}
        copies = await self._read_claimed()
        try:
            for copy in copies:
                if (owned := self._claimed.pop(copy.stream.id, None)) is not None:
                    self._adopt(copy, owned)
                # That an engine works on a stream must be on its way to the store before the engine
                # can die of it. So each stream has a turn of the event loop, which sends both.
                await asyncio.sleep(0)
        finally:
            for copy in copies:
                copy.release()

    async def _read_claimed(self) -> list[Followed]:
        """Return copies that have all entries of the claimed logs.

        However long it takes: until then, these streams are nobody's.
        """
        copies: list[Followed] = []
        missing = list(self._claimed)
        while missing:
            held = await self._hold(missing)
            missing = []
            for copy in held:
                owned = self._claimed.get(copy.stream.id)
                if owned is None or await copy.until_epoch(owned.epoch):
                    copies.append(copy)
                else:  # it showed more than the store had kept
                    missing.append(copy.stream.id)
                    self._copies.drop(copy)
                    copy.release()
        return copies

    async def _hold(self, stream_ids: Sequence[str]) -> list[Followed]:
        while True:
            try:
                held = await self._copies.hold_all(stream_ids)
            except StoreError as error:
                log.warning("%d claimed streams cannot be read now: %s", len(stream_ids), error)
                await asyncio.sleep(RETRY_S)
            else:
                return [copy for copy in held if copy is not None]

    def lose(self, lost: StoredLog) -> None:
        """Note that another replica has claimed a log; it may be one that this server just did."""
        if self._claimed.get(lost.stream_id) is lost:
            del self._claimed[lost.stream_id]

    def lose_all(self) -> None:
        """Note that this server owns no log any more."""
        self._claimed.clear()

    def _may_claim(self, stream_id: str, data: Entry) -> bool:
        if stream_id in self._stored:
            return False
        if stream_id in self._waiting:
            return True
        try:
            header = Header.decode(data)
        except ValueError as error:
            log.error("the log of a stream cannot be read: %s", error)
            self.leave_alone(stream_id, math.inf)
            return False
        is_other = header.model not in self._lineages().values()
        return self._can_continue and not (is_other and self._leaves_alone(stream_id))

    def _adopt(self, copy: Followed, owned: StoredLog) -> None:
        """Own a stream, and continue it unless somebody waits to decide about it."""
        stream = copy.stream
        self._copies.drop(copy)
        self._stored.adopt(stream, owned, copy.num_entries)
        if copy.end is not None:
            self._stored.conclude(stream, *copy.end)
        try:
            if stream.id in self._waiting:
                self.host.adopt(stream)
                return
            self.num_taken_over += 1
            num_tokens = stream.usage.completion_tokens
            fields = {"stream_id": stream.id, "completion_tokens": num_tokens}
            log.info("took over a stream", extra={"fields": fields})
            self._continue(stream, is_other=copy.model not in self._lineages().values())
        except Exception:  # a bug with one stream must not stop the others of its group
            log.exception("a stream could not be continued")

    def _continue(self, stream: Stream, *, is_other: bool) -> None:
        """Continue a stream that is this server's now, or end it."""
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
            stream.lost_before_token >= MAX_LOST_BEFORE_TOKEN
            or stream.lost_early >= MAX_LOST_EARLY
            or stream.deaths >= MAX_DEATHS
        ):
            num_lost = max(stream.lost_early, stream.deaths)
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
        self.leave_alone(stream_id, self._patience)
        return True
