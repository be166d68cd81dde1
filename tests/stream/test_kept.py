"""Ended streams: how long and how much of them is kept, and what stays known of them."""

import asyncio

import pytest

from penstock.request import Request
from penstock.stream.registry import Limits, Streams
from tests.support.owners import ALICE, BOB, limited
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, opened, speak


async def test_an_ended_resumable_stream_is_kept_and_forgotten_in_time() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(retain=0.05))
    stream = opened(streams, ask("a"), resumable=True)
    stream.accepted((1,))
    stream.delta("text", 1, (1,))
    stream.finish("stop", 1)
    assert streams.find("a").log.text() == "text"
    assert len(streams) == 0
    async with asyncio.timeout(20):
        while len(streams.kept):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    with raises_problem("history_lost") as gone:
        streams.find("a")
    assert (gone.value.code, gone.value.status) == ("history_lost", 410)


async def test_kept_streams_are_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(retain_bytes=20_000))
    for n in range(5):
        stream = opened(streams, ask(f"{n}"), resumable=True)
        stream.accepted((1,))
        stream.delta("x" * 4000, 1, (1,))
        stream.finish("stop", 1)
    assert len(streams.kept) == 2
    assert streams.find("4").log.text() == "x" * 4000
    for lost in ("0", "1", "2"):
        with raises_problem("history_lost") as gone:
            streams.find(lost)
        assert gone.value.status == 410


async def test_a_stream_larger_than_the_limit_of_all_is_not_kept() -> None:
    streams = Streams([ScriptedEngine()], Limits(retain_bytes=100))
    stream = opened(streams, ask("a"), resumable=True)
    stream.accepted((1,))
    stream.delta("x" * 4000, 1, (1,))
    stream.finish("stop", 1)
    assert len(streams.kept) == 0


async def test_a_refused_request_is_not_kept() -> None:
    streams = Streams([ScriptedEngine()])
    stream = opened(streams, ask("a"), resumable=True)
    stream.fail("prompt_too_long", "Too long.")
    assert len(streams.kept) == 0


async def test_a_kept_stream_is_found_however_many_streams_have_ended_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.stream.kept.MAX_ENDINGS", 3)
    streams = Streams([ScriptedEngine()])
    stream = opened(streams, ask("kept"), resumable=True)
    stream.accepted((1,))
    stream.finish("length", 1)
    for number in range(5):
        opened(streams, ask(f"{number}")).finish("stop", 1)
    assert streams.find("kept") is stream
    assert streams.cancel("kept") == "length"
    with raises_problem("stream_not_found"):
        streams.cancel("0")


async def test_an_owner_s_kept_streams_are_bounded_and_other_owners_keep_theirs() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(max_retained_bytes=15_000)
    speak(opened(streams, ask("bob"), owner=BOB, resumable=True), "x" * 9000)
    for name in "abcd":
        speak(opened(streams, ask(name), owner=owner, resumable=True), "x" * 4000)
    assert len(streams.kept) == 3
    assert streams.find("bob", BOB).id == "bob"
    assert streams.find("d", owner).id == "d"


async def test_an_owner_whose_limits_were_lowered_keeps_streams_within_the_new_limits() -> None:
    streams = Streams([ScriptedEngine()])
    for name in "ab":
        owner = limited(max_retained_bytes=10_000)
        speak(opened(streams, ask(name), owner=owner, resumable=True), "x" * 4000)
    speak(opened(streams, ask("c"), owner=limited(max_retained_bytes=100), resumable=True), "x")
    assert len(streams.kept) == 0
    assert len(streams) == 0


async def test_the_owner_that_keeps_most_loses_its_oldest_stream() -> None:
    streams = Streams([ScriptedEngine()], Limits(retain_bytes=50_000))
    for owner, name in ((ALICE, "a"), (ALICE, "b"), *((BOB, f"{n}") for n in range(20))):
        stream = opened(streams, ask(name), resumable=True, owner=owner)
        speak(stream, "x" * 5000)
    assert streams.find("a", ALICE).log.text() == "x" * 5000
    assert streams.find("b", ALICE).id == "b"
    assert streams.find("19", BOB).id == "19"
    with raises_problem("history_lost"):
        streams.find("0", BOB)
    assert streams.kept.num_bytes <= 50_000


async def test_an_ended_stream_holds_no_more_than_its_readers_need() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = opened(streams, Request("a", 5, prompt="x" * 100_000, stop=("abc",)), resumable=True)
    stream.accepted(tuple(range(10_000)))
    stream.delta("text", 1, (1,))
    assert stream.num_bytes() > 140_000
    stream.finish("stop", 1)
    assert streams.kept.num_bytes == stream.num_bytes() < 10_000
