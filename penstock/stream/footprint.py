"""The memory of a stream's parts, in bytes, as CPython takes it on a 64-bit machine.

Sizes of strings are exact; everything else is counted in objects of a known size. The counts are
within half of the process's growth, for every mixture of requests (tests/attacks/test_memory.py).
Counting looks at each event of a log once, so it may be repeated at any time.
"""

from collections.abc import Iterable
from sys import getsizeof
from typing import Any

from penstock.events import Delta, Event, PromptLogprobs, TokenLogprob
from penstock.request import Message, Request
from penstock.stream.record import StreamRecord

STREAM_BYTES = 3072
"""A stream's own objects: its record, log, transcript, futures and places in tables."""
READER_BYTES = 6144
"""A connection that reads a stream: its socket, request, response and tasks."""
EVENT_BYTES = 64
"""An event and its place in the log, without its text."""
TOKEN_BYTES = 40
"""A token's id in a list, or in a tuple."""
PACKED_TOKEN_BYTES = 4
"""A token's id in an array."""
LOGPROB_BYTES = 192
"""A token's log probability."""
ALTERNATIVE_BYTES = 152
"""The log probability of one of the likeliest tokens."""
RANKED_TOKEN_BYTES = 200
"""The log probability of a token of the prompt, or of one of the likeliest tokens there."""
MESSAGE_BYTES = 96
"""A turn of a conversation, without its texts."""
CALL_BYTES = 64
"""A tool call in a conversation, without its texts."""
FILE_BYTES = 64
"""A file beside a gap, without its texts."""
BIAS_BYTES = 128
"""A token id and its bias."""


def texts_bytes(texts: Iterable[str | None]) -> int:
    """Return the memory of strings."""
    return sum([getsizeof(text) for text in texts if text])


def request_bytes(request: Request) -> int:
    """Return the memory of a request."""
    grammar = request.grammar.text if request.grammar else None
    total = texts_bytes(
        (
            request.prompt,
            request.json_schema,
            request.tools,
            request.template_kwargs,
            grammar,
            *request.stop,
        )
    )
    if request.gap is not None:
        total += len(request.gap.files) * FILE_BYTES + texts_bytes(request.gap.texts())
    if request.messages:
        total += _messages_bytes(request.messages)
    num_ids = len(request.prompt_ids or ()) + len(request.generated) + len(request.stop_token_ids)
    return total + num_ids * TOKEN_BYTES + len(request.sampling.logit_bias) * BIAS_BYTES


def _messages_bytes(messages: tuple[Message, ...]) -> int:
    total = len(messages) * MESSAGE_BYTES + sum([getsizeof(each.content) for each in messages])
    for each in messages:
        if each.reasoning:
            total += getsizeof(each.reasoning)
        if each.tool_call_id:
            total += getsizeof(each.tool_call_id)
        for call in each.tool_calls:
            total += CALL_BYTES + texts_bytes((call.id, call.name, call.arguments))
    return total


def record_bytes(record: StreamRecord) -> int:
    """Return the memory of what a stream was opened with.

    The choices of a prompt share it, so it counts only for the first of them.
    """
    if not record.counts_prompt:
        return 0
    counted = {id(record.request.prompt)}
    return request_bytes(record.request) + _value_bytes(record.form.options, counted)


def _value_bytes(value: Any, counted: set[int]) -> int:
    """Return the memory of a JSON value whose strings, except those in `counted`, are its own."""
    if isinstance(value, str):
        if id(value) in counted:
            return 0
        counted.add(id(value))
        return getsizeof(value)
    if isinstance(value, dict):
        return getsizeof(value) + sum(_value_bytes(each, counted) for each in value.values())
    if isinstance(value, list | tuple):
        return getsizeof(value) + sum(_value_bytes(each, counted) for each in value)
    return 0


def events_bytes(events: list[Event]) -> int:
    """Return the memory of events."""
    deltas = [event for event in events if isinstance(event, Delta)]
    total = len(events) * EVENT_BYTES + sum([getsizeof(each.text) for each in deltas])
    for each in deltas:
        if each.token_ids:
            total += getsizeof(each.token_ids)
        if each.logprobs:
            total += sum(map(_logprob_bytes, each.logprobs))
    return total


def _logprob_bytes(logprob: TokenLogprob) -> int:
    return LOGPROB_BYTES + ALTERNATIVE_BYTES * len(logprob.top)


def prompt_logprobs_bytes(found: PromptLogprobs | None) -> int:
    """Return the memory of a prompt's log probabilities."""
    return RANKED_TOKEN_BYTES * sum(map(len, found or ()))
