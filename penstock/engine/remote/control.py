"""Breaks the texts of control tokens in a conversation, for llama.cpp's server.

In: a request, and the upstream that renders its conversation. Out: the request, in which an
invisible character stands in each text that the server would turn into a control token. So a user
cannot write the end of a turn. The server does not list its control tokens. But it cuts a text with
them and without them: where both are the same, the text has none.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.engine.control import ControlTokens
from penstock.engine.remote.failures import RefusedError
from penstock.engine.remote.pool import Upstream
from penstock.engine.remote.probing import Tokens, post
from penstock.request import Message, Request

# A broken text can only contain another control token if one is within the other.
MAX_ROUNDS = 3


class _Pieces(msgspec.Struct):
    class Token(msgspec.Struct):
        id: int
        piece: Any  # bytes that are no text come as numbers

    tokens: tuple[Token, ...]


async def without_control_texts(upstream: Upstream, request: Request) -> Request:
    """Return the request for this upstream. Raises UpstreamError and RefusedError."""
    profile, messages = upstream.profile, request.messages
    if profile is None or profile.kind != "llamacpp" or messages is None:
        return request
    for _ in range(MAX_ROUNDS):
        found = await _found_in(upstream, messages)
        if not found:
            break
        control = ControlTokens(dict.fromkeys(found, 0))
        messages = tuple(_broken(each, control) for each in messages)
    else:
        raise RefusedError(400, "")
    if messages is request.messages:
        return request
    return msgspec.structs.replace(request, messages=messages)


async def _found_in(upstream: Upstream, messages: Sequence[Message]) -> set[str]:
    """Return the texts in the messages that become control tokens, and perhaps texts beside them.

    Raises RefusedError if such a text has only one character.
    """
    texts: list[str] = []
    for message in messages:
        texts += (message.content, message.reasoning)
        texts += (call.arguments for call in message.tool_calls)
    body: dict[str, Any] = {"content": "\n".join(texts), "add_special": False}
    marked, plain = await asyncio.gather(
        *(
            post(upstream.client, "/tokenize", {**body, "parse_special": parses}, Tokens)
            for parses in (True, False)
        )
    )
    if marked.tokens == plain.tokens:
        return set()
    named = await post(upstream.client, "/tokenize", {**body, "with_pieces": True}, _Pieces)
    known = set(plain.tokens)
    new = {each.piece for each in named.tokens if each.id not in known}
    found = {piece for piece in new if isinstance(piece, str) and len(piece) > 1}
    if not found:
        raise RefusedError(400, "")
    return found


def _broken(message: Message, control: ControlTokens) -> Message:
    return msgspec.structs.replace(
        message,
        content=control.break_in(message.content),
        reasoning=control.break_in(message.reasoning),
        tool_calls=tuple(
            msgspec.structs.replace(call, arguments=control.break_in(call.arguments))
            for call in message.tool_calls
        ),
    )
