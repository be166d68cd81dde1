"""A process that holds streams, and says what it counts and how much it has grown.

    python -m tests.attacks.holding

Out: for each kind of request, the bytes that the streams say they hold and the growth of the
process's memory, as JSON. The process opens streams of each kind until it has grown by `WANTED`
bytes, and keeps them. All values are decoded anew, as they are when an engine sends them.
"""

import asyncio
import gc
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import psutil

from penstock.events import RankedToken, TokenLogprob
from penstock.request import Message, Request, Sampling, ToolUse
from penstock.stream.admission import Admission
from penstock.stream.record import ChoiceGroup, SavedForm, StreamRecord
from penstock.stream.registry import Limits, Streams, new_stream_id
from penstock.stream.stream import Stream
from tests.support.scripted import EngineInTest

WANTED = 16 * 1024 * 1024
BATCH = 10
MANY = 1_000_000_000

Value = TypeVar("Value")


class SilentEngine(EngineInTest):
    """Takes requests and forgets them."""

    def submit(self, request: object, sink: object) -> None:
        """Do nothing."""

    def cancel(self, request_id: str, model: str = "") -> None:
        """Do nothing."""


def fresh(value: Value, kind: Any = None) -> Value:
    """Return a copy that shares nothing with `value`."""
    copied: Value = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind or type(value))
    return copied


def opened(streams: Streams, resumable: bool = False, **fields: Any) -> Stream:
    """Open a stream for a request with these fields."""
    request = fresh(Request(id=new_stream_id(), max_tokens=MANY, **fields))
    return streams.open(StreamRecord(request, resumable=resumable))


def speak(stream: Stream, num_tokens: int, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
    """Give the stream tokens."""
    for number in range(num_tokens):
        ids = (1000 + number,)
        stream.delta(fresh(" word"), 1, fresh(ids, tuple[int, ...]), fresh(logprobs, _LOGPROBS))


_LOGPROBS = tuple[TokenLogprob, ...]
_RANKED = tuple[tuple[RankedToken, ...], ...]


def small_answers_that_are_kept(streams: Streams) -> None:
    stream = opened(streams, True, prompt="Once upon a time")
    stream.accepted(tuple(range(300, 310)))
    speak(stream, 5)
    stream.finish("stop", 5)


def long_answers_that_are_kept(streams: Streams) -> None:
    stream = opened(streams, True, prompt="Once upon a time" * 1000, stop=stops())
    stream.accepted(tuple(range(300, 4300)))
    speak(stream, 1000)
    stream.finish("stop", 1000)


def long_answers(streams: Streams) -> None:
    stream = opened(streams, prompt="Once upon a time")
    stream.accepted(tuple(range(300, 310)))
    speak(stream, 1000)


def huge_prompts(streams: Streams) -> None:
    opened(streams, prompt="Once upon a time " * 12_000).accepted(tuple(range(60_000)))


def wide_prompts(streams: Streams) -> None:
    opened(streams, prompt="Es war einmal… 😀 " * 5000)


def chats_with_tools(streams: Streams) -> None:
    calls = tuple(ToolUse(f"call_{number}", "look", '{"a": 1}') for number in range(2))
    turns = [Message("user", "Hello, what is it? " * 5), Message("assistant", "", "Hm", calls)]
    tools = json.dumps([{"type": "function", "function": {"name": "look"}}] * 20)
    opened(streams, messages=tuple(turns * 40), tools=tools, json_schema="{}" * 500)


def stop_strings(streams: Streams) -> None:
    stream = opened(streams, prompt="Once", stop=stops())
    stream.accepted((1,))
    stream.delta("abcabc", 1, (5,))


def token_ids(streams: Streams) -> None:
    stream = opened(
        streams, prompt_ids=tuple(range(300, 5300)), return_token_ids=True, sampling=biased()
    )
    stream.accepted(tuple(range(300, 5300)))
    speak(stream, 200)


def log_probabilities(streams: Streams) -> None:
    top = tuple((f" token{number}".encode(), -1.5 - number) for number in range(20))
    stream = opened(streams, prompt="Once", top_logprobs=20)
    stream.accepted((1,))
    speak(stream, 50, (TokenLogprob(b" word", -0.5, top),))


def prompt_log_probabilities(streams: Streams) -> None:
    places = tuple(
        tuple(RankedToken(1000 + rank, f" token{rank}", -1.5, rank) for rank in range(5))
        for _ in range(500)
    )
    stream = opened(streams, prompt="Once", prompt_logprobs=5)
    stream.accepted((1,))
    stream.prompt_logprobs(fresh(places, _RANKED))


def tool_calls(streams: Streams) -> None:
    stream = opened(streams, prompt="Once")
    stream.accepted((1,))
    for number in range(300):
        stream.tool_call(0, "" if number else "call_1", "" if number else "look", fresh('{"a'), 1)


def several_choices(streams: Streams) -> None:
    messages = fresh((Message("user", "Hello " * 10_000),), tuple[Message, ...])
    ids = [new_stream_id() for _ in range(8)]
    for number, each in enumerate(ids):
        request = Request(id=each, max_tokens=MANY, messages=messages)
        stream = streams.open(
            StreamRecord(request, choices=ChoiceGroup(ids[0], number, 8, number == 0))
        )
        stream.accepted(tuple(range(300, 3300)))
        speak(stream, 100)


def echoes_that_are_kept(streams: Streams) -> None:
    prompt = fresh("Once upon a time " * 1000)
    form = SavedForm("completion", {"echoes": [prompt], "model": "mock"})
    request = Request(id=new_stream_id(), max_tokens=MANY, prompt=prompt)
    stream = streams.open(StreamRecord(request, resumable=True, form=form))
    stream.accepted((1,))
    stream.finish("stop", 0)


def waiting(streams: Streams) -> None:
    opened(streams, prompt="Once upon a time " * 50, stop=stops())


def stops() -> tuple[str, ...]:
    return tuple("abcd"[number] + "".join(map(chr, range(60, 315))) for number in range(4))


def biased() -> Sampling:
    return Sampling(logit_bias=tuple((1000 + number, 0.5) for number in range(300)))


KINDS: tuple[Callable[[Streams], None], ...] = (
    small_answers_that_are_kept,
    long_answers_that_are_kept,
    long_answers,
    huge_prompts,
    wide_prompts,
    chats_with_tools,
    stop_strings,
    token_ids,
    log_probabilities,
    prompt_log_probabilities,
    tool_calls,
    several_choices,
    echoes_that_are_kept,
    waiting,
)


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def main() -> None:
    limits = Limits(retain=3600, retain_bytes=MANY)
    holders = []
    figures = {}
    for kind in KINDS:
        admission = Admission(int(kind is waiting), MANY, MANY)
        streams = Streams([SilentEngine()], limits, admission=admission)
        kind(streams)  # what is made once
        holders.append(streams)
        before, counted = resident(), sum(streams.bytes_by_state().values())
        for _ in itertools.count():
            for _ in range(BATCH):
                kind(streams)
            if int(psutil.Process().memory_info().rss) - before > WANTED:
                break
        held = sum(streams.bytes_by_state().values()) - counted
        figures[kind.__name__] = {"counted": held, "growth": resident() - before}
    for streams in holders:
        streams.shut_down()
    left = sum(
        sum(streams.bytes_by_state().values()) - streams.kept.num_bytes for streams in holders
    )
    print(json.dumps({"kinds": figures, "left": left}))


if __name__ == "__main__":
    asyncio.run(main())
