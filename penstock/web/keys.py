"""API keys: what a key is, and which keys the server accepts now.

Only the SHA-256 of a key is kept. A key made by `new_key` holds 256 random bits, so nobody can try
all keys, and a slow hash (as for passwords) would only slow down every request. `key_file` reads
the keys from a file, `key_edits` changes the file.
"""

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from penstock.errors import Problem
from penstock.stream.quotas import Owner

KEY_PREFIX = "psk_"
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 512

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Key:
    """A key's hash, its owner, and the time it expires, in seconds since 1970 (or never)."""

    digest: bytes
    owner: Owner
    expires: float = math.inf


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
        self._by_id: dict[str, Owner] = {}
        self._expiries: dict[str, float] = {}
        self.next_expiry = math.inf
        """When the next key expires, in seconds since 1970."""
        self.reload()

    def __len__(self) -> int:
        return len(self._owners)

    def reload(self) -> None:
        """Read the keys again. Raises StartError, and then keeps the present keys."""
        keys = list(self._read())
        self._owners = {key.digest: key.owner for key in keys}
        self._by_id = {key.owner.key_id: key.owner for key in keys}
        self._expiries = {key.owner.key_id: key.expires for key in keys}
        self.find_next_expiry()

    def find_next_expiry(self) -> None:
        """Set `next_expiry` to a time in the future."""
        now = time.time()
        self.next_expiry = min((e for e in self._expiries.values() if e > now), default=math.inf)

    def owner_of(self, key: bytes) -> Owner | None:
        """Return the owner of `key`, or None if it is unknown; see also `problem_of`.

        The time this takes says nothing about how much of a guess is right: the lookup compares
        the guess's hash, which nobody can steer.
        """
        digest = hashlib.sha256(key).digest()
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, digest):
                return owner
        return None

    def owner_with(self, key_id: str) -> Owner | None:
        """Return the owner of the key with this id, or None unless the key is accepted now."""
        owner = self._by_id.get(key_id)
        return None if owner is None or self.problem_of(owner) else owner

    def problem_of(self, owner: Owner) -> Problem | None:
        """Return the problem for which a key that was known is no longer accepted, or None."""
        expires = self._expiries.get(owner.key_id)
        if expires == math.inf:
            return None
        if expires is None:
            return _unauthorized("revoked_api_key", "This API key has been revoked.")
        if expires <= time.time():
            return _unauthorized("expired_api_key", "This API key has expired.")
        return None


def _unauthorized(code: str, detail: str) -> Problem:
    return Problem(code, detail, headers={"WWW-Authenticate": "Bearer"})


async def watch_expiries(keys: KeyRing, on_expiry: Callable[[], None]) -> None:
    """Call `on_expiry` within a second after a key expires. Never returns."""
    while True:
        await asyncio.sleep(1)
        if time.time() >= keys.next_expiry:
            keys.find_next_expiry()
            on_expiry()


def new_key() -> str:
    """Return a new, unguessable key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return a key's hash as a file of keys contains it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def is_name(name: str) -> bool:
    """Return True if a key may have this name."""
    return _NAME.fullmatch(name) is not None


def id_of(digest: bytes) -> str:
    """Return the short name of a key in logs and lists, from which nobody can guess the key."""
    return digest.hex()[:12]


def key_table(name: str, key: str, *, is_admin: bool, expires: datetime | None = None) -> str:
    """Return the TOML table of a key for a file of keys."""
    quoted = f'"{name}"' if "." in name else name
    lines = [f"[keys.{quoted}]", f'hash = "{hash_of(key)}"']
    if is_admin:
        lines.append("admin = true")
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join(lines)
