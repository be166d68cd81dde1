"""A replica in a process of its own: `python -m tests.store.replica STORE PLACE PATIENCE`.

In: lines of JSON on standard input, `[number, action, *arguments]`; the actions are the methods of
`Server`. Out: lines of JSON on standard output: answers, and what the store reports.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from penstock.store.protocol import Entry, Following, StoredLog, Wanted
from tests.store.stores import PLACES


def say(*line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


class Server:
    """The actions that a test can ask for."""

    def __init__(self, name: str, spec: str, patience: float) -> None:
        self._store = PLACES[name].from_spec(spec).new_store(patience)
        self._logs: dict[str, StoredLog] = {}
        self._lost: set[str] = set()
        self._followings: list[Following | None] = []

    # What the store reports.

    def log_lost(self, log: StoredLog) -> None:
        self._lost.add(log.stream_id)
        say("lost", log.stream_id)

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None:
        say("orphaned", orphans)

    def store_changed(self) -> None:
        say("problem", self._store.problem)

    def logs_unreachable(self) -> None:
        say("unreachable")

    # What a test asks for.

    async def start(self) -> None:
        await self._store.start(self)

    async def release(self) -> None:
        await self._store.release()

    async def open(self, *stream_ids: str) -> None:
        """Open logs whose header is their id."""
        for stream_id in stream_ids:
            self._logs[stream_id] = self._store.open(stream_id, stream_id.encode())
        await self._stored()

    async def append(self, stream_id: str, *entries: str) -> None:
        """Append entries and answer when they are stored."""
        log = self._logs[stream_id]
        await self._stored(*((log, entry.encode()) for entry in entries))

    async def end(self, stream_id: str, entry: str) -> None:
        done = asyncio.Event()
        self._store.end(self._logs[stream_id], entry.encode(), 60.0, done.set)
        await done.wait()

    async def count(self, *stream_ids: str) -> None:
        """Append 0, 1, 2, … to each log until it is lost, one number to all in each write."""
        await self.count_to(sys.maxsize, *stream_ids)

    async def count_to(self, end: int, *stream_ids: str) -> None:
        """Do what `count` does, until each log has so many numbers."""
        number = 0
        while number < end:
            logs = [self._logs[each] for each in stream_ids if each not in self._lost]
            if not logs:
                return
            await self._stored(*((log, str(number).encode()) for log in logs))
            number += 1
            for log in logs:
                if log.stream_id not in self._lost:
                    say("acknowledged", log.stream_id, number)

    async def claim(self, epoch: int, *stream_ids: str) -> list[bool]:
        """Claim a group of logs; return which of them this replica got."""
        claimed = await self._store.claim([(each, epoch) for each in stream_ids])
        self._logs |= {log.stream_id: log for log in claimed if log is not None}
        return [log is not None for log in claimed]

    async def claim_aloud(self, epoch: int, *stream_ids: str) -> None:
        """Claim a group of logs; say then which of them this replica got."""
        for stream_id, is_mine in zip(
            stream_ids, await self.claim(epoch, *stream_ids), strict=True
        ):
            if is_mine:
                say("acknowledged", stream_id, 1)

    async def follow(self, stream_id: str) -> None:
        self._followings += await self._store.follow([Wanted(stream_id, lambda _: None)])

    async def _stored(self, *entries: tuple[StoredLog, Entry]) -> None:
        done = asyncio.Event()
        self._store.append(entries, done.set)
        await done.wait()


async def main(name: str, spec: str, patience: float) -> None:
    server = Server(name, spec, patience)
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    running = set()  # asyncio itself holds tasks weakly
    async for line in reader:
        running.add(asyncio.create_task(answer(server, *json.loads(line))))


async def answer(server: Server, number: int, action: str, *arguments: Any) -> None:
    say("answer", number, await getattr(server, action)(*arguments))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
