"""Other releases of Penstock: any commit, installed in an environment of its own.

In: a commit. Out: the command that runs its `penstock`, and the formats that it stores.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support.environments import environment, pip_install

REPOSITORY = Path(__file__).resolve().parents[2]
FORMATS = (
    "penstock/store/sqlite/folder.py",
    "penstock/store/redis/layout.py",
    "penstock/stream/entries.py",
)
"""The files that name the formats, in the order of `Release`."""

FORMAT = re.compile(r'^(?:FORMAT_VERSION|FORMAT) = "?(\w+)"?$', re.MULTILINE)
SHAPES = (
    *FORMATS,
    "penstock/events.py",
    "penstock/request.py",
    "penstock/store/redis/scripts.py",
    "penstock/store/sqlite/tables.py",
    "penstock/stream/record.py",
)
"""The files that define what is stored."""


class Release(NamedTuple):
    """A release that can be run. The formats are those of its own source."""

    name: str
    program: str
    folder_format: str
    redis_format: str
    entry_format: str


def git(*words: str) -> str:
    """Return what git says. Raises CalledProcessError."""
    said = subprocess.run(["git", *words], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    return said.stdout.decode().strip()


def before_the_newest_shape() -> str:
    """Return the commit before the newest change of what is stored."""
    return git("rev-parse", git("log", "-1", "--format=%H", "--", *SHAPES) + "^")


def this_release(program: str) -> Release:
    """Return the release in the working tree, which `program` runs."""
    formats = [_format(name, (REPOSITORY / name).read_text()) for name in FORMATS]
    return Release("this release", program, *formats)


def release_of(commit: str) -> Release:
    """Install the release of a commit, unless it is installed, and return it."""
    full = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    folder = environment("release", full, lambda folder: _install(full, folder))
    formats = [_format(name, git("show", f"{full}:{name}")) for name in FORMATS]
    name = git("log", "-1", "--format=%h (%cd)", "--date=short", full)
    return Release(name, f"{folder}/bin/penstock", *formats)


def _format(name: str, source: str) -> str:
    found = FORMAT.search(source)
    assert found is not None, f"{name} says no format"
    return found[1]


def _install(commit: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as source:
        archive = Path(source, "source.tar")
        git("archive", f"--output={archive}", commit)
        subprocess.run(["tar", "-xf", str(archive), "-C", source], check=True)
        pip_install(folder, f"{source}[redis]")
