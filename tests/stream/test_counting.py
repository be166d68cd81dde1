"""Counts of prompts' tokens: beside the streams, and bounded."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.stream.counting import MAX_COUNTS
from tests.support.scripted import ask, one_slot, settle


async def test_a_count_asks_for_no_token_and_takes_no_slot() -> None:
    engine, streams = one_slot()
    counting = asyncio.create_task(streams.count_tokens(ask("a")))
    await settle()
    assert [request.max_tokens for request in engine.submitted] == [0]
    assert len(streams) == 0
    engine.sinks["a"].accepted((1, 2, 3), ("messages (merged)",))
    engine.sinks["a"].finish("length", 0)
    counted = await counting
    assert (len(counted.token_ids), counted.notes) == (3, ("messages (merged)",))


async def test_what_the_engine_refuses_is_raised() -> None:
    engine, streams = one_slot()
    counting = asyncio.create_task(streams.count_tokens(ask("a")))
    await settle()
    engine.sinks["a"].fail("template_refused", "It refuses.")
    with pytest.raises(Problem, match="It refuses"):
        await counting


async def test_an_engine_that_dies_ends_its_counts() -> None:
    engine, streams = one_slot()
    counting = asyncio.create_task(streams.count_tokens(ask("a")))
    await settle()
    engine.die()
    with pytest.raises(Problem, match="before it had counted"):
        await counting
    with pytest.raises(Problem, match="down"):
        await streams.count_tokens(ask("b"))


async def test_only_so_many_counts_are_under_way() -> None:
    engine, streams = one_slot()
    counting = [asyncio.create_task(streams.count_tokens(ask(str(n)))) for n in range(MAX_COUNTS)]
    await settle()
    with pytest.raises(Problem) as refused:
        await streams.count_tokens(ask("one more"))
    assert refused.value.code == "queue_full"
    counting[0].cancel()  # its client left
    await settle()
    assert not counting[1].done()
    engine.sinks["0"].finish("length", 0)
    again = asyncio.create_task(streams.count_tokens(ask("again")))
    await settle()
    for name in (*map(str, range(1, MAX_COUNTS)), "again"):
        engine.sinks[name].finish("length", 0)
    await asyncio.gather(*counting[1:], again)
