"""A folder for logs that cannot be used is named at the start, with the next step."""

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import StartError
from penstock.store.sqlite.folder import HeldLock
from penstock.store.sqlite.store import SqliteStore
from tests.store.disks import small_disk
from tests.store.stores import Replica

NOBODY = 65534


def paths_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def log_files_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.log"))


async def refused(folder: Path, patience: float = 10.0) -> str:
    """Return the message of a start that must fail, with its hint."""
    replica = Replica(SqliteStore(folder, patience=patience))
    with pytest.raises(StartError) as raised:
        await replica.start()
    assert raised.value.hint
    return f"{raised.value} {raised.value.hint}"


async def test_a_folder_is_made_for_its_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "log"
    replica = Replica(SqliteStore(folder, patience=10.0))
    old = os.umask(0)
    try:
        await replica.start()
        await replica.stored(replica.store.open("s", b"private"), b"private")
        await replica.store.put("name", b"private", 60)
    finally:
        os.umask(old)
    assert mode_of(folder) == 0o700
    modes = {path.name: mode_of(path) for path in paths_in(folder)}
    assert len(modes) > 6  # the write-ahead logs are among them
    assert set(modes.values()) == {0o600}, modes
    await replica.stop()


async def test_an_empty_folder_of_a_new_disk_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    set_mode(tmp_path, 0o755)
    replica = Replica(SqliteStore(tmp_path, patience=10.0))
    await replica.start()
    assert mode_of(tmp_path) == 0o700
    await replica.stop()


async def test_two_replicas_may_take_an_empty_folder_at_once(tmp_path: Path) -> None:
    """Before anything else, each makes a file by which it tries the locks of the file system."""
    (tmp_path / "4711-123456789.trial").touch()
    replica = Replica(SqliteStore(tmp_path, patience=10.0))
    await replica.start()
    await replica.stop()


async def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in await refused(tmp_path / "file")
    assert "is not a folder" in await refused(tmp_path / "file" / "log")


async def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    set_mode(tmp_path, 0o755)
    assert "holds other files" in await refused(tmp_path)
    assert [path.name for path in paths_in(tmp_path)] == ["thesis.tex"]
    assert mode_of(tmp_path) == 0o755


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Run as a user who may not write everywhere."""
    user = os.geteuid()
    if user == 0:
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)


@pytest.mark.usefixtures("as_nobody")
async def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    if os.geteuid() != NOBODY:
        set_mode(tmp_path, 0o500)
    assert "may not write" in await refused(tmp_path / "log")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("penstock log format 2\n", "2"), ("", "unknown"), ("<b>\n", "unknown"), ("2", "2")],
)
async def test_another_format_is_refused(tmp_path: Path, text: str, shown: str) -> None:
    (tmp_path / "format").write_text(text)
    message = await refused(tmp_path)
    assert f"another format ({shown}; this Penstock reads 1)" in message
    assert "<b>" not in message
    assert (tmp_path / "format").read_text() == text


async def test_a_folder_that_another_process_holds_for_too_long_is_named(tmp_path: Path) -> None:
    first = Replica(SqliteStore(tmp_path, patience=10.0))
    await first.start()
    lock = HeldLock(tmp_path / "lock")
    assert "holds the folder" in await refused(tmp_path, patience=0.1)
    lock.release()
    second = Replica(SqliteStore(tmp_path, patience=10.0))
    await second.start()
    await second.stop()
    await first.stop()


async def test_a_disk_that_is_full_at_any_moment_of_the_start_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        for num_free in range(0, 1024, 16):
            disk.fill(but=num_free * 1024)
            replica = Replica(SqliteStore(disk.path / "log", patience=0.5))
            try:
                await replica.start()
            except StartError as error:
                assert "is full" in str(error), num_free  # noqa: PT017 - how often is unknown
                assert "Free some space" in error.hint, num_free  # noqa: PT017
                assert not log_files_in(disk.path / "log")
            else:
                await replica.stop()
                break
        assert 32 <= num_free < 1008


async def test_a_damaged_shared_file_is_named(tmp_path: Path) -> None:
    replica = Replica(SqliteStore(tmp_path, patience=10.0))
    await replica.start()
    await replica.stop()
    (tmp_path / "shared.db").write_bytes(b"no database" * 1000)
    assert "is damaged" in await refused(tmp_path)


async def test_what_a_replica_left_that_died_at_its_start_is_removed(tmp_path: Path) -> None:
    first = Replica(SqliteStore(tmp_path, patience=10.0))
    await first.start()
    names = {path.name for path in paths_in(tmp_path)}
    for suffix in ("lease", "alive", "new", "new-wal"):
        (tmp_path / f"dead.0.{suffix}").touch()
    second = Replica(SqliteStore(tmp_path, patience=10.0))
    await second.start()
    left = {path.name for path in paths_in(tmp_path)}
    assert names <= left
    assert not [name for name in left if name.startswith("dead")]
    await asyncio.gather(first.stop(), second.stop())
