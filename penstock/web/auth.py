"""Keys, and whose a request is.

In: a request's head. Out: an owner, or the problem for which there is none. Keys are kept as their
SHA-256 and nothing else: a key holds 256 random bits (see `new_key`), so nobody can try all that
there are, and a slow hash as for passwords would only slow down every request.

Without keys everybody may do everything, and owners are the addresses that requests come from.
"""

import functools
import hashlib
import hmac
import ipaddress
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import Problem, StartError
from penstock.stream.quotas import Owner, OwnerLimits
from penstock.web.access import OWNER
from penstock.web.problems import problem_for

KEY_PREFIX = "psk_"
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 512

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BEARER = re.compile(rb"Bearer +([\x21-\x7e]{1,%d})" % MAX_KEY_CHARACTERS, re.IGNORECASE)
# What a page and a load balancer need before there is a key.
_OPEN_PATHS = ("/", "/health", "/health/live", "/health/ready")
_OPEN_PREFIX = "/page/"
# What shows all that is going on.
_ADMIN_PATHS = ("/metrics",)


@dataclass(frozen=True)
class Key:
    """A key that opens the door: its hash, and who has it."""

    digest: bytes
    owner: Owner


class KeyRing:
    """The keys there are. `read` reads them again: those of a file may have changed.

    Without `read` there is no door (`is_open`). With it there is one, though it may give no keys:
    then nobody comes in.
    """

    def __init__(self, read: Callable[[], Iterable[Key]] | None = None) -> None:
        self.is_open = read is None
        self._read = read or tuple
        self._owners: dict[bytes, Owner] = {}
        self.reload()

    def __len__(self) -> int:
        return len(self._owners)

    def reload(self) -> None:
        """Read them again. Raises StartError, and keeps those that it had."""
        self._owners = {key.digest: key.owner for key in self._read()}

    def owner_of(self, key: bytes) -> Owner | None:
        """Who has this key. Nothing that can be measured here depends on how much of a guess is
        right: what is looked up and compared is the guess's hash, which nobody can steer."""
        digest = hashlib.sha256(key).digest()
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, digest):
                return owner
        return None


class KeyCheck:
    """ASGI middleware: says whose each request is, and refuses those that must have a key."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = self._check(scope)
            if isinstance(answer, Problem):
                await problem_for(scope, answer)(scope, receive, send)
                return
            scope[OWNER] = answer
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Owner | Problem:
        if self._keys.is_open:
            return _owner_at_address(scope)
        # Never the URL that a client may have dressed up: what the routes are matched with.
        path = scope["path"]
        if path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX):
            return _owner_at_address(scope)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) > 1:
            return Problem("bad_authorization", "There is more than one Authorization header.")
        found = _BEARER.fullmatch(given[0]) if given else None
        owner = self._keys.owner_of(found[1]) if found else None
        if owner is None:
            return Problem(
                "invalid_api_key",
                "This server wants a key that it knows: Authorization: Bearer, and the key.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if path in _ADMIN_PATHS and not owner.is_admin:
            return Problem("admin_only", "This takes the key of an admin.")
        return owner


def owner_of(scope: Scope) -> Owner:
    """Whose this request is."""
    owner: Owner = scope[OWNER]
    return owner


def _owner_at_address(scope: Scope) -> Owner:
    client = scope.get("client")
    return Owner("address " + _network(client[0] if client else ""))


@functools.lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """The part of an address that nobody has a thousand of: of IPv6, what one line is given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


# Where keys come from.


class _Entry(BaseModel):
    """A key's table in a file of keys."""

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
    """A key that nobody can guess."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """As a file of keys writes it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def is_name(name: str) -> bool:
    """Whether a key can be called so."""
    return _NAME.fullmatch(name) is not None


def key_table(name: str, key: str, *, is_admin: bool) -> str:
    """What a file of keys has of a key."""
    admin = "\nadmin = true" if is_admin else ""
    quoted = f'"{name}"' if "." in name else name
    return f'[keys.{quoted}]\nhash = "{hash_of(key)}"{admin}'


def key_ring(api_keys: Iterable[str], admin_keys: Iterable[str], path: str) -> KeyRing:
    """The keys given as settings and those in a file of keys. Raises StartError."""
    # No name in a file has a "#": these are nobody else's.
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
            "There is no key in the file of keys: nobody could come in.",
            "`penstock key NAME` prints what belongs in it.",
        )
    return ring


def _given_key(key: str, name: str, *, is_admin: bool) -> Key:
    if not re.fullmatch(r"[\x21-\x7e]+", key) or not (
        MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS
    ):
        raise StartError(
            f"A key has {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} letters, digits and signs,"
            " and no spaces.",
            "`penstock key` makes one.",
        )
    owner = Owner(f"key {name}", is_closed=True, is_admin=is_admin)
    return Key(hashlib.sha256(key.encode()).digest(), owner)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises StartError. Nothing of what stands there is repeated."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not TOML"
        raise StartError(
            f"The file of keys cannot be read: {reason}.",
            "`penstock key NAME` prints what belongs in it.",
        ) from None
    keys = tables.pop("keys", {})
    if tables or not isinstance(keys, dict):
        raise StartError(
            "A file of keys has a table [keys.NAME] for each key, and nothing else.",
            "`penstock key NAME` prints one.",
        )
    return [_key_of(name, table) for name, table in keys.items()]


def _key_of(name: str, table: object) -> Key:
    if not is_name(name):
        raise StartError(
            "A key's name in the file of keys has other signs than letters, digits, '.', '_', '-'.",
            "`penstock key NAME` prints a table that is right.",
        )
    try:
        return _Entry.model_validate(table).key(name)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        known = ", ".join(_Entry.model_fields)
        raise StartError(
            f"In the file of keys, {place or 'the table'} of {name} is not valid.",
            f"{first['msg']}. There are: {known}.",
        ) from None
