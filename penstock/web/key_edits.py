"""Changes of the file of keys: each one whole or not at all.

In: a path and a change. Out: the new file, which replaces the old one in a single step, so a server
that reads it meanwhile sees the old keys or the new ones. Comments, order and everything else in
the file stay. Not known here: the command line, and the server.
"""

import contextlib
import fcntl
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penstock.errors import StartError
from penstock.web.key_file import entries_of, header_of

_HASH = re.compile(r"^([ \t]*hash[ \t]*=[ \t]*)(\"[^\"\n]*\"|'[^'\n]*'|\[[^\]]*\])", re.M)
_NEXT_TABLE = re.compile(r"^[ \t]*\[", re.M)


def add_table(text: str, table: str) -> str:
    """Return the file's text with another table at its end."""
    if not text.strip():
        return table + "\n"
    return text + ("" if text.endswith("\n") else "\n") + "\n" + table + "\n"


def set_hashes(text: str, name: str, hashes: Sequence[str]) -> str:
    """Return the file's text with other hashes for `name`. Raises StartError."""
    wanted = tomllib.loads(text)
    wanted["keys"][name]["hash"] = list(hashes)
    changed = text
    if header := header_of(name).search(text):
        following = _NEXT_TABLE.search(text, header.end())
        end = following.start() if following else len(text)
        listed = ", ".join(f'"{each}"' for each in hashes)
        table = text[header.end() : end]
        table = _HASH.sub(lambda found: f"{found[1]}[{listed}]", table, count=1)
        changed = text[: header.end()] + table + text[end:]
    if not _is(changed, wanted):
        raise StartError(
            f"The table of {name} is not in the form that this command can change.",
            f"Change hash of {name} by hand.",
        )
    return changed


def _is(text: str, wanted: dict[str, object]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def change_file(path: Path, change: Callable[[str], str]) -> None:
    """Replace a file of keys by `change` of its text. Raises StartError, and then it stays.

    Two changes at the same time follow one another. A file that does not exist counts as empty and
    is made so that only its owner can read it.
    """
    path = path.resolve()  # a link stays a link
    try:
        with _locked(path.parent):
            text = path.read_bytes().decode() if path.exists() else ""
            changed = change(text)
            entries_of(changed)  # never write a file that the server refuses
            _replace(path, changed)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartError(f"The file of keys cannot be changed: {reason}.") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let nobody else change files of keys in this folder while the context is open."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)  # the new name must survive a crash as well
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            if path.exists():
                old = path.stat()
                os.fchmod(file.fileno(), old.st_mode & 0o7777)
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
