"""What SQLite's store does when the disk fails it, or when files are torn, damaged or lost."""

import asyncio
import contextlib
import functools
import resource
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest

from penstock.store.protocol import CLAIMED, StoredLog
from penstock.store.sqlite.files import Files
from penstock.store.sqlite.folder import Folder
from penstock.store.sqlite.keeper import Keeper
from penstock.store.sqlite.log_file import Segment
from penstock.store.sqlite.store import SqliteStore
from tests.store.disks import small_disk
from tests.store.stores import (
    LONG_S,
    Replica,
    ReplicaProcess,
    Replicas,
    SqlitePlace,
    replicas_of,
)

MIB = 1 << 20


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    async with replicas_of("sqlite", tmp_path) as opened:
        yield opened


def paths_of(folder: str, pattern: str) -> list[Path]:
    return sorted(Path(folder).glob(pattern))


def copy(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to)


def allow_files_of(process: ReplicaProcess, num_bytes: int) -> None:
    """Let a process write no file beyond this size, so that its disk seems to fail."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))


def append_numbers(
    replica: Replica, logs: Sequence[StoredLog], done: list[int], numbers: range
) -> None:
    """Append each number to all logs; `done` gets the numbers that are stored."""

    def is_done(number: int) -> None:
        done.append(number)
        replica.reports.note()

    for number in numbers:
        entry = str(number).encode()
        replica.store.append([(log, entry) for log in logs], functools.partial(is_done, number))


async def fill_until_it_waits(replica: Replica, logs: Sequence[StoredLog], done: list[int]) -> int:
    """Append numbers until the disk is full, and some more. Return how many were appended.

    At most 20 wait: otherwise a busy machine might have more of them than the disk has room for.
    """
    number = 0
    while not replica.store.problem:
        append_numbers(replica, logs, done, range(number, number + 10))
        number += 10
        await replica.reports.until(
            lambda: replica.store.problem != "" or len(done) >= number - 10  # noqa: B023
        )
    return number


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
async def test_appends_wait_in_order_while_the_disk_is_full(
    tmp_path: Path, synchronous: str
) -> None:
    with small_disk(tmp_path / "disk", 2 * MIB) as disk:
        disk.empty()
        store = SqliteStore(disk.path, patience=LONG_S, synchronous=synchronous)
        replica = Replica(store)
        await replica.start()
        logs = [store.open(f"s{number}", b"h") for number in range(20)]
        done: list[int] = []
        disk.fill(but=100_000)
        number = await fill_until_it_waits(replica, logs, done)
        num_stored = len(done)
        assert "is full" in store.problem
        assert num_stored < number
        with contextlib.suppress(OSError):
            disk.fill()
        waiting = asyncio.create_task(replica.stored(logs[0], b"waited"))
        late = store.open("late", b"h")
        await asyncio.sleep(0.3)  # several tries fail meanwhile
        assert len(done) == num_stored
        assert not waiting.done()
        disk.empty()
        await waiting
        await replica.stored(late, b"1")
        assert done == list(range(number))
        assert store.problem == ""
        assert replica.reports.num_changes == 2
        assert not replica.reports.lost
        assert not replica.reports.num_unreachable
        expected = [str(each).encode() for each in range(number)]
        assert await replica.all_of("s0") == [*expected, b"waited"]
        assert await replica.all_of("s19") == expected
        assert await replica.all_of("late") == [b"1"]
        await replica.stop()


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
async def test_what_waits_goes_on_with_a_little_room(tmp_path: Path, synchronous: str) -> None:
    """It never needs room for all that waits at once, which is more than the disk has."""
    with small_disk(tmp_path / "disk", 2 * MIB) as disk:
        disk.empty()
        replica = Replica(SqliteStore(disk.path, patience=LONG_S, synchronous=synchronous))
        await replica.start()
        logs = [replica.store.open(f"s{number}", b"h") for number in range(20)]
        done: list[int] = []
        disk.fill(but=100_000)
        number = await fill_until_it_waits(replica, logs, done)
        append_numbers(replica, logs, done, range(number, number + 20_000))
        num_stored = len(done)
        disk.empty()
        await replica.reports.until(lambda: len(done) > num_stored)
        disk.grow(200 * MIB)
        await replica.reports.until(lambda: len(done) == number + 20_000)
        assert done == list(range(number + 20_000))
        await replica.stop()


async def test_after_its_patience_a_replica_loses_its_logs_and_begins_again(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 2 * MIB) as disk:
        disk.empty()
        replica = Replica(SqliteStore(disk.path, patience=0.5))
        await replica.start()
        store = replica.store
        log = store.open("s", b"h")
        await replica.stored(log, b"1")
        following = await replica.reading("s")
        done: list[int] = []
        disk.fill(but=50_000)
        await fill_until_it_waits(replica, [log], done)
        num_stored = len(done)
        await replica.reports.until(lambda: replica.reports.num_unreachable > 0)
        disk.empty()
        await replica.reports.until(lambda: replica.reports.orphans == {"s": 1})
        assert store.problem == ""
        assert len(done) == num_stored
        await replica.stored(log, b"too late")
        again = await replica.claim("s", 1)
        assert again is not None
        await replica.stored(again, b"2")
        stored = [str(number).encode() for number in range(num_stored)]
        assert await replica.all_of("s") == [b"1", *stored, CLAIMED, b"2"]
        await following.until_it_has(num_stored + 3)
        assert following.entries == [b"1", *stored, CLAIMED, b"2"]
        await replica.ended(store.open("new", b"h"), b"end")
        await replica.stop()


async def test_others_take_the_logs_of_a_replica_whose_disk_fails(replicas: Replicas) -> None:
    replicas.patience = 3.0  # a pause of this process must not be longer
    failing, other = await replicas.new_process(), await replicas.new()
    await failing.ask("open", "s", "idle")
    await failing.ask("follow", "idle")
    allow_files_of(failing, 300_000)
    failing.tell("count", "s")
    await failing.until(lambda: failing.problem != "")
    assert not other.reports.orphans
    await failing.until(lambda: failing.num_unreachable > 0)
    await other.reports.until(lambda: other.reports.orphans == {"s": 1, "idle": 1})
    claimed = await other.claim("s", 1)
    assert claimed is not None
    await other.ended(claimed, b"end")
    num = failing.acknowledged["s"]
    entries = await other.all_of("s")
    assert entries[:num] == [str(number).encode() for number in range(num)]
    assert entries[-2:] == [CLAIMED, b"end"]
    # It goes on with a new file, which is small, and says again what it follows.
    await failing.until(lambda: failing.problem == "")
    assert await failing.ask("claim", 1, "s") == [False]
    assert await other.store.is_followed("idle")
    await failing.ask("open", "new")
    await failing.ask("append", "new", "1")
    assert await other.all_of("new") == [b"1"]


async def test_a_torn_write_ahead_log_is_read_as_a_prefix(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path)
    process = ReplicaProcess(place)
    await process.start()
    await process.ask("open", "s", "t")
    num_all = 150  # with many more, the write-ahead log would begin again
    await process.ask("count_to", num_all, "s", "t")
    await process.kill()
    found = []
    size = size_of_log(Path(place.spec))
    for part in range(25):
        folder = copy(Path(place.spec), tmp_path / f"torn{part}")
        tear(folder, size * part // 24 + part % 3)
        replica = Replica(SqliteStore(folder, patience=10.0))
        await replica.start()
        for stream_id in ("s", "t"):
            reading = await replica.reading(stream_id)
            num = len(reading.entries)
            assert reading.entries == [str(number).encode() for number in range(num)]
            if reading.following is not None:
                assert reading.followed.header == stream_id.encode()
                reading.followed.close()
                await until_orphaned(replica, stream_id)
                assert await replica.claim(stream_id, 1) is not None
                assert await replica.all_of(stream_id) == [*reading.entries, CLAIMED]
            found.append(num)
        await replica.stop()
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == num_all
    assert len(set(found)) > 15


async def until_orphaned(replica: Replica, stream_id: str) -> None:
    await replica.reports.until(lambda: stream_id in replica.reports.orphans)


def size_of_log(folder: Path) -> int:
    (path,) = folder.glob("*.log-wal")
    return path.stat().st_size


def tear(folder: Path, num_bytes: int) -> None:
    (path,) = folder.glob("*.log-wal")
    with path.open("r+b") as file:
        file.truncate(num_bytes)


def damage(folder: str) -> None:
    for path in Path(folder).glob("*.log*"):
        path.write_bytes(b"damage" * 5000)


async def test_a_damaged_file_harms_no_other_stream(replicas: Replicas) -> None:
    killed = await replicas.new_process()
    await killed.ask("open", "damaged")
    await killed.kill()
    damage(replicas.place.spec)
    killed = await replicas.new_process()
    await killed.ask("open", "whole")
    await killed.kill()
    replica = await replicas.new()
    await replica.reports.until(lambda: replica.reports.orphans == {"whole": 1})
    assert await replica.claim("whole", 1) is not None
    assert (await replica.reading("damaged")).following is None
    assert await replica.store.exchange(b"") == {}
    assert not await replica.store.is_followed("whole")


async def test_a_log_survives_the_loss_of_the_claim_that_led_to_its_second_part(
    tmp_path: Path,
) -> None:
    """A power loss may take the claim from the first owner's file and leave what came of it."""
    async with replicas_of("sqlite", tmp_path) as replicas:
        first, second = await replicas.new_process(), await replicas.new_process()
        await first.ask("open", "s")
        await first.ask("append", "s", "1")
        await first.kill()
        before = copy(Path(replicas.place.spec), tmp_path / "before")
        await second.until(lambda: "s" in second.orphans)
        assert await second.ask("claim", 1, "s") == [True]
        await second.ask("append", "s", "2")
        await second.kill()
        restore(before, Path(replicas.place.spec))
        third = await replicas.new()
        await third.reports.until(lambda: "s" in third.reports.orphans)
        log = await third.claim("s", 1)
        assert log is not None
        await third.stored(log, b"3")
        assert await third.all_of("s") == [b"1", CLAIMED, b"3"]

        async def is_cleaned() -> bool:
            third.reports.orphans.clear()
            return len(paths_of(replicas.place.spec, "*.log")) == 2

        async with asyncio.timeout(LONG_S):
            while not await is_cleaned():  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.05)


def restore(before: Path, folder: Path) -> None:
    """Put back the files of replicas that were dead then."""
    for log in before.glob("*.log"):
        lease = log.with_suffix(".lease").name
        assert (folder / lease).exists()
        if (folder / f"{log.name}-wal").stat().st_size != size_of(before / f"{log.name}-wal"):
            for path in folder.glob(f"{log.name}*"):
                path.unlink()
            for path in before.glob(f"{log.name}*"):
                if not path.name.endswith("-shm"):
                    shutil.copy(path, folder)


def size_of(path: Path) -> int:
    return path.stat().st_size


# The folder does not grow.


async def test_files_stay_small_while_much_is_written(replicas: Replicas) -> None:
    """50 MB pass through; ended logs are removed, and the write-ahead log begins again."""
    replica = await replicas.new()
    store = replica.store
    assert isinstance(store, SqliteStore)
    for _ in range(20):
        logs = [store.open(f"s{number}-{_}", b"h" * 1000) for number in range(64)]
        for _step in range(100):
            store.append([(log, b"x" * 200) for log in logs])
        for log in logs[:-1]:
            store.end(log, b"end", 0.1)
        await replica.ended(logs[-1], b"end", 0.1)
        await asyncio.sleep(0.1)
        # A disk may take seconds for a sync. Meanwhile the log would only grow.
        while store._writer._is_checkpointing:  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.01)

    async def are_removed() -> bool:
        return (await replica.reading("s63-19")).following is None

    async with asyncio.timeout(LONG_S):
        while not await are_removed():  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.05)
    sizes = {path.suffix: size_of(path) for path in paths_of(replicas.place.spec, "*.log*")}
    assert sizes[".log-wal"] < 40 * MIB, sizes
    assert sizes[".log"] < 40 * MIB, sizes


async def test_files_of_the_dead_go_with_their_last_log(replicas: Replicas) -> None:
    first, second = await replicas.new_process(), await replicas.new_process()
    await first.ask("open", "a", "b")
    await first.kill()
    await second.until(lambda: len(second.orphans) == 2)
    assert await second.ask("claim", 1, "a") == [True]
    await second.ask("end", "a", "end")
    await second.kill()
    replica = await replicas.new()
    log = await replica.claim("b", 1)
    assert log is not None
    await replica.ended(log, b"end")
    assert len(paths_of(replicas.place.spec, "*.log")) == 3
    replica.store.drop("a")
    replica.store.drop("b")

    def names() -> set[str]:
        return {path.name.partition(".")[0] for path in paths_of(replicas.place.spec, "*")}

    async with asyncio.timeout(LONG_S):
        while names() != {"format", "lock", "shared", replica.store.replica}:  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.05)


class WatchedFiles(Files):
    """Files that note how many claimed segments were looked at."""

    num_looked_at = 0

    def abandoned(self, segments: Iterable[Segment], own: str | None) -> list[Segment]:
        looked_at = list(segments)
        self.num_looked_at += len(looked_at)
        return super().abandoned(looked_at, own)


async def test_claimed_logs_are_looked_at_only_until_they_go_on(replicas: Replicas) -> None:
    first, second = await replicas.new_process(), await replicas.new_process()
    ids = {f"s{number}" for number in range(20)}
    await first.ask("open", *sorted(ids))
    await first.kill()
    await second.until(lambda: set(second.orphans) == ids)
    assert await second.ask("claim", 1, *sorted(ids)) == [True] * len(ids)
    folder = Folder(Path(replicas.place.spec), LONG_S)
    files = WatchedFiles(folder, "NORMAL", "a boot", LONG_S)
    keeper = Keeper(folder, files)
    assert keeper.orphans(True, None) == []
    await second.kill()
    files.num_looked_at = 0
    assert set(keeper.orphans(True, None)) == {(each, 2) for each in ids}
    assert files.num_looked_at == len(ids)
    assert set(keeper.orphans(True, None)) == {(each, 2) for each in ids}
    assert files.num_looked_at == len(ids)
    files.close()


async def test_a_folder_that_is_removed_under_a_server_is_noticed_and_made_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "log"
    first, second = (Replica(SqliteStore(folder, patience=30)) for _ in range(2))
    await first.start()
    log = first.store.open("s", b"h")
    await first.stored(log, b"1")
    await first.store.put("name", b"old", 60)
    shutil.rmtree(folder)
    await first.reports.until(lambda: first.reports.num_unreachable == 1)
    await first.reports.until(lambda: first.reports.num_changes == 2)  # it came and went
    assert first.store.problem == ""
    await first.stored(log, b"too late")
    new = first.store.open("t", b"h")
    await first.stored(new, b"2")
    await second.start()
    assert (await second.reading("s")).following is None
    assert await second.all_of("t") == [b"2"]
    assert await second.store.get("name") is None
    await first.store.put("name", b"new", 60)
    assert await second.store.get("name") == b"new"
    await first.stop()
    await second.stop()
