"""Tokens of streams: a token in a URL opens one stream for reading, because no key is sent there.

A browser's `EventSource` can send no headers. So the owner of a key asks for a token and puts it
into the URL: `GET /streams/{id}?token=KEY_ID.PROOF`. The proof is an HMAC of the key's id under a
secret that is stored in the stream's record, so every server that can read the stream can check it,
and a token ends with its stream. Nothing else is kept of a token.

Not known here: streams. `auth` finds the token in a request before the key check refuses it, and
the route lets nobody read before it has called `StreamToken.opens`.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from starlette.types import Scope

from penstock.errors import Problem
from penstock.stream.quotas import Owner

STREAM_TOKEN = "penstock.stream_token"  # noqa: S105 - a name, no secret
"""The key of the request's `StreamToken` in its scope. Without it, the request came with a key."""

# Exactly what `token_for` makes: no character of it is ever percent-encoded.
_TOKEN = re.compile(rb"([0-9a-f]{12})\.([A-Za-z0-9_-]{43})")
_PATH = re.compile(r"/streams/[^/]+")
_FIELD = b"token="


@dataclass(frozen=True)
class StreamToken:
    """A token that a request brings; `owner` is the owner of the key that it names.

    The proof has not been checked yet.
    """

    owner: Owner
    proof: str

    def opens(self, secret: bytes) -> bool:
        """Return True if the token belongs to the stream with this secret.

        The comparison takes the same time however much of a guess is right.
        """
        return bool(secret) and hmac.compare_digest(
            self.proof, _proof_of(secret, self.owner.key_id)
        )


def new_secret() -> bytes:
    """Return the secret of a new stream: 256 random bits."""
    return secrets.token_bytes(32)


def token_for(secret: bytes, key_id: str) -> str:
    """Return the token that lets the key `key_id` read the stream with this secret."""
    return f"{key_id}.{_proof_of(secret, key_id)}"


def offered_token(scope: Scope) -> tuple[str, str] | None:
    """Return the key's id and the proof of the token that a request brings.

    Returns None if the request has no token, or is no `GET` of a stream: a token opens nothing
    else. Raises Problem if the token is malformed or the request has several.
    """
    query: bytes = scope["query_string"]
    if _FIELD not in query or scope["method"] != "GET" or not _PATH.fullmatch(scope["path"]):
        return None
    given = [each for each in query.split(b"&") if each.startswith(_FIELD)]
    if not given:
        return None
    found = _TOKEN.fullmatch(given[0].removeprefix(_FIELD))
    if len(given) > 1 or found is None:
        raise invalid_token()
    return found[1].decode(), found[2].decode()


def invalid_token() -> Problem:
    """Return the one problem of all tokens that open nothing: it tells a stranger nothing."""
    return Problem(
        "invalid_stream_token",
        "This token does not open this stream. Its key may have been revoked or have expired, or"
        " the stream is no longer kept. Ask for a new one: POST /streams/{id}/token, with a key.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _proof_of(secret: bytes, key_id: str) -> str:
    digest = hmac.digest(secret, key_id.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
