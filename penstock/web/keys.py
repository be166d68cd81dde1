"""API keys: making them, reading them from a file, and finding a key's owner.

Only the SHA-256 of a key is kept. A key made by `new_key` holds 256 random bits, so nobody can try
all keys, and a slow hash (as for passwords) would only slow down every request.
"""

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.errors import StartError
from penstock.stream.quotas import Owner, OwnerLimits

KEY_PREFIX = "psk_"
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 512

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Key:
    """A key's hash and its owner."""

    digest: bytes
    owner: Owner


class KeyRing:
    """The keys that the server accepts.

    `read` returns the keys; `reload` calls it again, since a file of keys may have changed. Without
    `read` the server needs no keys (`is_open`). With it the server needs keys even if `read`
    returns none: then every request is refused.
    """

    def __init__(self, read: Callable[[], Iterable[Key]] | None = None) -> None:
        self.is_open = read is None
        self._read = read or tuple
        self._owners: dict[bytes, Owner] = {}
        self.reload()

    def __len__(self) -> int:
        return len(self._owners)

    def reload(self) -> None:
        """Read the keys again. Raises StartError, and then keeps the present keys."""
        self._owners = {key.digest: key.owner for key in self._read()}

    def owner_of(self, key: bytes) -> Owner | None:
        """Return the owner of `key`, or None if it is unknown.

        The time this takes says nothing about how much of a guess is right: the lookup compares
        the guess's hash, which nobody can steer.
        """
        digest = hashlib.sha256(key).digest()
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, digest):
                return owner
        return None


class _Entry(BaseModel):
    """The table of one key in a file of keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    hash: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    admin: bool = False
    max_streams: Annotated[int, Field(ge=1)] | None = None
    max_resumable: Annotated[int, Field(ge=0)] | None = None
    max_retained_bytes: Annotated[int, Field(ge=0)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    def key(self, name: str) -> Key:
        limits = OwnerLimits(
            self.max_streams, self.max_resumable, self.max_retained_bytes, self.tokens_per_minute
        )
        digest = bytes.fromhex(self.hash.removeprefix("sha256:"))
        return Key(digest, Owner(f"key {name}", limits, is_closed=True, is_admin=self.admin))


def new_key() -> str:
    """Return a new, unguessable key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return a key's hash as a file of keys contains it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def is_name(name: str) -> bool:
    """Return True if a key may have this name."""
    return _NAME.fullmatch(name) is not None


def key_table(name: str, key: str, *, is_admin: bool) -> str:
    """Return the TOML table of a key for a file of keys."""
    admin = "\nadmin = true" if is_admin else ""
    quoted = f'"{name}"' if "." in name else name
    return f'[keys.{quoted}]\nhash = "{hash_of(key)}"{admin}'


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
            "The file of keys has no key, so every request would be refused.",
            "`penstock key NAME` prints a table to put into it.",
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
    owner = Owner(f"key {name}", is_closed=True, is_admin=is_admin)
    return Key(hashlib.sha256(key.encode()).digest(), owner)


def read_keys(path: Path) -> list[Key]:
    """Read a file of keys. Raises StartError, which never repeats the file's content."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not TOML"
        raise StartError(
            f"The file of keys cannot be read: {reason}.",
            "`penstock key NAME` prints a table to put into it.",
        ) from None
    keys = tables.pop("keys", {})
    if tables or not isinstance(keys, dict):
        raise StartError(
            "A file of keys has a table [keys.NAME] for each key, and nothing else.",
            "`penstock key NAME` prints such a table.",
        )
    return [_key_of(name, table) for name, table in keys.items()]


def _key_of(name: str, table: object) -> Key:
    if not is_name(name):
        raise StartError(
            "A key's name in the file of keys may only have letters, digits, '.', '_' and '-'.",
            "`penstock key NAME` prints a valid table.",
        )
    try:
        return _Entry.model_validate(table).key(name)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        known = ", ".join(_Entry.model_fields)
        raise StartError(
            f"In the file of keys, {place or 'the table'} of {name} is not valid.",
            f"{first['msg']}. The fields are: {known}.",
        ) from None
