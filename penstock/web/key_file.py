"""The file of keys: reading it, with the line of each mistake.

In: a TOML file with a table `[keys.NAME]` for each owner. Out: keys. A mistake raises StartError,
which names the line and never repeats the file's content. Not known here: when the file is read
(see `keys.KeyRing`), and how it is changed (see `key_edits`).
"""

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from penstock.errors import StartError
from penstock.stream.quotas import Owner, OwnerLimits
from penstock.web.keys import (
    MAX_KEY_CHARACTERS,
    MIN_KEY_CHARACTERS,
    Key,
    KeyRing,
    id_of,
    is_name,
)

HASH_PREFIX = "sha256:"
_PRINTS_TABLE = "`penstock key NAME` prints a table to put into it."

Hash = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]


class Entry(BaseModel):
    """The table of one owner in a file of keys.

    An owner can have several keys, so that a new one can replace an old one without a break. If the
    list of hashes is empty, the owner's keys are revoked.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    hash: Hash | list[Hash]
    admin: bool = False
    expires: AwareDatetime | None = None
    max_streams: Annotated[int, Field(ge=1)] | None = None
    max_resumable: Annotated[int, Field(ge=0)] | None = None
    max_retained_bytes: Annotated[int, Field(ge=0)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    @property
    def hashes(self) -> list[str]:
        """Return the hashes of the owner's keys."""
        return [self.hash] if isinstance(self.hash, str) else self.hash

    def limits(self) -> OwnerLimits:
        """Return the owner's limits."""
        return OwnerLimits(
            self.max_streams, self.max_resumable, self.max_retained_bytes, self.tokens_per_minute
        )


def key_ring(api_keys: Iterable[str], admin_keys: Iterable[str], path: str) -> KeyRing:
    """Return the keys given as settings plus the keys in the file `path`. Raises StartError."""
    # A name in a file never has a "#", so these names are free.
    given = [
        *(_given_key(key, f"#{number}", is_admin=False) for number, key in enumerate(api_keys, 1)),
        *(
            _given_key(key, f"#admin-{number}", is_admin=True)
            for number, key in enumerate(admin_keys, 1)
        ),
    ]
    if not given and not path:
        return KeyRing()
    ring = KeyRing(lambda: [*given, *(read_keys(Path(path)) if path else ())])
    if not ring:
        raise StartError(
            "The file of keys has no key, so every request would be refused.", _PRINTS_TABLE
        )
    return ring


def _given_key(key: str, name: str, *, is_admin: bool) -> Key:
    if not re.fullmatch(r"[\x21-\x7e]+", key) or not (
        MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS
    ):
        raise StartError(
            f"A key must have {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} letters, digits and"
            " punctuation characters, and no spaces.",
            "`penstock key` makes one.",
        )
    digest = hashlib.sha256(key.encode()).digest()
    owner = Owner(f"key {name}", is_closed=True, is_admin=is_admin, key_id=id_of(digest))
    return Key(digest, owner)


def read_keys(path: Path) -> list[Key]:
    """Return the keys in a file. Raises StartError."""
    keys: dict[bytes, Key] = {}
    for name, entry in read_entries(path).items():
        expires = math.inf if entry.expires is None else entry.expires.timestamp()
        for each in entry.hashes:
            digest = bytes.fromhex(each.removeprefix(HASH_PREFIX))
            owner = Owner(
                f"key {name}",
                entry.limits(),
                is_closed=True,
                is_admin=entry.admin,
                key_id=id_of(digest),
            )
            keys[digest] = Key(digest, owner, expires)
    return list(keys.values())


def read_entries(path: Path) -> dict[str, Entry]:
    """Return the tables in a file by name; at least one. Raises StartError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartError(
            f"The file of keys cannot be read: {error.strerror}.", _PRINTS_TABLE
        ) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StartError(f"In line {line} of the file of keys: it is not UTF-8.") from None
    return entries_of(text)


def entries_of(text: str) -> dict[str, Entry]:
    """Return the tables in the text of a file by name; at least one. Raises StartError."""
    tables = _parsed(text)
    keys = tables.pop("keys", {})
    if tables or not isinstance(keys, dict):
        raise StartError(
            f"In line {_line_of(text, next(iter(tables), 'keys'))} of the file of keys: a file of"
            " keys has a table [keys.NAME] for each key, and nothing else.",
            "`penstock key NAME` prints such a table.",
        )
    if not keys:
        raise StartError("The file of keys is empty.", _PRINTS_TABLE)
    entries = {name: _entry_of(text, name, table) for name, table in keys.items()}
    _check_hashes(text, entries)
    return entries


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The rest of the message may repeat what the file says.
        found = re.search(r"at line (\d+)", str(error))
        line = found[1] if found else text.rstrip("\n").count("\n") + 1
    raise StartError(f"In line {line} of the file of keys: it is not TOML.", _PRINTS_TABLE)


def _entry_of(text: str, name: str, table: object) -> Entry:
    if not is_name(name):
        raise StartError(
            f"In line {_line_of(text, name)} of the file of keys: a key's name may only have"
            " letters, digits, '.', '_' and '-'.",
            "`penstock key NAME` prints a valid table.",
        )
    try:
        return Entry.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        known = ", ".join(Entry.model_fields)
        place = f"{field} of {name}" if field in Entry.model_fields else f"a field of {name}"
        raise StartError(
            f"In line {_line_of(text, name, field)} of the file of keys: {place} is not valid.",
            f"{first['msg']}. The fields are: {known}.",
        ) from None


def _check_hashes(text: str, entries: dict[str, Entry]) -> None:
    """Raise StartError if a key is in the file twice: it can have only one owner."""
    seen: set[str] = set()
    for name, entry in entries.items():
        for each in entry.hashes:
            if each in seen:
                raise StartError(
                    f"In line {_line_of(text, name)} of the file of keys: a hash of {name} is in"
                    " the file before."
                )
            seen.add(each)


def header_of(name: str) -> re.Pattern[str]:
    """Return the pattern of the line that begins the table of `name`."""
    quoted = re.escape(name)
    spellings = rf'"{quoted}"|\'{quoted}\'' + ("" if "." in name else f"|{quoted}")
    return re.compile(rf"^[ \t]*\[[ \t]*keys[ \t]*\.[ \t]*(?:{spellings})[ \t]*\].*\n?", re.M)


def _line_of(text: str, name: str, field: str = "") -> int:
    """Return the line of a table, or of a field in it, or of the first line that names it."""
    begin = 0
    if header := header_of(name).search(text):
        begin = header.start()
        rest = text[header.end() :]
        if field and (found := re.search(rf"^[ \t]*{re.escape(field)}[ \t]*=", rest, re.M)):
            begin = header.end() + found.start()
    elif (at := text.find(name)) >= 0:
        begin = at
    return text.count("\n", 0, begin) + 1
