"""Engines' folders are removed with them, and those of killed servers by the next server."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.folders import ServerFolder, remove_left_behind


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of its own."""
    place = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    shutil.rmtree(place)


def test_a_folder_is_private_and_leaves_nothing(place: Path) -> None:
    folder = ServerFolder()
    first, second = folder.new(), folder.new()
    assert {first.parent, second.parent} == {folder.path}
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (first / "socket").touch()
    folder.clear()
    assert list(folder.path.iterdir()) == []
    folder.remove()
    assert list(place.iterdir()) == []


def test_only_what_a_killed_server_left_is_removed(place: Path) -> None:
    running = ServerFolder()
    code = "from penstock.folders import *; ServerFolder().new(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
    ) as other:
        while len(list(place.glob("penstock-server-*/1"))) < 1:
            pass
        remove_left_behind()
        assert len(list(place.iterdir())) == 2
        other.send_signal(signal.SIGKILL)
    (place / "penstock-server-file").touch()
    outside = place / "outside"
    outside.mkdir()
    (place / "penstock-server-link").symlink_to(outside)
    remove_left_behind()
    assert {each.name for each in place.iterdir()} == {
        running.path.name,
        "outside",
        "penstock-server-file",
        "penstock-server-link",
    }
    running.remove()
