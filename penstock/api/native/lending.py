"""Lends a stream to a program without a key: makes tokens, and checks those that come back."""

from starlette.types import Scope

from penstock.errors import Problem
from penstock.stream.registry import Streams
from penstock.web.access import OWNER
from penstock.web.auth import owner_of
from penstock.web.stream_tokens import STREAM_TOKEN, StreamToken, invalid_token, token_for

# A token says nothing of a stream that it does not open, not even whether there is one.
_CLOSED = ("stream_not_found", "not_resumable", "history_lost")


async def make_token(scope: Scope, stream_id: str, streams: Streams) -> str:
    """Return a token for a stream that the request's owner may read. Raises Problem.

    Without keys, the server makes tokens too, and no reader needs one.
    """
    owner = owner_of(scope)
    secret = (await streams.find_anywhere(stream_id, owner)).record.token_secret
    if not secret:
        raise Problem(
            "not_resumable",
            "An earlier version of the server opened this stream, so there is no token for it.",
        )
    return token_for(secret, owner.key_id)


async def check_token(scope: Scope, stream_id: str, streams: Streams) -> None:
    """If the request has a token, make the owner of the token's key its owner. Raises Problem.

    A token never lets its holder do more than its key may: an admin's token needs an admin's key.
    """
    token: StreamToken | None = scope.get(STREAM_TOKEN)
    if token is None:
        return
    try:
        stream = await streams.find_anywhere(stream_id, token.owner)
    except Problem as problem:
        raise invalid_token() if problem.code in _CLOSED else problem from None
    if not token.opens(stream.record.token_secret):
        raise invalid_token()
    scope[OWNER] = token.owner
