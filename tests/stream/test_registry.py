import asyncio

import pytest

from penstock.events import Failure, finish_reason_of
from penstock.stream.reader import Reader
from penstock.stream.record import ChoiceGroup
from penstock.stream.registry import Limits, Streams, new_stream_id
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, opened


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
    async with asyncio.timeout(1):
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
    async with asyncio.timeout(1):
        await drain
    assert stream.ended is not None


async def test_what_drains_too_long_ends_with_an_error_that_says_why() -> None:
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
    async with asyncio.timeout(5):
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


async def test_an_ended_resumable_stream_is_kept_and_forgotten_in_time() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(retain=0.05))
    stream = opened(streams, ask("a"), resumable=True)
    stream.accepted((1,))
    stream.delta("text", 1, (1,))
    stream.finish("stop", 1)
    assert streams.find("a").log.text() == "text"
    assert len(streams) == 0
    async with asyncio.timeout(5):
        while len(streams.kept):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    with raises_problem("history_lost") as gone:
        streams.find("a")
    assert (gone.value.code, gone.value.status) == ("history_lost", 410)


async def test_what_is_kept_is_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(retain_bytes=10_000))
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


async def test_a_stream_larger_than_all_that_may_be_kept_is_not_kept() -> None:
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


async def test_what_is_not_resumable_cannot_be_found_before_or_after_its_end() -> None:
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


async def test_who_cancels_the_first_choice_cancels_all_though_it_has_ended() -> None:
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


async def test_what_is_kept_is_found_however_many_have_ended_since(
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
