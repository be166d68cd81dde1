"""The streams of other replicas that this server shows: its copies of them (see `following`).

In: ids of streams. Out: copies, each read from the store once for all who ask for it. Logs are read
in groups: while one group is on its way, the next one gathers. So a thousand clients that ask at
once, because their server has died, cost the store a few reads. Not known here: who owns a stream.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from penstock import supervision
from penstock.store.protocol import MAX_GROUP, Following, LogStore, StoreError
from penstock.stream.entries import OtherFormatError
from penstock.stream.following import Followed
from penstock.stream.stored import Lost

log = logging.getLogger(__name__)


class _Opening:
    """A copy whose log is being read, and the future for the end of that."""

    def __init__(self, copy: Followed) -> None:
        self.copy = copy
        self.is_there: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class ReadElsewhereError(StoreError):
    """The log is of a format that only servers of another version can read."""


class Copies:
    """All copies of this server. `on_unreadable` gets the ids of logs that it cannot read."""

    def __init__(self, store: LogStore, on_unreadable: Callable[[str], None]) -> None:
        self._store = store
        self._on_unreadable = on_unreadable
        self._shown: dict[str, Followed] = {}
        self._opening: dict[str, _Opening] = {}
        self._gathering: list[tuple[str, _Opening]] = []
        self._task: asyncio.Task[None] | None = None
        self.are_none = asyncio.Event()
        """Set while this server shows no stream of another replica."""
        self.are_none.set()

    def __len__(self) -> int:
        return len(self._shown)

    def read_here(self) -> list[str]:
        """Return the ids of the streams that clients read here."""
        return [stream_id for stream_id, copy in self._shown.items() if copy.stream.num_readers]

    async def hold(self, stream_id: str) -> Followed | None:
        """Return a copy, which stays until you `release` it; None if the stream is unknown.

        Raises ReadElsewhereError, or another StoreError.
        """
        (copy,) = await self.hold_all([stream_id])
        return copy

    async def hold_all(self, stream_ids: Sequence[str]) -> list[Followed | None]:
        """Return copies of several streams, as `hold` does."""
        held = [self._find(stream_id) for stream_id in stream_ids]
        for copy, _ in held:
            copy.hold()
        try:
            return [
                copy if is_there is None or await asyncio.shield(is_there) else None
                for copy, is_there in held
            ]
        except BaseException:
            for copy, _ in held:
                copy.release()
            raise

    def _find(self, stream_id: str) -> tuple[Followed, asyncio.Future[bool] | None]:
        if (copy := self._shown.get(stream_id)) is not None:
            return copy, None
        opening = self._opening.get(stream_id) or self._open(
            stream_id, Followed(self._drop_if_idle)
        )
        return opening.copy, opening.is_there

    def show(self, lost: Lost) -> None:
        """Show a stream that was this server's own, as long as somebody reads it."""
        copy = Followed(self._drop_if_idle, lost)
        if not copy.is_idle:
            self._open(lost.stream.id, copy)

    def drop(self, copy: Followed) -> None:
        """Follow a stream no more."""
        copy.close()
        if self._shown.get(copy.stream.id) is copy:
            del self._shown[copy.stream.id]
        self._note_number()

    def shows(self, stream_id: str) -> bool:
        """Return True if there is a copy of the stream, or one is being read."""
        return stream_id in self._shown or stream_id in self._opening

    def num_bytes(self) -> int:
        """Return the memory of all copies, in bytes."""
        return sum([copy.num_bytes() for copy in self._shown.values()])

    def cut_largest(self, num_bytes: int) -> tuple[int, int]:
        """Cut the readers of the largest copies, until these held so much memory together.

        Returns how many copies that were, and their memory in bytes.
        """
        sizes = [(copy.num_bytes(), copy) for copy in self._shown.values()]
        num = freed = 0
        for size, copy in sorted(sizes, key=lambda each: -each[0]):
            if freed >= num_bytes:
                break
            copy.cut()
            num += 1
            freed += size
        return num, freed

    def cut(self) -> None:
        """Cut all readers of copies: they go on at another replica."""
        for copy in [*self._shown.values(), *(each.copy for each in self._opening.values())]:
            copy.cut()

    def close(self) -> None:
        """Cut all readers, and follow nothing any more."""
        if self._task is not None:
            self._task.cancel()
        self.cut()
        for copy in list(self._shown.values()):
            copy.close()

    def _drop_if_idle(self, copy: Followed) -> None:
        if copy.is_begun and (copy.is_idle or copy.is_ahead):
            self.drop(copy)

    def _note_number(self) -> None:
        if self._shown or self._opening:
            self.are_none.clear()
        else:
            self.are_none.set()

    # Reading in groups.

    def _open(self, stream_id: str, copy: Followed) -> _Opening:
        opening = self._opening[stream_id] = _Opening(copy)
        self._gathering.append((stream_id, opening))
        self._note_number()
        if self._task is None:
            self._task = supervision.keep("copies of streams", self._read_groups)
        return opening

    async def _read_groups(self) -> None:
        await asyncio.sleep(0)  # whoever asks in this turn of the loop comes along
        while self._gathering:
            group, self._gathering = self._gathering[:MAX_GROUP], self._gathering[MAX_GROUP:]
            wanted = [opening.copy.wanted(stream_id) for stream_id, opening in group]
            try:
                found: Sequence[Following | StoreError | None] = await self._store.follow(wanted)
            except StoreError as error:
                found = [error] * len(group)
            for (stream_id, opening), following in zip(group, found, strict=True):
                self._settle(stream_id, opening, following)
        self._task = None

    def _settle(
        self, stream_id: str, opening: _Opening, following: Following | StoreError | None
    ) -> None:
        """Show a copy whose log was read, or give it up."""
        if self._opening.get(stream_id) is opening:
            del self._opening[stream_id]
        copy, is_there = opening.copy, opening.is_there
        if copy.is_ahead:
            following = StoreError("The store has just lost a part of the log.")
        try:
            is_there.set_result(self._is_begun(stream_id, copy, following))
        except StoreError as error:
            is_there.set_exception(error)
            is_there.exception()  # it may be that nobody waits for it
        if copy.is_begun:
            self._shown[stream_id] = copy
            self._drop_if_idle(copy)
        else:
            copy.close()
            copy.cut()
        self._note_number()

    def _is_begun(
        self, stream_id: str, copy: Followed, following: Following | StoreError | None
    ) -> bool:
        """Begin a copy, and return True if this server can show it. Raises StoreError."""
        if isinstance(following, StoreError):
            raise following
        if following is None:
            return False
        try:
            copy.begin(following)
        except Exception as error:  # one log must not stop the others of its group
            is_known = isinstance(error, ValueError)
            log.error(
                "the log of a stream cannot be read: %s",
                error,
                exc_info=None if is_known else error,
            )
            following.close()
            self._on_unreadable(stream_id)
            if isinstance(error, OtherFormatError):
                raise ReadElsewhereError(str(error)) from error
            return False
        return True
