"""Streams in the server's queue: when they start, what they learn, and how they leave it."""

import asyncio

from penstock.events import Failure, Finish
from penstock.stream.reader import Reader
from penstock.stream.registry import Limits
from tests.support.problems import raises_problem
from tests.support.scripted import ask, end, one_slot, opened, settle, submitted, taken


async def test_a_queued_stream_is_not_given_to_the_engine_before_its_turn() -> None:
    engine, streams = one_slot()
    for name in "abc":
        opened(streams, ask(name))
    assert submitted(engine) == ["a"]
    end(engine, "a")
    assert submitted(engine) == ["a", "b"]
    streams.cancel("b")
    assert submitted(engine) == ["a", "b", "c"]


async def test_a_response_begins_at_once_if_the_request_is_queued() -> None:
    _, streams = one_slot()
    first, second = opened(streams, ask("a")), opened(streams, ask("b"))
    assert not first.was_accepted.done()  # the engine may still refuse it with a status of its own
    assert second.was_accepted.result() is None


async def test_a_refusal_after_waiting_is_the_terminal_event() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    stream = opened(streams, ask("b"), resumable=True)
    end(engine, "a")
    engine.sinks["b"].fail("prompt_too_long", "It is too long.")
    assert isinstance(stream.ended, Failure)
    assert (stream.ended.code, stream.ended.retry_safe) == ("prompt_too_long", False)
    assert streams.find("b") is stream  # its response had begun, so its reader may come back


async def test_a_full_queue_refuses_with_the_time_to_retry() -> None:
    _, streams = one_slot(max_queue=1)
    opened(streams, ask("a"))
    opened(streams, ask("b"))
    with raises_problem("queue_full") as refused:
        opened(streams, ask("c"))
    assert (refused.value.code, refused.value.status) == ("queue_full", 429)
    assert int(refused.value.headers["Retry-After"]) >= 1
    with raises_problem("queue_full"):
        streams.check()
    assert len(streams) == 2


async def test_a_stream_that_leaves_the_queue_holds_up_no_other() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    reader = Reader(opened(streams, ask("b")))
    opened(streams, ask("c"))
    reader.close()
    assert streams.cancel("b") == "cancelled"
    end(engine, "a")
    assert submitted(engine) == ["a", "c"]


async def test_queued_streams_are_told_their_places_and_their_readers_are_woken() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    waiting = [opened(streams, ask(name)) for name in "bc"]
    reader = Reader(waiting[1])
    async with asyncio.timeout(20):
        assert await taken(reader) == []
    places = [stream.place.position for stream in waiting if stream.place]
    assert places == [1, 2]
    end(engine, "a")
    assert waiting[0].place is None
    async with asyncio.timeout(20):
        assert await taken(reader) == []
    assert waiting[1].place is not None
    assert waiting[1].place.position == 1
    assert waiting[1].place.eta is not None


async def test_draining_lets_queued_streams_have_their_turn() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    second = opened(streams, ask("b"))
    drain = asyncio.create_task(streams.drain(60))
    await settle()
    end(engine, "a")
    end(engine, "b")
    async with asyncio.timeout(20):
        await drain
    assert isinstance(second.ended, Finish)


async def test_streams_still_queued_when_draining_is_over_end_with_the_rest() -> None:
    engine, streams = one_slot()
    made = [opened(streams, ask(name)) for name in "abc"]
    await streams.drain(0)
    assert [isinstance(stream.ended, Failure) for stream in made] == [True] * 3
    assert submitted(engine) == ["a"]  # no stream starts only to be ended


async def test_streams_that_lost_their_engine_continue_before_queued_streams() -> None:
    engine, streams = one_slot()
    first = opened(streams, ask("a"))
    first.accepted((1,))
    first.started()
    first.delta("word ", 1, (7,))
    opened(streams, ask("b"))
    engine.die()
    await settle()
    engine.come_back()
    await settle()
    assert submitted(engine) == ["a", "a"]
    end(engine, "a")
    assert submitted(engine) == ["a", "a", "b"]


async def test_a_slot_that_is_freed_while_there_is_no_engine_is_used_when_there_is_one() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    opened(streams, ask("b"))
    engine.die()
    streams.cancel("a")
    assert submitted(engine) == ["a"]
    engine.come_back()
    await settle()
    assert submitted(engine) == ["a", "b"]


async def test_a_stream_whose_turn_comes_as_the_engine_dies_waits_for_the_next_engine() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    second = opened(streams, ask("b"))
    engine.go_down()  # it is dead, but has not told its sinks yet
    streams.cancel("a")
    assert second.ended is None
    engine.come_back()
    await settle()
    assert submitted(engine) == ["a", "b"]


async def test_an_engine_that_does_not_come_back_ends_queued_streams_as_well() -> None:
    engine, streams = one_slot(Limits(restart_timeout=0.1))
    made = [opened(streams, ask(name)) for name in "abcd"]
    engine.die()
    async with asyncio.timeout(20):
        await made[0].end()
    await settle()  # at the same time, not after another timeout
    ends = [stream.ended for stream in made]
    assert [end.code for end in ends if isinstance(end, Failure)] == ["engine_died"] * 4
    await settle()
    assert not streams.is_recovering
