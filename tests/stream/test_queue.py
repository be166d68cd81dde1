"""Streams that wait in the server's line: what they are told, and how they leave it."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.events import Failure, Finish
from penstock.stream.admission import Admission
from penstock.stream.quotas import Owner, OwnerLimits
from penstock.stream.reader import Reader
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, opened, settle, taken


def one_slot(limits: Limits | None = None, max_queue: int = 10) -> tuple[ScriptedEngine, Streams]:
    engine = ScriptedEngine()
    return engine, Streams([engine], limits, admission=Admission(1, max_queue))


def submitted(engine: ScriptedEngine) -> list[str]:
    return [request.id for request in engine.submitted]


def end(engine: ScriptedEngine, name: str) -> None:
    engine.sinks[name].finish("stop", 1)


async def test_what_waits_is_not_handed_to_the_engine_before_its_turn() -> None:
    engine, streams = one_slot()
    for name in "abc":
        opened(streams, ask(name))
    assert submitted(engine) == ["a"]
    end(engine, "a")
    assert submitted(engine) == ["a", "b"]
    streams.cancel("b")
    assert submitted(engine) == ["a", "b", "c"]


async def test_a_response_begins_at_once_where_the_request_has_to_wait() -> None:
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
    assert streams.find("b") is stream  # it had a head, so its reader may come back


async def test_a_full_line_refuses_with_the_time_to_come_back() -> None:
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


async def test_whoever_leaves_the_line_is_nobody_s_hindrance() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    reader = Reader(opened(streams, ask("b")))
    opened(streams, ask("c"))
    reader.close()
    assert streams.cancel("b") == "cancelled"
    end(engine, "a")
    assert submitted(engine) == ["a", "c"]


async def test_those_that_wait_are_told_their_places_and_their_readers_are_woken() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    waiting = [opened(streams, ask(name)) for name in "bc"]
    reader = Reader(waiting[1])
    async with asyncio.timeout(5):
        assert await taken(reader) == []
    places = [stream.place.position for stream in waiting if stream.place]
    assert places == [1, 2]
    end(engine, "a")
    assert waiting[0].place is None
    async with asyncio.timeout(5):
        assert await taken(reader) == []
    assert waiting[1].place is not None
    assert waiting[1].place.position == 1
    assert waiting[1].place.eta is not None


async def test_draining_lets_those_that_wait_have_their_turn() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    second = opened(streams, ask("b"))
    drain = asyncio.create_task(streams.drain(60))
    await settle()
    end(engine, "a")
    end(engine, "b")
    async with asyncio.timeout(1):
        await drain
    assert isinstance(second.ended, Finish)


async def test_what_still_waits_when_draining_is_over_ends_with_the_rest() -> None:
    engine, streams = one_slot()
    made = [opened(streams, ask(name)) for name in "abc"]
    await streams.drain(0)
    assert [isinstance(stream.ended, Failure) for stream in made] == [True] * 3
    assert submitted(engine) == ["a"]  # nobody is begun just to be ended


async def test_streams_that_lost_their_engine_go_on_before_those_that_wait() -> None:
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


async def test_one_whose_turn_comes_as_the_engine_dies_waits_for_the_next_engine() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    second = opened(streams, ask("b"))
    engine.go_down()  # it is dead, and has not told its sinks yet
    streams.cancel("a")
    assert second.ended is None
    engine.come_back()
    await settle()
    assert submitted(engine) == ["a", "b"]


async def test_an_engine_that_does_not_come_back_ends_those_that_wait_as_well() -> None:
    engine, streams = one_slot(Limits(restart_timeout=0.1))
    made = [opened(streams, ask(name)) for name in "abcd"]
    engine.die()
    async with asyncio.timeout(5):
        await made[0].end()
    await settle()  # together with it, not after as long again
    ends = [stream.ended for stream in made]
    assert [end.code for end in ends if isinstance(end, Failure)] == ["engine_died"] * 4
    await settle()
    assert not streams.is_recovering


# Deadlines.


async def test_a_stream_is_stopped_at_its_deadline_and_keeps_what_it_has() -> None:
    engine, streams = one_slot()
    stream = opened(streams, ask("a"), timeout=0.02)
    stream.accepted((1,))
    stream.delta("word ", 1, (7,))
    async with asyncio.timeout(5):
        ended = await stream.end()
    assert isinstance(ended, Finish)
    assert ended.reason == "deadline"
    assert stream.log.text() == "word "
    assert engine.cancelled == ["a"]


async def test_a_stream_whose_deadline_comes_while_it_waits_never_begins() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"))
    stream = opened(streams, ask("b"), timeout=0.02)
    async with asyncio.timeout(5):
        await stream.end()
    assert streams.cancel("b") == "deadline"
    end(engine, "a")
    assert submitted(engine) == ["a"]


async def test_a_deadline_before_the_turn_can_come_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, streams = one_slot()
    monkeypatch.setattr(streams.admission, "eta_of_new", lambda owner: 30.0)
    with raises_problem("deadline_too_soon") as refused:
        opened(streams, ask("a"), timeout=29)
    assert (refused.value.code, refused.value.status) == ("deadline_too_soon", 429)
    assert submitted(engine) == []
    assert opened(streams, ask("a"), timeout=31).ended is None


async def test_the_server_s_own_limit_is_everybody_s_deadline() -> None:
    _, streams = one_slot(Limits(max_timeout=0.02))
    for name, timeout in (("a", None), ("b", 60.0)):
        async with asyncio.timeout(5):
            ended = await opened(streams, ask(name), timeout=timeout).end()
        assert isinstance(ended, Finish)
        assert ended.reason == "deadline"


async def test_a_stream_that_has_ended_has_no_deadline_any_more() -> None:
    engine, streams = one_slot()
    opened(streams, ask("a"), timeout=60)
    end(engine, "a")
    assert streams._deadlines == {}


# Owners.

ALICE = Owner("alice", is_closed=True)
BOB = Owner("bob", is_closed=True)
ADMIN = Owner("root", is_closed=True, is_admin=True)


def told(streams: Streams, stream_id: str, owner: Owner) -> list[str]:
    answers = []
    for ask_for in (streams.find, streams.cancel):
        try:
            ask_for(stream_id, owner)
            answers.append("found")
        except Problem as problem:
            answers.append(f"{problem.code} {problem.detail}")
    return answers


async def test_to_another_owner_a_stream_is_as_unknown_as_one_that_never_was() -> None:
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


async def test_an_admin_may_end_what_is_another_s() -> None:
    _, streams = one_slot()
    opened(streams, ask("a"), owner=ALICE)
    assert streams.cancel("a", ADMIN) == "cancelled"


def limited(**limits: int) -> Owner:
    return Owner("key", OwnerLimits(**limits), is_closed=True)


def refusal(streams: Streams, owner: Owner, *, resumable: bool = False) -> str:
    with pytest.raises(Problem) as refused:
        opened(streams, ask("refused"), owner=owner, resumable=resumable)
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    return refused.value.code


def speak(stream: Stream, text: str, num_tokens: int = 1) -> None:
    stream.accepted((1,))
    stream.delta(text, num_tokens, ())
    stream.finish("stop", num_tokens)


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


async def test_what_is_kept_for_an_owner_is_bounded_and_nobody_else_pays() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(max_retained_bytes=10_000)
    speak(opened(streams, ask("bob"), owner=BOB, resumable=True), "x" * 9000)
    for name in "abcd":
        speak(opened(streams, ask(name), owner=owner, resumable=True), "x" * 4000)
    assert len(streams.kept) == 3
    assert streams.find("bob", BOB).id == "bob"
    assert streams.find("d", owner).id == "d"


async def test_an_owner_whose_limits_were_lowered_meanwhile_keeps_what_is_within_them() -> None:
    streams = Streams([ScriptedEngine()])
    for name in "ab":
        owner = limited(max_retained_bytes=10_000)
        speak(opened(streams, ask(name), owner=owner, resumable=True), "x" * 4000)
    speak(opened(streams, ask("c"), owner=limited(max_retained_bytes=100), resumable=True), "x")
    assert len(streams.kept) == 0
    assert len(streams) == 0


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


async def test_what_never_began_is_nobody_s_stream() -> None:
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
