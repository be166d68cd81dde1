"""The limits of an owner: open streams, kept streams and tokens per minute."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.stream.quotas import Owner
from penstock.stream.record import ChoiceGroup
from penstock.stream.registry import Limits, Streams
from tests.support.owners import BOB, limited
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, end, one_slot, opened, speak, submitted


def refusal(streams: Streams, owner: Owner, *, resumable: bool = False) -> str:
    with pytest.raises(Problem) as refused:
        opened(streams, ask("refused"), owner=owner, resumable=resumable)
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    return refused.value.code


async def test_an_owner_has_so_many_streams_at_once_and_others_theirs() -> None:
    engine, streams = one_slot()
    owner = limited(max_streams=2)
    opened(streams, ask("a"), owner=owner)
    opened(streams, ask("b"), owner=owner)
    assert refusal(streams, owner) == "too_many_streams"
    opened(streams, ask("c"), owner=BOB)
    end(engine, "a")
    opened(streams, ask("d"), owner=owner)


async def test_an_owner_has_so_many_resumable_streams_running_and_kept() -> None:
    streams = Streams([ScriptedEngine()], Limits(retain=0.05))
    owner = limited(max_resumable=2)
    speak(opened(streams, ask("a"), owner=owner, resumable=True), "text")
    opened(streams, ask("b"), owner=owner, resumable=True).fail("prompt_too_long", "Too long.")
    opened(streams, ask("c"), owner=owner, resumable=True)
    assert refusal(streams, owner, resumable=True) == "too_many_streams"
    opened(streams, ask("d"), owner=owner)
    async with asyncio.timeout(5):
        while len(streams.kept):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    opened(streams, ask("e"), owner=owner, resumable=True)


async def test_several_choices_are_several_streams() -> None:
    engine, streams = one_slot()
    owner = limited(max_streams=2)
    with raises_problem("too_many_choices") as never:
        streams.check(owner, num_streams=3)
    assert never.value.code == "too_many_choices"
    streams.check(owner, num_streams=2)
    opened(streams, ask("a"), owner=owner)
    with raises_problem("too_many_streams") as later:
        streams.check(owner, num_streams=2)
    assert later.value.code == "too_many_streams"
    end(engine, "a")
    streams.check(owner, num_streams=2)


async def test_an_owner_that_has_used_its_tokens_waits_until_there_are_more() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(tokens_per_minute=100)
    speak(opened(streams, ask("a"), owner=owner), "text", 159)
    with raises_problem("too_many_tokens") as refused:
        opened(streams, ask("b"), owner=owner)
    assert refused.value.code == "too_many_tokens"
    assert 35 <= int(refused.value.headers["Retry-After"]) <= 37  # 61 of 100 in a minute


async def test_tokens_of_open_streams_count_as_well() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(tokens_per_minute=100)
    stream = opened(streams, ask("a", max_tokens=500), owner=owner)
    stream.accepted((1,))
    stream.delta("text", 120, ())
    assert refusal(streams, owner) == "too_many_tokens"


async def test_a_prompt_of_several_choices_counts_once() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(tokens_per_minute=100)
    choices = [
        opened(streams, ask(name), owner=owner, choices=ChoiceGroup("a", number, 3, number == 0))
        for number, name in enumerate("abc")
    ]
    for choice in choices:
        choice.accepted(tuple(range(40)))
    streams.check(owner)
    for choice in choices:
        choice.finish("stop", 1)
    streams.check(owner)
    assert streams.meter.prompt_tokens == 40
    assert streams.meter.completion_tokens == 3


async def test_a_stream_that_never_began_counts_for_no_owner() -> None:
    engine, streams = one_slot()
    owner = limited(max_streams=1, max_resumable=1)
    engine.go_down()
    for _ in range(3):
        with raises_problem("engine_down") as refused:
            opened(streams, ask("a"), owner=owner, resumable=True)
        assert refused.value.code == "engine_down"
    engine.come_back()
    opened(streams, ask("a"), owner=owner, resumable=True)
    assert submitted(engine) == ["a"]


async def test_owners_that_are_gone_leave_no_counts_behind() -> None:
    streams = Streams([ScriptedEngine()], Limits(retain=0))
    for n in range(50):
        speak(opened(streams, ask(f"{n}"), owner=Owner(f"address {n}"), resumable=True), "text")
    async with asyncio.timeout(5):
        while len(streams.kept):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    accounts = streams._quotas
    assert not accounts._num_open
    assert not accounts._num_resumable
    assert not accounts._kept_bytes
