"""The parts of Anthropic's objects, made from a stream's events.

Stop reasons are mapped here and nowhere else. Anthropic has no word for `cancelled` and
`deadline`: they become `max_tokens`, its word for an incomplete answer, and `finish_reason`, a
field of our own, has the word.
"""

from collections.abc import Iterable
from typing import Any, Literal

from penstock.api.anthropic.signatures import carry, sign
from penstock.api.tools import arguments_of
from penstock.events import Delta, Finish, Reasoning, ToolCall, Usage

Kind = Literal["text", "thinking", "tool_use"]


def kind_of(delta: Delta) -> Kind:
    """Return the kind of block that a delta belongs to."""
    if isinstance(delta, Reasoning):
        return "thinking"
    return "tool_use" if isinstance(delta, ToolCall) else "text"


def begins_block(delta: Delta, current: Kind | None) -> bool:
    """Return True if a delta begins a new block after one of the kind `current`."""
    return kind_of(delta) != current or (isinstance(delta, ToolCall) and bool(delta.id))


def empty_block(delta: Delta) -> dict[str, Any]:
    """Return the block that begins with this delta, before its text."""
    kind = kind_of(delta)
    if isinstance(delta, ToolCall):
        return {"type": kind, "id": delta.id, "name": delta.name, "input": {}}
    if kind == "thinking":
        return {"type": kind, "thinking": "", "signature": ""}
    return {"type": kind, "text": ""}


def signature_of(text: str, *, is_omitted: bool) -> str:
    """Return the signature of a thinking block with this text."""
    return carry(text) if is_omitted else sign(text)


def content_of(deltas: Iterable[Delta], *, is_omitted: bool) -> list[dict[str, Any]]:
    """Return the blocks of a whole answer. `is_omitted`: thinking is shown without its text."""
    blocks: list[dict[str, Any]] = []
    texts: list[list[str]] = []
    current: Kind | None = None
    for delta in deltas:
        if begins_block(delta, current):
            current = kind_of(delta)
            blocks.append(empty_block(delta))
            texts.append([])
        texts[-1].append(delta.text)
    for block, parts in zip(blocks, texts, strict=True):
        text = "".join(parts)
        if block["type"] == "thinking":
            block["thinking"] = "" if is_omitted else text
            block["signature"] = signature_of(text, is_omitted=is_omitted)
        elif block["type"] == "tool_use":
            block["input"] = arguments_of(text)
        else:
            block["text"] = text
    return blocks


def ending_fields(end: Finish, *, has_called: bool, context_length: int) -> dict[str, Any]:
    """Return the fields that say how the answer ended; `has_called`: it calls tools."""
    reason = {"stop": "end_turn"}.get(end.reason, "max_tokens")
    if end.stop_string is not None:
        reason = "stop_sequence"
    elif end.reason == "stop" and has_called:
        reason = "tool_use"
    elif end.reason == "length" and end.usage.total_tokens >= context_length:
        reason = "model_context_window_exceeded"
    fields = {"stop_reason": reason, "stop_sequence": end.stop_string}
    if end.reason in ("cancelled", "deadline"):
        fields["finish_reason"] = end.reason
    return fields


def usage_fields(usage: Usage, num_reasoning: int = 0) -> dict[str, Any]:
    """Return the token counts, of which `num_reasoning` are reasoning.

    As in Anthropic's API, `input_tokens` leaves out the tokens that the engine had in its cache.
    """
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": num_reasoning},
    }
