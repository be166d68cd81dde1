"""Streams from `open` to their end: cancelled, drained, left by readers, found, out of time."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.events import Failure, Finish, finish_reason_of
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from penstock.stream.record import ChoiceGroup
from penstock.stream.registry import Limits, Streams, new_stream_id
from tests.support.owners import ADMIN, ALICE, BOB
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, end, one_slot, opened, submitted


async def test_cancel_tells_the_engine_once_and_answers_the_same_each_time() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    opened(streams, ask("a"))
    assert [streams.cancel("a") for _ in range(3)] == ["cancelled"] * 3
    assert engine.cancelled == ["a"]
    assert len(streams) == 0


async def test_cancel_after_the_end_tells_how_it_ended() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    opened(streams, ask("a"))
    engine.sinks["a"].finish("length", 5)
    opened(streams, ask("b"))
    engine.sinks["b"].fail("engine_error", "It gave up.")
    assert streams.cancel("a") == "length"
    assert streams.cancel("b") == "error"
    assert engine.cancelled == []


async def test_an_unknown_stream_is_not_found() -> None:
    with raises_problem("stream_not_found"):
        Streams([ScriptedEngine()]).cancel("never")


async def test_a_request_without_an_engine_leaves_nothing_behind() -> None:
    engine = ScriptedEngine()
    engine.go_down()
    streams = Streams([engine])
    with raises_problem("engine_down"):
        opened(streams, ask("a"))
    assert len(streams) == 0
    async with asyncio.timeout(20):
        await streams.drain(0.5)


async def test_draining_refuses_new_streams_and_waits_for_open_ones() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = opened(streams, ask("a"))
    drain = asyncio.create_task(streams.drain(60))
    await asyncio.sleep(0)
    with raises_problem("draining") as refused:
        opened(streams, ask("b"))
    assert refused.value.code == "draining"
    assert "Retry-After" in refused.value.headers
    assert not drain.done()
    engine.sinks["a"].finish("stop", 1)
    async with asyncio.timeout(20):
        await drain
    assert stream.ended is not None


async def test_a_stream_that_outlasts_draining_ends_with_an_error_that_says_why() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = opened(streams, ask("a"))
    await streams.drain(0)
    assert isinstance(stream.ended, Failure)
    assert stream.ended.code == "server_shutdown"
    assert stream.ended.retry_safe
    assert engine.cancelled == ["a"]


async def test_a_stream_that_is_not_resumable_ends_with_its_reader() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    reader = Reader(opened(streams, ask("a")))
    reader.close()
    assert streams.cancel("a") == "cancelled"
    assert engine.cancelled == ["a"]


async def test_a_resumable_stream_lingers_without_readers_and_is_then_cancelled() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(linger=0.05))
    stream = opened(streams, ask("a"), resumable=True)
    Reader(stream).close()
    assert stream.ended is None
    async with asyncio.timeout(20):
        await stream.end()
    assert streams.cancel("a") == "cancelled"


async def test_a_reader_that_comes_back_ends_the_lingering() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(linger=0))
    stream = opened(streams, ask("a"), resumable=True)
    Reader(stream).close()
    Reader(streams.find("a"))
    await asyncio.sleep(0.02)  # the time in which lingering would have ended
    assert stream.ended is None


async def test_a_stream_that_is_not_resumable_cannot_be_found_before_or_after_its_end() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    opened(streams, ask("a"))
    for _ in range(2):
        with raises_problem("not_resumable") as refused:
            streams.find("a")
        assert (refused.value.code, refused.value.status) == ("not_resumable", 409)
        streams.cancel("a")
    with raises_problem("stream_not_found"):
        streams.find("never")


def test_stream_ids_cannot_be_guessed_or_break_a_url() -> None:
    ids = {new_stream_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 22 for each in ids)
    assert set("".join(ids)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )


async def test_cancelling_the_first_choice_cancels_all_though_it_has_ended() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    first = opened(streams, ask("a"))
    others = [
        opened(streams, ask(name), choices=ChoiceGroup("a", number, 3))
        for number, name in enumerate("bc", 1)
    ]
    opened(streams, ask("d"))
    first.finish("stop", 1)
    assert streams.cancel("a") == "cancelled"
    assert engine.cancelled == ["b", "c"]
    assert {finish_reason_of(each.ended) for each in others if each.ended} == {"cancelled"}
    assert streams.cancel("a") == "stop"
    assert len(streams) == 1


def told(streams: Streams, stream_id: str, owner: Owner) -> list[str]:
    answers = []
    for ask_for in (streams.find, streams.cancel):
        try:
            ask_for(stream_id, owner)
            answers.append("found")
        except Problem as problem:
            answers.append(f"{problem.code} {problem.detail}")
    return answers


async def test_another_owner_s_stream_looks_like_a_stream_that_never_existed() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"), resumable=True, owner=ALICE)
    unknown = told(streams, "never", BOB)
    assert told(streams, "a", BOB) == unknown
    assert streams.find("a", ALICE).id == "a"
    engine.sinks["a"].accepted((1,))
    end(engine, "a")
    assert told(streams, "a", BOB) == unknown
    assert told(streams, "a", ALICE) == ["found", "found"]
    assert told(streams, "a", ADMIN) == ["found", "found"]


async def test_an_admin_may_cancel_another_owner_s_stream() -> None:
    _, streams = one_slot()
    opened(streams, ask("a"), owner=ALICE)
    assert streams.cancel("a", ADMIN) == "cancelled"


# Deadlines.


async def test_a_stream_is_stopped_at_its_deadline_and_keeps_what_it_has() -> None:
    engine, streams = one_slot()
    stream = opened(streams, ask("a"), timeout=0.02)
    stream.accepted((1,))
    stream.delta("word ", 1, (7,))
    async with asyncio.timeout(20):
        ended = await stream.end()
    assert isinstance(ended, Finish)
    assert ended.reason == "deadline"
    assert stream.log.text() == "word "
    assert engine.cancelled == ["a"]


async def test_a_stream_whose_deadline_comes_while_it_waits_never_begins() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    stream = opened(streams, ask("b"), timeout=0.02)
    async with asyncio.timeout(20):
        await stream.end()
    assert streams.cancel("b") == "deadline"
    end(engine, "a")
    assert submitted(engine) == ["a"]


async def test_a_deadline_before_the_turn_can_come_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, streams = one_slot()
    monkeypatch.setattr(streams.admission, "eta_of_new", lambda *_: 30.0)
    with raises_problem("deadline_too_soon") as refused:
        opened(streams, ask("a"), timeout=29)
    assert (refused.value.code, refused.value.status) == ("deadline_too_soon", 429)
    assert submitted(engine) == []
    assert opened(streams, ask("a"), timeout=31).ended is None


async def test_the_server_s_own_limit_is_everybody_s_deadline() -> None:
    _, streams = one_slot(Limits(max_timeout=0.02))
    for name, timeout in (("a", None), ("b", 60.0)):
        async with asyncio.timeout(20):
            ended = await opened(streams, ask(name), timeout=timeout).end()
        assert isinstance(ended, Finish)
        assert ended.reason == "deadline"


async def test_a_stream_that_has_ended_has_no_deadline_any_more() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"), timeout=60)
    end(engine, "a")
    assert len(streams._deadlines) == 0
