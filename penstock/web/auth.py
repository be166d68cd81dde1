"""Finds the owner of each request, and refuses requests that need a key and have none.

With keys, a request's owner is its key. Without keys everybody may use the server, and the owner is
the address that the request comes from.
"""

import functools
import re

from starlette.types import Scope

from penstock.errors import Problem
from penstock.stream.quotas import Owner
from penstock.web.access import OWNER
from penstock.web.addresses import network_of
from penstock.web.keys import MAX_KEY_CHARACTERS, KeyRing
from penstock.web.stream_tokens import STREAM_TOKEN, StreamToken, invalid_token, offered_token

_BEARER = re.compile(rb"Bearer +([\x21-\x7e]{1,%d})" % MAX_KEY_CHARACTERS, re.IGNORECASE)
# The page and load balancers need these before there is a key.
_OPEN_PATHS = (
    "/",
    "/text",
    "/docs",
    "/live",
    "/health",
    "/health/live",
    "/health/ready",
    "/v1/health",
    "/ping",
)
_OPEN_PREFIX = "/page/"
# These show the activity of all owners.
_ADMIN_PATHS = ("/metrics", "/live/events")


class KeyCheck:
    """Notes each request's owner, and refuses requests without a valid key."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def problem(self, scope: Scope) -> Problem | None:
        """Note the owner in the scope, or return the problem for which a request is refused."""
        try:
            found = self._check(scope)
        except Problem as refusal:
            return refusal
        if isinstance(found, Problem):
            return found
        scope[OWNER] = found
        return None

    def _admit(self, scope: Scope, key_id: str, proof: str) -> Owner | Problem:
        """Note the token of a stream, whose proof the route checks (see `stream_tokens`).

        Until then, the request's owner is its address, to which no stream of a key belongs. A token
        whose key is not accepted is refused here, before anyone looks for the stream.
        """
        owner = self._keys.owner_with(key_id)
        if owner is None:
            return invalid_token()
        scope[STREAM_TOKEN] = StreamToken(owner, proof)
        return _owner_at_address(scope)

    def _check(self, scope: Scope) -> Owner | Problem:
        if self._keys.is_open:
            return _owner_at_address(scope)
        # The path that routes are matched with, never the raw URL, which a client can disguise.
        path = scope["path"]
        if not needs_key(path):
            return _owner_at_address(scope)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        found = [match[1] for value in given if (match := _BEARER.fullmatch(value))]
        keys = [value for name, value in scope["headers"] if name == b"x-api-key" and value]
        if len(given) > 1 or len(keys) > 1 or len({*found, *keys}) > 1:
            return Problem(
                "bad_authorization",
                "The request has several API keys. Send one, in Authorization or in X-API-Key.",
            )
        if not found and not keys and (offered := offered_token(scope)):
            return self._admit(scope, *offered)
        key = (found + keys + [b""])[0][: MAX_KEY_CHARACTERS + 1]  # no key is that long
        owner = self._keys.owner_of(key)
        if owner is None:
            return Problem(
                "invalid_api_key",
                "This server needs a valid API key. Send the header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if problem := self._keys.problem_of(owner):
            return problem
        if needs_admin_key(path) and not owner.is_admin:
            return Problem("admin_only", "This address needs an admin key.")
        return owner


def needs_key(path: str) -> bool:
    """Return True if this path needs a key on a server that uses keys."""
    return path not in _OPEN_PATHS and not path.startswith(_OPEN_PREFIX)


def needs_admin_key(path: str) -> bool:
    """Return True if this path needs an admin key on a server that uses keys."""
    return path in _ADMIN_PATHS


def owner_of(scope: Scope) -> Owner:
    """Return the owner of this request."""
    owner: Owner = scope[OWNER]
    return owner


def _owner_at_address(scope: Scope) -> Owner:
    client = scope.get("client")
    return _owner_of_address(client[0] if client else "")


@functools.lru_cache(maxsize=1024)
def _owner_of_address(address: str) -> Owner:
    return Owner("address " + network_of(address))
