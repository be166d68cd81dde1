"""The parts of OpenAI's objects, made from a stream's events.

Finish reasons are mapped here and nowhere else. `stop` and `length` are OpenAI's own. OpenAI has no
word for `cancelled` and `deadline`: they become `length`, OpenAI's word for an incomplete answer,
and the choice also has `"stop_reason": "cancelled"`. A choice that would end with `stop` ends with
`tool_calls` if it calls tools. The model's reasoning is in `reasoning_content`, next to `content`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from penstock.events import (
    Delta,
    Finish,
    PromptLogprobs,
    Reasoning,
    TokenLogprob,
    ToolCall,
    Usage,
)


def ending_fields(end: Finish, *, has_called: bool) -> dict[str, Any]:
    """Return the fields of a choice that say how it ended; `has_called`: it calls tools."""
    if has_called and end.reason == "stop":
        return {"finish_reason": "tool_calls"}
    if end.reason in ("cancelled", "deadline"):
        return {"finish_reason": "length", "stop_reason": end.reason}
    return {"finish_reason": end.reason}


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return the token counts under OpenAI's names."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def delta_fields(delta: Delta) -> dict[str, Any]:
    """Return the `delta` of a chat's chunk."""
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text}
    if isinstance(delta, ToolCall):
        called: dict[str, Any] = {"index": delta.number, "function": {"arguments": delta.text}}
        if delta.id:
            called = {"index": delta.number, **_call(delta.id, delta.name, delta.text)}
        return {"tool_calls": [called]}
    return {"content": delta.text}


def function_delta_fields(delta: Delta) -> dict[str, Any]:
    """Return the `delta` of a chat's chunk, with a call in `function_call`."""
    if not isinstance(delta, ToolCall):
        return delta_fields(delta)
    named = {"name": delta.name} if delta.id else {}
    return {"function_call": {**named, "arguments": delta.text}}


def message_fields(deltas: Sequence[Delta]) -> dict[str, Any]:
    """Return the `message` of a whole chat: its text, reasoning and tool calls.

    Its content is null if there is reasoning or a call but no text, as for a client that puts the
    chunks of the streamed answer together.
    """
    texts = [delta.text for delta in deltas if delta.__class__ is Delta]
    thoughts = [delta.text for delta in deltas if isinstance(delta, Reasoning)]
    parts = [delta for delta in deltas if isinstance(delta, ToolCall)]
    content = "".join(texts) if texts or not deltas else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if parts:
        message["tool_calls"] = [
            _call(first.id, first.name, "".join(p.text for p in parts if p.number == number))
            for number, first in enumerate(part for part in parts if part.id)
        ]
    return message


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def chat_logprobs(deltas: Iterable[Delta]) -> dict[str, Any]:
    """Return the `logprobs` of a chat: an object for each token."""
    content = [_chat_logprob(each) for delta in deltas for each in delta.logprobs]
    return {"content": content, "refusal": None}


def _chat_logprob(logprob: TokenLogprob) -> dict[str, Any]:
    def entry(token: bytes, value: float) -> dict[str, Any]:
        return {"token": token.decode("utf-8", "replace"), "logprob": value, "bytes": list(token)}

    top = [entry(token, value) for token, value in logprob.top]
    return {**entry(logprob.token, logprob.logprob), "top_logprobs": top}


def prompt_logprobs(places: PromptLogprobs) -> list[Any]:
    """Return vLLM's `prompt_logprobs`: an object of token ids for each token but the first."""
    return [
        None
        if place[0].logprob is None
        else {
            str(each.id): {
                "logprob": each.logprob,
                "rank": each.rank,
                "decoded_token": each.text,
            }
            for each in place
        }
        for place in places
    ]


def echoed_logprobs(places: PromptLogprobs, num_top: int) -> dict[str, list[Any]]:
    """Return the `logprobs` of a prompt's tokens in a completion; the first token has none."""
    offsets, at = [], 0
    for place in places:
        offsets.append(at)
        at += len(place[0].text)
    return {
        "tokens": [place[0].text for place in places],
        "token_logprobs": [place[0].logprob for place in places],
        "top_logprobs": [
            None
            if place[0].logprob is None
            else {e.text: e.logprob for e in place if e is place[0] or e.rank <= num_top}
            for place in places
        ],
        "text_offset": offsets,
    }


def completion_logprobs(deltas: Iterable[Delta], offset: int) -> dict[str, Any]:
    """Return the `logprobs` of a completion: a list of each kind, with an item for each token.

    The first token begins `offset` characters into the choice's text. A delta's last token may end
    in text that is still held back, so an offset counts tokens, not the deltas' text.
    """
    tokens, values, tops, offsets = [], [], [], []
    for delta in deltas:
        for each in delta.logprobs:
            token = _name(each.token)
            top: dict[str, float] = {}
            for likely, value in each.top:
                name = _name(likely)
                top[_bytes_name(likely) if name in top else name] = value
            tokens.append(token)
            values.append(each.logprob)
            tops.append({**top, token: each.logprob})
            offsets.append(offset)
            offset += _num_characters(each)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def all_token_ids(deltas: Iterable[Delta], end: Finish) -> list[int] | None:
    """Return the ids of an answer's tokens, None if the engine did not name all of them.

    The last tokens may have no text: they are in no delta, but in the answer's `end`.
    """
    ids = token_ids_of(deltas)
    return None if ids is None else [*ids, *end.token_ids]


def token_ids_of(deltas: Iterable[Delta]) -> list[int] | None:
    """Return the ids of the deltas' tokens, None if the engine did not name all of them."""
    ids: list[int] = []
    for delta in deltas:
        if len(delta.token_ids) != delta.num_tokens:
            return None
        ids += delta.token_ids
    return ids


def num_token_characters(deltas: Iterable[Delta]) -> int:
    """Return the number of characters of the tokens with log probabilities."""
    return sum(_num_characters(each) for delta in deltas for each in delta.logprobs)


def _num_characters(logprob: TokenLogprob) -> int:
    return len(logprob.token.decode("utf-8", "replace"))


def _name(token: bytes) -> str:
    """Return the token's text, or OpenAI's name for bytes that are no whole characters."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return _bytes_name(token)


def _bytes_name(token: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
