"""Writes this replica's file: everything that it appends, in order, one transaction at a time.

In: writes, from the event loop. Out: their `then`s, called in order after the transaction; or
reports that logs were lost. With `synchronous=NORMAL` a transaction takes about 0.1 ms and runs in
the event loop itself, so `then` is called before `append` returns. With `FULL` it waits for the
disk, so it runs in a thread, and the writes that come meanwhile go into the next one.

If a transaction fails, everything waits, in its order, and is tried again. After `patience` seconds
the replica gives its file up, with all its logs: it gives back the file's lease. Then it begins a
new file as soon as it can.
"""

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor

from penstock.errors import StartError
from penstock.store.protocol import ENTRY_BYTES, Entry, StoreError, StoreWatcher
from penstock.store.sqlite.folder import Folder
from penstock.store.sqlite.own_file import OwnFile
from penstock.store.sqlite.tables import (
    KEPT_STEPS,
    PAGED_STEPS,
    REMOVED_STEPS,
    Statement,
    decode_step,
    encode,
    is_busy,
    reason,
)
from penstock.store.sqlite.writes import OwnLog, Transaction, Write

log = logging.getLogger(__name__)

# The waits before a transaction is tried again, by the number of failures.
_RETRY_S = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5)
# A claimant or a cleaner may hold the file on a busy machine; this is no problem for so long.
_CALM_S = 1.0
MAX_WRITES = 256
"""The most writes in one transaction. After a full disk, many writes wait. In several transactions,
some of them fit as soon as there is a little room again."""

# When so many bytes were written since the last checkpoint, the next one begins.
_CHECKPOINT_BYTES = 8 * 1024 * 1024

_INSERT_HEADER = "INSERT INTO headers VALUES (?, ?)"
_INSERT_SEGMENT = (
    "INSERT INTO segments (no, id, epoch, opened) SELECT ?, ?, ?, max(step) FROM steps"
)


class Writer:
    """The writer. All its methods are called in the event loop; none blocks for long or raises."""

    def __init__(
        self,
        folder: Folder,
        replica: str,
        patience: float,
        synchronous: str,
        boot: str,
        threads: Executor,
    ) -> None:
        self.problem = ""
        self._folder = folder
        self._replica = replica
        self._patience = patience
        self._synchronous = synchronous
        self._boot = boot
        self._threads = threads
        self._file: OwnFile | None = None
        self._queue: deque[Write] = deque()
        self._is_busy = False
        self._retry: asyncio.TimerHandle | None = None
        self._failing_since = 0.0
        self._num_failures = 0
        self._num_files = 0
        self._jobs: set[asyncio.Task[None]] = set()
        self._is_released = False
        self._next_no = 1
        self._logs: dict[int, OwnLog] = {}
        # A segment is written into a page when it is its bucket's turn.
        self._buckets: list[dict[int, OwnLog]] = [{} for _ in range(PAGED_STEPS)]
        self._turn = 0

    async def start(
        self,
        watcher: StoreWatcher,
        on_new_file: Callable[[], list[Write]],
        prepare_again: Callable[[], None],
    ) -> None:
        """Begin the first file.

        Before each later one, `prepare_again` makes the folder usable (in a thread), and
        `on_new_file` returns its first writes.

        Raises OSError, sqlite3.Error and StartError.
        """
        self._watcher = watcher
        self._on_new_file = on_new_file
        self._prepare_again = prepare_again
        self._loop = asyncio.get_running_loop()
        self._begin(await self._loop.run_in_executor(self._threads, self._new_file))

    def _new_file(self) -> OwnFile:
        name = f"{self._replica}.{self._num_files}"
        self._num_files += 1
        return OwnFile(self._folder, name, self._synchronous, self._boot)

    def _begin(self, file: OwnFile) -> None:
        self._file = file
        if self._is_released:
            file.lease.release()
        self._step = 1
        self._left: dict[int, OwnLog] = {}  # lost logs, of which entries are in no page yet
        self._steps: deque[int] = deque(maxlen=KEPT_STEPS)  # the numbers of the last own writes
        self._num_bytes = 0  # written since the last checkpoint
        self._is_checkpointing = False

    @property
    def name(self) -> str | None:
        """The name of this replica's file; None while it has none."""
        return self._file.name if self._file else None

    def num_bytes(self) -> int:
        """Return the memory of the entries that are in no page yet, in bytes."""
        recent = [entry for each in self._logs.values() for entry in each.recent]
        waiting = [entry for write in self._queue for _, entry in write.entries]
        statements = [each for write in self._queue for each in write.statements]
        headers = [value for _, values in statements for value in values]
        known = [*recent, *waiting, *(each for each in headers if isinstance(each, bytes))]
        return len(known) * ENTRY_BYTES + sum(map(len, known))

    def release(self) -> None:
        """Give the lease back. The file stays open."""
        self._is_released = True
        if self._file:
            self._file.lease.release()

    async def close(self) -> None:
        """Close the file. Nothing is written after this."""
        while self._jobs:
            await asyncio.wait(self._jobs)
        if self._retry:
            self._retry.cancel()
        if self._file:
            self._file.close()
            self._file = None
        self._is_busy = True
        self._drop_queue()

    # Writes.

    def open(self, stream_id: str, header: Entry) -> OwnLog:
        """Begin a new log."""
        opened, insert = self._new_segment(stream_id, 1)
        self.add_soon(Write(statements=[insert, (_INSERT_HEADER, (opened.no, header))]))
        return opened

    def take(
        self, claimed: Mapping[tuple[str, int], Entry]
    ) -> tuple[dict[tuple[str, int], OwnLog], asyncio.Future[None]]:
        """Begin this replica's segments of logs that it has claimed in these epochs.

        `claimed` has their first entries. Returns the logs, and a future for the moment when all
        of this is stored.
        """
        write = Write()
        taken: dict[tuple[str, int], OwnLog] = {}
        for stream_id, epoch in sorted(claimed):
            taken[stream_id, epoch], insert = self._new_segment(stream_id, epoch + 1)
            write.statements.append(insert)
        write.entries = [(each, claimed[key]) for key, each in taken.items()]
        return taken, self.wait(write)

    def _new_segment(self, stream_id: str, epoch: int) -> tuple[OwnLog, Statement]:
        opened = OwnLog(stream_id, epoch, self._next_no)
        self._next_no += 1
        self._logs[opened.no] = opened
        self._buckets[opened.no % PAGED_STEPS][opened.no] = opened
        return opened, (_INSERT_SEGMENT, (opened.no, stream_id, epoch))

    def add(self, write: Write) -> None:
        """Write something after everything that was added before."""
        self._queue.append(write)
        if not self._is_busy:
            self._run()

    def add_soon(self, write: Write) -> None:
        """Write something with the next write, at the latest in the event loop's next turn."""
        if not self._queue:
            self._loop.call_soon(self._run_unless_busy)
        self._queue.append(write)

    def _run_unless_busy(self) -> None:
        if not self._is_busy:
            self._run()

    def wait(self, write: Write, first: Callable[[], None] = lambda: None) -> asyncio.Future[None]:
        """Add a write and return a future for its end, which may raise StoreError.

        `first` is called before that, when the write is done. It may raise sqlite3.Error.
        """
        future = self._loop.create_future()

        def then() -> None:
            if future.done():
                return
            try:
                first()
            except sqlite3.Error:
                failed()
            else:
                future.set_result(None)

        def failed() -> None:
            if not future.done():
                future.set_exception(StoreError("The log's folder cannot be written."))

        write.then, write.failed = then, failed
        self.add(write)
        return future

    def _run(self) -> None:
        """Write all that waits."""
        self._is_busy = True
        while self._queue:
            if self._file is None:
                return  # `_try_again` goes on
            work = self._gather()
            if self._synchronous == "FULL":
                self._run_in_thread(self._file.db, work)
                return
            try:
                work.run(self._file.db)
            except sqlite3.Error as error:
                if not self._handle(error):
                    return
            else:
                self._succeed(work)
        self._is_busy = False
        if self._num_bytes > _CHECKPOINT_BYTES and self._file and not self._is_checkpointing:
            self._is_checkpointing = True
            self._start(self._checkpoint(self._file))

    def _run_in_thread(self, db: sqlite3.Connection, work: Transaction) -> None:
        async def run() -> None:
            try:
                await self._loop.run_in_executor(self._threads, work.run, db)
            except sqlite3.Error as error:
                if not self._handle(error):
                    return
            else:
                self._succeed(work)
            self._run()

        self._start(run())

    def _start(self, job: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    def _gather(self) -> Transaction:
        """Return a transaction of what waits, up to `MAX_WRITES`. It changes nothing here."""
        writes = list(itertools.islice(self._queue, MAX_WRITES))
        work = Transaction(len(writes), self._step + 1)
        due = self._left | self._buckets[self._turn]
        step: list[int | Entry] = []
        fresh: dict[int, list[Entry]] = {}
        for write in writes:
            if write.ended is not None:
                if write.ended.is_lost:
                    continue
                due[write.ended.no] = write.ended
            work.statements += write.statements
        for write in writes:
            for each, entry in write.entries:
                if not each.is_lost:
                    no = each.no
                    step.append(no)
                    step.append(entry)
                    if no in due:
                        fresh.setdefault(no, []).append(entry)
        if step:
            work.entries = encode(step)
            work.paged = [
                (each, entries)
                for no, each in due.items()
                if (entries := each.recent + fresh.get(no, []))
            ]
            if len(self._steps) == KEPT_STEPS and not self._turn % REMOVED_STEPS:
                work.keep_from = self._steps[0]
        return work

    def _succeed(self, work: Transaction) -> None:
        """Note what was written, and call the `then`s."""
        if self.problem:
            self._set_problem("")
        self._num_failures = 0
        self._num_bytes += work.num_bytes
        done = [self._queue.popleft() for _ in range(work.num_writes)]
        if work.entries:
            self._note_step(work, done)
        for write in done:
            if write.then is not None:
                _call(write.then)

    def _note_step(self, work: Transaction, done: Sequence[Write]) -> None:
        self._step = work.step
        self._steps.append(work.step)
        self._turn = (self._turn + 1) % PAGED_STEPS
        self._left = {}
        for write in done:
            for each, entry in write.entries:
                if not each.is_lost:
                    each.recent.append(entry)
            if write.ended is not None:
                self._forget(write.ended)
        for each, entries in work.paged:
            each.num_paged += len(entries)
            each.recent.clear()

    def _forget(self, each: OwnLog) -> None:
        self._logs.pop(each.no, None)
        self._buckets[each.no % PAGED_STEPS].pop(each.no, None)

    # Logs that were claimed.

    def confirm_owner(self) -> asyncio.Future[None]:
        """Return a future, done when all claims of this moment are reported. See `wait`."""
        return self.wait(Write(), self._report_claims)

    def look_for_claims(self) -> None:
        """Report the logs that other replicas have claimed since the last step."""
        if self._is_busy:
            return
        with contextlib.suppress(sqlite3.Error):  # the next write meets the same error, and waits
            self._report_claims()

    def _report_claims(self) -> None:
        """Do what `look_for_claims` does, while nothing is being written. Raises sqlite3.Error."""
        if self._file is not None:
            last = self._file.db.execute("SELECT max(step) FROM steps").fetchone()[0]
            if last > self._step:
                self._take_claims(self._file.db)

    def _take_claims(self, db: sqlite3.Connection) -> None:
        """Read the steps that claims have added."""
        for step, blob in db.execute(
            "SELECT step, entries FROM steps WHERE step > ? ORDER BY step", (self._step,)
        ).fetchall():
            self._step = step
            for no in decode_step(blob)[::2]:
                assert isinstance(no, int)
                if lost := self._logs.get(no):
                    self._forget(lost)
                    lost.is_lost = True
                    self._left[no] = lost
                    self._watcher.log_lost(lost)

    # Trouble.

    def look_at_file(self) -> None:
        """Give the file up if somebody has removed it, and begin another one."""
        if self._file is None or self._is_busy or self._file.is_there():
            return
        self._is_busy = True
        self._set_problem("The folder with the logs was removed.")
        self._give_up()
        self._wait_after(self.problem)

    def _handle(self, error: sqlite3.Error) -> bool:
        """Return True if the writes can be tried again at once; else they wait."""
        assert self._file is not None
        if isinstance(error, sqlite3.IntegrityError):
            try:
                before = self._step
                self._take_claims(self._file.db)
                if self._step > before:
                    return True
            except sqlite3.Error as another:
                error = another
        self._wait_after(reason(error, self._folder.path), is_busy=is_busy(error))
        return False

    def _wait_after(self, problem: str, *, is_busy: bool = False) -> None:
        """Try again later; after `patience` seconds of this, give the file up first."""
        now = time.monotonic()
        if not self._num_failures:
            self._failing_since = now
        wait = _RETRY_S[min(self._num_failures, len(_RETRY_S) - 1)]
        self._num_failures += 1
        if now - self._failing_since >= self._patience:
            self._failing_since = now
            if self._file or self._queue or self._logs:
                self._give_up()
        if not is_busy or now - self._failing_since >= _CALM_S:
            self._set_problem(problem)
        self._retry = self._loop.call_later(wait, self._try_again)

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.error("%s Streams wait until it can be written again.", problem)
            else:
                log.warning("The log of streams can be written again.")
            self._watcher.store_changed()

    def _give_up(self) -> None:
        """Lose all logs and what waits, and give the lease back."""
        for each in self._logs.values():
            each.is_lost = True
        self._logs.clear()
        for bucket in self._buckets:
            bucket.clear()
        if self._file:
            self._file.close()
            self._file = None
        self._drop_queue()
        self._watcher.logs_unreachable()

    def _drop_queue(self) -> None:
        dropped = list(self._queue)
        self._queue.clear()
        for write in dropped:
            for each, _ in write.entries:
                each.is_lost = True
            if write.failed is not None:
                write.failed()

    def _try_again(self) -> None:
        self._retry = None
        if self._file is not None:
            self._run()
        else:
            self._start(self._begin_again())

    async def _begin_again(self) -> None:
        """Begin a new file, if that is possible now."""
        try:
            await self._loop.run_in_executor(self._threads, self._prepare_again)
            file = await self._loop.run_in_executor(self._threads, self._new_file)
        except (sqlite3.Error, OSError, StartError) as error:
            self._wait_after(reason(error, self._folder.path))
            return
        self._begin(file)
        self._queue.extendleft(reversed(self._on_new_file()))
        self._run()

    # Checkpoints.

    async def _checkpoint(self, file: OwnFile) -> None:
        """Write the write-ahead log back into the file, so that it begins again.

        Only a writer that waits lets it begin again. So most is written back while appends go on,
        and they wait for the rest only.
        """
        has_begun_again = False
        try:
            await self._loop.run_in_executor(self._threads, file.checkpoint, "PASSIVE")
            if not self._is_busy and self._file is file:
                self._is_busy = True
                try:
                    has_begun_again = await self._loop.run_in_executor(
                        self._threads, file.checkpoint, "RESTART"
                    )
                finally:
                    self._run()
        except sqlite3.Error as error:
            log.warning("%s A checkpoint has failed.", reason(error, self._folder.path))
        self._is_checkpointing = False
        # If a reader was in the way, the next try comes soon, but not with the next write.
        self._num_bytes = 0 if has_begun_again else _CHECKPOINT_BYTES * 7 // 8


def _call(then: Callable[[], None]) -> None:
    try:
        then()
    except Exception:
        log.exception("a stream failed after its entries were stored; the other streams go on")
