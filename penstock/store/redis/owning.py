"""The owning side: append to this replica's logs, and never let go of what is not stored.

In: entries. Out: `then`s in order, when their entries are stored. All entries of a step are one
write on one connection (`line.py`). Whatever goes wrong with it, the answer is the same: connect
again, ask what the store has of each log (`recovery.py`), and write what it lacks.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from penstock import supervision
from penstock.errors import StartError
from penstock.store.protocol import Entry, StoredLog, StoreError, StoreWatcher
from penstock.store.redis.address import Address
from penstock.store.redis.ended import EndedLogs
from penstock.store.redis.layout import (
    LEASE_MS,
    LIVES,
    LOGS,
    OPEN,
    RENEW_S,
    TAKEN,
    TRIALS,
    command,
)
from penstock.store.redis.line import Line, One, Reply, ReplyError, connect
from penstock.store.redis.log import ENTRY_FORMAT, RedisLog
from penstock.store.redis.recovery import Stored, num_unacknowledged, plan, recover
from penstock.store.redis.scripts import LOST, MARK, SETTLE, TRIAL
from penstock.store.redis.step import Step
from penstock.store.redis.tenure import Tenure, checked, now
from penstock.store.redis.trouble import sentence, start_error, store_error

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""The most that waits for the store; beyond it the store counts as unreachable."""

MAX_TAKEN = 1000
"""Logs taken from this replica that it learns of at once."""

SLOW_S = 1.0
"""A store that has not answered for this long has a problem."""

STALLED_S = 5.0
"""A connection that has not answered for this long is replaced."""

CONFIRM_MS = 200
"""How long one WAIT waits for the store's replicas: less than the lease, because it blocks."""

PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5


class Owning:
    """The logs that this replica owns."""

    def __init__(self, address: Address, tenure: Tenure, patience: float) -> None:
        self.problem = ""
        self.logs: dict[str, RedisLog] = {}
        self.reconnected_at = -math.inf
        """When a lost connection was last replaced; infinite while it is not."""
        self._address = address
        self._tenure = tenure
        self._patience = patience
        self._watcher: StoreWatcher
        self._fresh: tuple[Line, Stored] | None = None  # the first connection
        self._line: Line | None = None  # None until everything is settled on it
        self._steps: deque[Step] = deque()
        self._ended = EndedLogs(self.logs)
        self._waiting_bytes = 0
        self._confirmed = 0  # steps up to this number are on enough of the store's replicas
        self._num_steps = 0
        self._is_confirming = False
        self._drops: set[str] = set()
        self._down_since: float | None = None
        self._heartbeats: deque[float] = deque()  # when those without a reply were sent
        self._tasks: list[asyncio.Task[None]] = []

    # Its life.

    async def start(self, watcher: StoreWatcher) -> None:
        """Connect and begin the lease. Raises StartError."""
        self._watcher = watcher
        try:
            self._fresh = await self._open_line()
            await _try_all(self._fresh[0], TRIALS + self._tenure.replica, self._tenure.renewal())
        except StartError:
            raise
        except (OSError, TimeoutError, ReplyError) as error:
            raise start_error(error, self._address) from None
        self._tasks = [
            supervision.keep("log connection", self._stay_connected),
            supervision.keep("log lease", self._keep_time),
        ]

    async def release(self) -> None:
        """Give the lease back, after everything that was appended before."""
        if self._tenure.is_given_back:
            return
        self._tenure.is_given_back = True
        if self._line is not None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(LEASE_MS / 1000):
                    await self._line.ask([command("DEL", self._tenure.lease)])

    async def stop(self) -> None:
        """Release, and close the connection."""
        await self.release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fresh is not None:
            self._fresh[0].close("")

    def num_bytes(self) -> int:
        """Return the memory of the entries, and of what waits for the connection, in bytes."""
        unsent = 0 if self._line is None else self._line.num_unsent_bytes()
        return unsent + sum(log.num_bytes() for log in self.logs.values())

    # Appending.

    def open(self, stream_id: str, header: Entry) -> RedisLog:
        """Begin a log in epoch 1."""
        log = RedisLog(stream_id, 1, header)
        self.logs[stream_id] = log
        self._push(Step(self, [log]), log.command(0, self._tenure.name))
        return log

    def adopt(self, log: RedisLog) -> None:
        """Own a log that was claimed."""
        self.logs[log.stream_id] = log

    def append(self, entries: Sequence[tuple[StoredLog, Entry]], then: Callable[[], None]) -> None:
        """Append entries in one write. This loop runs once per token."""
        parts: list[bytes] = []
        logs: list[RedisLog] = []
        for log, entry in cast("Sequence[tuple[RedisLog, Entry]]", entries):
            if log.is_closed:
                continue
            number = len(log.entries)
            log.entries.append(entry)
            if number == log.wider_at:
                log.widen()
            parts.append(ENTRY_FORMAT % (log.head, number, len(entry), entry))
            logs.append(log)
        if logs or self._steps:
            self._push(Step(self, logs, then), b"".join(parts))
        else:
            then()

    def end(self, log: RedisLog, entry: Entry, retain: float, then: Callable[[], None]) -> None:
        """Append the last entry."""
        if log.is_closed:
            self.append((), then)
            return
        log.is_closed = True
        log.entries.append(entry)
        log.retain_ms = max(1, round(retain * 1000))
        step = Step(self, [log], then, ends=log)
        self._push(step, log.command(log.last_number, self._tenure.name))

    def drop(self, stream_id: str) -> None:
        """Remove an ended log."""
        if (log := self.logs.get(stream_id)) is not None and log.is_over:
            del self.logs[stream_id]  # so that it is not written again
        self._drops.add(stream_id)
        if self._line is not None:
            self._line.send(
                command("UNLINK", LOGS + stream_id), One(partial(self._take_dropped, stream_id))
            )

    async def confirm_owner(self, log: RedisLog) -> None:
        """Learn whether this replica still owns a log. Raises StoreError."""
        stored = asyncio.Event()
        self.append((), stored.set)
        await stored.wait()
        if log.is_lost or log.is_over:
            return
        if self._line is None:
            raise StoreError(self.problem)
        try:
            (reply,) = await self._line.ask([self._whose(log)])
        except (ConnectionError, TimeoutError) as error:
            raise store_error(error, self._address) from None
        self._take_settled(None, log, -1, reply)

    def _push(self, step: Step, data: bytes) -> None:
        self._num_steps += 1
        step.serial = self._num_steps
        step.size = len(data)
        self._waiting_bytes += step.size
        self._steps.append(step)
        if self._line is not None and data:
            self._line.send(data, step)
            if self._address.wait:
                self._confirm()
        if self._waiting_bytes > MAX_WAITING_BYTES:
            asyncio.get_running_loop().call_soon(self._give_up)

    # Replies.

    def advance(self) -> None:
        """Call the `then` of each step that is stored, in order."""
        steps, must_confirm = self._steps, self._address.wait > 0
        while steps and not steps[0].num_left and not steps[0].num_held:
            if must_confirm and steps[0].serial > self._confirmed:
                return
            step = steps.popleft()
            self._waiting_bytes -= step.size
            if step.ends is not None and not step.ends.is_lost:
                self._ended.keep(step.ends)
            step.then()

    def _take_taken(self, reply: Reply) -> None:
        """Take the ids of logs that others have claimed, as they say."""
        for stream_id in () if isinstance(reply, ReplyError) else reply or ():
            if (log := self.logs.get(stream_id.decode())) is not None:
                self._settle(None, log, -1)

    def take_odd(self, step: Step, log: RedisLog, reply: Reply) -> None:
        """Take the reply to an entry that the store did not simply add."""
        if log.is_lost:
            return
        if not isinstance(reply, ReplyError):
            self._break("A log has disappeared from the store.")  # NOMKSTREAM: the key is gone
        elif "equal or smaller" in str(reply):
            # Another owner has written, or this very entry came by an earlier connection.
            self._settle(step, log, self._number_of(step, log))
        else:
            self._break(sentence(reply, self._address))

    def _take_settled(self, step: Step | None, log: RedisLog, number: int, reply: Reply) -> None:
        """Take what the store says of a log that another owner may have.

        If it is ours, the store must have the entry with this number.
        """
        if step is not None:
            step.num_held -= 1
        if reply == LOST:
            self.lose(log)
        elif not isinstance(reply, int) or reply < max(number, 0):
            self._break("The store has lost a part of a log.")
        self.advance()

    def lose(self, log: RedisLog) -> None:
        """Let go of a log that has another owner."""
        if not log.is_lost:
            log.lose()
            if self.logs.get(log.stream_id) is log:
                del self.logs[log.stream_id]
            if not log.is_over:  # it may be gone already, because its time is over
                self._watcher.log_lost(log)

    def _take_heartbeat(self, sent_at: float, reply: Reply) -> None:
        """Take the reply to a renewal of the lease."""
        self._heartbeats.popleft()
        if isinstance(reply, ReplyError):
            self._break(sentence(reply, self._address))
        elif reply:
            self._tenure.renewed_at = sent_at
            self._ended.store_answered(sent_at)
        elif not self._tenure.is_given_back:
            self._break("The lease of this replica in the store has lapsed.")

    def _take_confirmed(self, serial: int, num_replicas: Reply) -> None:
        """Take how many of the store's replicas have everything up to a step."""
        self._is_confirming = False
        if isinstance(num_replicas, ReplyError):
            self._break(sentence(num_replicas, self._address))
            return
        if num_replicas >= self._address.wait:
            self._confirmed = serial
            self.advance()
        if self._steps and self._steps[-1].serial > self._confirmed:
            self._confirm()

    def _take_dropped(self, stream_id: str, reply: Reply) -> None:
        """Take the reply to a removal."""
        if not isinstance(reply, ReplyError):
            self._drops.discard(stream_id)

    def _number_of(self, step: Step, log: RedisLog) -> int:
        """Return the number of the entry whose reply has just come."""
        number = len(log.entries) - num_unacknowledged(self._steps)[log] - 1
        for each in self._steps:
            if each is step:
                break
            number += each.logs.count(log)
        return number + step.logs[: len(step.logs) - step.num_left].count(log)

    def _settle(self, step: Step | None, log: RedisLog, number: int) -> None:
        """Ask whether a log is still ours; the step waits for the answer."""
        if self._line is None:
            return
        if step is not None:
            step.num_held += 1
        self._line.send(self._whose(log), One(partial(self._take_settled, step, log, number)))

    def _whose(self, log: RedisLog) -> bytes:
        """Return the command that asks whose a log is."""
        acked = len(log.entries) - num_unacknowledged(self._steps)[log] - 1
        keys = [log.key, OPEN + self._tenure.name]
        return SETTLE.call(keys, log.stream_id, log.epoch, acked, log.last_number, log.before)

    def _confirm(self) -> None:
        # One WAIT at a time: it blocks the connection at the server, and covers all before it.
        if not self._is_confirming and self._line is not None:
            self._is_confirming = True
            wait = command("WAIT", self._address.wait, CONFIRM_MS)
            self._line.send(wait, One(partial(self._take_confirmed, self._num_steps)))

    # Trouble.

    def _break(self, reason: str) -> None:
        if self._line is not None:
            self._line.close(reason)

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._watcher.store_changed()

    def _give_up(self) -> None:
        """The store is unreachable: all logs are lost, and nothing waits any more."""
        if not self._steps and all(log.is_over for log in self.logs.values()):
            return
        for log in self.logs.values():
            log.lose()
        self.logs.clear()
        self._ended.clear()
        self._steps.clear()
        self._waiting_bytes = 0
        self._tenure.abandon()
        self._break(self.problem or "Too much waits for the store.")
        self._set_problem(self.problem or "Too much waits for the store.")
        self._watcher.logs_unreachable()

    async def _open_line(self) -> tuple[Line, Stored]:
        line = await connect(self._address)
        try:
            return line, await recover(line, self._tenure, self.logs, self._steps, self.lose)
        except BaseException:
            line.close("")
            raise

    async def _stay_connected(self) -> None:
        pause = PAUSE_S
        while True:
            began = now()
            fresh, self._fresh = self._fresh or await self._try_to_connect(), None
            if fresh is not None:
                await self._use_until_closed(*fresh)
            if now() - began > SLOW_S:
                pause = PAUSE_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _use_until_closed(self, line: Line, stored: Stored) -> None:
        try:
            self._use(line, stored)
            await line.closed.wait()
        finally:
            line.close("")
            self._line = None
            self._down_since = now()
            self.reconnected_at = math.inf
        self._set_problem(line.reason)

    async def _try_to_connect(self) -> tuple[Line, Stored] | None:
        try:
            fresh = await self._open_line()
        except (OSError, TimeoutError, ReplyError) as error:
            self._set_problem(sentence(error, self._address))
        except StartError as error:
            self._set_problem(str(error))
        else:
            self.reconnected_at = now()
            return fresh
        return None

    def _use(self, line: Line, stored: Stored) -> None:
        """Write what the store lacks, in order, and go on with this connection."""
        self._line = line
        self._down_since = None
        self._ended.keep_anew()
        self._heartbeats.clear()
        self._beat()  # with a slow store, or many logs, much of the lease is over already
        self._is_confirming = False
        self._set_problem("")
        repair = Step(self, [], self._mark_life)
        repair.serial = self._confirmed
        self._steps.appendleft(repair)
        for step, data in plan(self._steps, repair, stored, self.logs, self._tenure.name):
            line.send(data, step)
        for stream_id in list(self._drops):
            self.drop(stream_id)
        if self._address.wait:
            self._confirm()
        self.advance()

    def _mark_life(self) -> None:
        """Note in the store that it has everything again that it ever confirmed of these logs."""
        if self._line is not None and not self._tenure.is_given_back:
            self._line.send(MARK.call([LIVES], self._tenure.name), One(self._take_marked))

    def _take_marked(self, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            self._break(sentence(reply, self._address))

    # Time.

    async def _keep_time(self) -> None:
        while True:
            self._beat()
            self._judge_silence()
            await asyncio.sleep(RENEW_S)

    def _beat(self) -> None:
        """Renew the lease, and learn which logs others have claimed."""
        if self._line is not None:
            self._heartbeats.append(now())
            take = partial(self._take_heartbeat, self._heartbeats[-1])
            self._line.send(self._tenure.renewal(), One(take))
            taken = command("SPOP", TAKEN + self._tenure.name, MAX_TAKEN)
            self._line.send(taken, One(self._take_taken))

    def _judge_silence(self) -> None:
        waiting_since = [step.born for step in list(self._steps)[:1]]
        if self._down_since is not None:
            waiting_since.append(self._down_since)
        waiting_since += list(self._heartbeats)[:1]
        silence = now() - min(waiting_since, default=now())
        if silence > self._patience:
            self._give_up()
        elif self._line is not None:
            slow = f"The store at {self._address} has not confirmed a write for {SLOW_S:g} s."
            self._set_problem(slow if silence > SLOW_S else "")
            if self._heartbeats and now() - self._heartbeats[0] > STALLED_S:
                self._break(f"The store at {self._address} does not answer.")


async def _try_all(line: Line, key: str, renewal: bytes) -> None:
    """Carry out every command that is ever sent. Raises ReplyError if one is not permitted.

    `renewal` is sent as well: if the store is slow, the lease is not new any more.
    """
    trial = [command("EVAL", TRIAL.text, 1, key), command("WAIT", 0, 1), command("PING")]
    checked(await line.ask([*trial, renewal]))
