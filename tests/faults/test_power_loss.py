"""The power fails under a server with a folder: its files keep only what the disk had.

`strace` tells how much of the write-ahead log the server has given to the disk (fdatasync). The
test kills the server and cuts the log there, or earlier. Then the machine has started anew.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.replicas import Clients, FolderPlace, Replicas, got
from tests.faults.tails import LostTail
from tests.store.stores import restart_machine
from tests.support.programs import find_program

if sys.platform != "linux":
    pytest.skip("strace is Linux's", allow_module_level=True)

NUM_TOKENS = 150
WRITE = re.compile(r"^(\d+) +pwrite64\(\d+<[^>]*\.log-wal>, .*, (\d+), (\d+)(?:\)| <unf)")
SYNC = re.compile(r"^(\d+) +f(?:data)?sync\(\d+<[^>]*\.log-wal>(?:\) += 0| <(unfinished))")
SYNCED = re.compile(r"^(\d+) +<\.\.\. f(?:data)?sync resumed>\) += 0")


@pytest.fixture
def strace() -> str:
    return find_program("strace", "strace", "PENSTOCK_REQUIRE_STRACE")


@contextmanager
def traced(strace: str, pid: int, output: Path) -> Iterator[None]:
    """Trace what a process writes and syncs, until it is dead."""
    calls = "trace=pwrite64,fdatasync,fsync"
    command = [strace, "-f", "-y", "-s", "0", "-e", calls, "-o", str(output), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    try:
        told = tracer.stderr.readline()
        if "attached" not in told:
            pytest.skip(f"strace may not trace here: {told.strip()}")
        yield
        tracer.communicate(timeout=20)
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def num_synced(lines: Iterable[str]) -> int:
    """Return how many bytes of the write-ahead log the disk had at the end."""
    written = synced = 0
    under_way: dict[str, int] = {}
    for line in lines:
        if found := WRITE.match(line):
            written = max(written, int(found[2]) + int(found[3]))
        elif found := SYNC.match(line):
            if found[2]:
                under_way[found[1]] = written
            else:
                synced = max(synced, written)
        elif found := SYNCED.match(line):
            synced = max(synced, under_way.pop(found[1], 0))
    return synced


def test_a_trace_tells_what_the_disk_had() -> None:
    path = "9</x/a.0.log-wal>"
    lines = [
        f'7 pwrite64({path}, ""..., 100, 0) = 100',
        f"7 fdatasync({path}) = 0",
        f'7 pwrite64({path}, ""..., 50, 100 <unfinished ...>',
        "7 <... pwrite64 resumed>) = 50",
        f"8 fdatasync({path} <unfinished ...>",
        f'7 pwrite64({path}, ""..., 50, 150) = 50',
        "8 <... fdatasync resumed>) = 0",
        f'7 pwrite64({path}, ""..., 50, 200) = 50',
        f"8 fdatasync({path} <unfinished ...>",
    ]
    assert [num_synced(lines[:num]) for num in (1, 2, 6, 7, 9)] == [0, 100, 100, 150, 150]


def size_of_log(folder: Path) -> int:
    (path,) = folder.glob("*.log-wal")
    return path.stat().st_size


def cut_log(folder: Path, size: int) -> None:
    """Cut the dead server's write-ahead log to this size."""
    assert size <= size_of_log(folder)
    (path,) = folder.glob("*.log-wal")
    os.truncate(path, size)
    for shared_memory in folder.glob("*-shm"):  # the next server makes it anew
        shared_memory.unlink()


async def test_with_log_sync_a_power_loss_loses_nothing_that_was_sent(
    strace: str, tmp_path: Path
) -> None:
    place = FolderPlace(tmp_path)
    with Replicas(place.log, tmp_path, log_sync=True) as replicas:
        server = replicas.start()
        clients = Clients(replicas)
        with traced(strace, server.pid, tmp_path / "trace"):
            readers = await clients.open(4, num_tokens=NUM_TOKENS)
            await got(readers, 30)
            await asyncio.to_thread(replicas.kill, server)
        for reader in readers:
            await reader.closed()
        size = num_synced((tmp_path / "trace").read_text().splitlines())
        assert size > 0
        cut_log(Path(place.log), size)
        await asyncio.to_thread(replicas.start)
        for reader in readers:
            reader.turn_to(replicas.addresses)
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == {"length": 4}
        assert verdict.counts["refused"] == 0


async def test_without_log_sync_a_power_loss_contradicts_nothing_that_was_shown(
    tmp_path: Path,
) -> None:
    place = FolderPlace(tmp_path)
    with Replicas(place.log, tmp_path) as replicas:
        server = replicas.start()
        tail = await LostTail.begin(replicas, server)
        size = size_of_log(Path(place.log))
        while size_of_log(Path(place.log)) < 1.5 * size:
            await tail.read_on()
        await asyncio.to_thread(replicas.kill, server)
        cut_log(Path(place.log), size)
        restart_machine(place.log)
        await tail.is_lost()
        server = await asyncio.to_thread(replicas.start)
        await tail.goes_on(server)
