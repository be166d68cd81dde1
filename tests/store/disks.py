"""Small disks that can be filled: a tmpfs of a few kilobytes. Only root can make one."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A small disk with a ballast file in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def _ballast(self) -> Path:
        return self.path / "lost+found"  # what stands for the disk's own; no store minds it

    def fill(self, but: int = 0) -> None:
        """Fill the disk, except for `but` bytes."""
        self.empty()
        free = os.statvfs(self.path)
        num_bytes = max(free.f_bavail * free.f_frsize - but, 0)
        (self._ballast / "ballast").write_bytes(b"\0" * num_bytes)

    def grow(self, num_bytes: int) -> None:
        """Make the disk this large."""
        resized = f"remount,size={num_bytes}"
        subprocess.run(["mount", "-o", resized, str(self.path)], check=True)

    def empty(self) -> None:
        """Remove what fills it."""
        self._ballast.mkdir(exist_ok=True)
        (self._ballast / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[Disk]:
    """Mount a disk of so many bytes; skip the test where that is not allowed."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
