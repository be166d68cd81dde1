"""Two engines behind one `Streams`: who gets a request, and what one dead engine does to others."""

import asyncio

import msgspec

from penstock.events import Failure
from penstock.stream.admission import Admission
from penstock.stream.registry import Limits, Streams
from tests.support.problems import raises_problem
from tests.support.scripted import (
    ScriptedEngine,
    ask,
    begin,
    is_recovering,
    opened,
    pass_trial,
    settle,
    submitted,
)


def two_engines(
    slots: int = 1, limits: Limits | None = None
) -> tuple[ScriptedEngine, ScriptedEngine, Streams]:
    first, second = ScriptedEngine(slots), ScriptedEngine(slots)
    return first, second, Streams([first, second], limits, admission=Admission(2 * slots))


async def test_a_request_goes_to_the_engine_with_the_fewest_streams() -> None:
    first, second, streams = two_engines(slots=2)
    for name in "abcd":
        opened(streams, ask(name))
    assert (submitted(first), submitted(second)) == (["a", "c"], ["b", "d"])
    second.sinks["d"].finish("stop", 1)
    second.sinks["b"].finish("stop", 1)
    opened(streams, ask("e"))
    assert submitted(second) == ["b", "d", "e"]


async def test_a_request_goes_to_an_engine_with_a_free_slot_though_it_has_more_streams() -> None:
    small, large = ScriptedEngine(1), ScriptedEngine(3)
    streams = Streams([small, large])
    for name in "abcd":
        opened(streams, ask(name))
    assert (submitted(small), submitted(large)) == (["a"], ["b", "c", "d"])


async def test_a_request_goes_to_the_ready_engine_though_the_other_has_no_streams() -> None:
    first, second, streams = two_engines(slots=2)
    first.go_down()
    opened(streams, ask("a"))
    opened(streams, ask("b"))
    assert (submitted(first), submitted(second)) == ([], ["a", "b"])


async def test_one_dead_engine_refuses_no_request_that_the_other_can_take() -> None:
    first, second, streams = two_engines(slots=2)
    lost, other = begin(streams, "a"), begin(streams, "b")
    first.die()
    await settle()
    assert not is_recovering(streams)
    streams.check()
    new = begin(streams, "c")
    assert submitted(second) == ["b", "c"]
    assert [stream.ended for stream in (lost, other, new)] == [None] * 3
    assert submitted(first) == ["a"]


async def test_the_streams_of_a_dead_engine_continue_on_it_when_it_is_back() -> None:
    first, second, streams = two_engines(slots=2)
    lost = begin(streams, "a")
    begin(streams, "b")
    first.die()
    await settle()
    first.come_back()
    await settle()
    assert submitted(first) == ["a", "a"]
    assert first.submitted[-1].generated == (7,)
    lost.delta("more", 1, (8,))
    first.sinks["a"].finish("stop", 1)
    assert lost.log.text() == "a more"
    assert submitted(second) == ["b"]


async def test_a_dead_engine_takes_no_new_request_before_its_own_streams_continue() -> None:
    first, second, streams = two_engines(slots=3)
    suspects = [opened(streams, ask(name)) for name in ("a", "-", "b")]
    assert submitted(first) == ["a", "b"]
    first.die()
    first.come_back()
    await settle()
    assert submitted(first) == ["a", "b", "b"]  # one suspect at a time, the youngest first
    opened(streams, ask("c"))
    assert submitted(second) == ["-", "c"]
    pass_trial(first, "b")
    await settle()
    pass_trial(first, "a")
    await settle()
    second.go_down()
    opened(streams, ask("d"))
    assert submitted(first) == ["a", "b", "b", "a", "b", "a", "d"]
    assert [stream.ended for stream in suspects] == [None] * 3


async def test_queued_streams_start_on_the_living_engine() -> None:
    first, second, streams = two_engines()
    begin(streams, "a")
    begin(streams, "b")
    opened(streams, ask("c"))
    first.die()
    await settle()
    second.sinks["b"].finish("stop", 1)
    assert submitted(second) == ["b", "c"]
    assert submitted(first) == ["a"]


async def test_slots_of_a_dead_engine_are_not_given_away() -> None:
    first, second, streams = two_engines()
    lost = begin(streams, "a")
    begin(streams, "b")
    queued = [opened(streams, ask(name)) for name in "cd"]
    first.die()
    await settle()
    assert submitted(second) == ["b"]
    streams.cancel("a")  # its slot is free, but there is no engine behind it
    await settle()
    assert submitted(second) == ["b"]
    assert [stream.phase for stream in queued] == ["queued"] * 2
    first.come_back()
    await settle()
    assert submitted(first) == ["a", "c"]
    assert queued[1].phase == "queued"
    assert lost.ended is not None


async def test_an_engine_that_died_idle_takes_queued_streams_when_it_is_back() -> None:
    """An engine without streams loses none when it dies, so no stream reports its death."""
    first, second, streams = two_engines()
    first.go_down()
    opened(streams, ask("a"))
    queued = opened(streams, ask("b"))
    assert submitted(second) == ["a"]
    assert queued.phase == "queued"
    first.come_back()
    await settle()
    assert submitted(first) == ["b"]


async def test_queued_streams_do_not_wait_for_an_idle_dead_engine_if_the_other_is_back() -> None:
    first, second, streams = two_engines()
    first.go_down()
    begin(streams, "a")
    queued = opened(streams, ask("b"))
    second.die()
    streams.cancel("a")
    await settle()
    assert queued.phase == "queued"
    second.come_back()
    await settle()
    assert submitted(second) == ["a", "b"]


async def test_requests_are_refused_while_every_engine_is_dead() -> None:
    first, second, streams = two_engines()
    begin(streams, "a")
    begin(streams, "b")
    first.die()
    second.die()
    assert is_recovering(streams)
    with raises_problem("engine_down") as refused:
        opened(streams, ask("c"))
    assert refused.value.status == 503
    assert "Retry-After" in refused.value.headers
    assert len(streams) == 2
    second.come_back()
    await settle()
    assert not is_recovering(streams)
    streams.check()
    assert opened(streams, ask("c")).phase == "queued"  # the living engine has no free slot


async def test_requests_are_refused_while_every_engine_is_dead_without_having_lost_a_stream() -> (
    None
):
    first, second, streams = two_engines()
    first.go_down()
    second.go_down()
    with raises_problem("engine_down") as refused:
        opened(streams, ask("a"))
    assert refused.value.status == 503
    assert len(streams) == 0


async def test_requests_are_refused_if_one_engine_continues_its_streams_and_one_is_down() -> None:
    first, second, streams = two_engines(slots=2)
    first.go_down()
    for name in "ab":
        opened(streams, ask(name))
    second.die()
    second.come_back()
    await settle()
    assert submitted(second) == ["a", "b", "b"]
    with raises_problem("engine_down"):
        streams.check()
    for name in "ba":
        pass_trial(second, name)
        await settle()
    streams.check()


async def test_a_stream_is_cancelled_on_the_engine_that_has_it() -> None:
    first, second, streams = two_engines()
    opened(streams, ask("a"))
    opened(streams, ask("b"))
    streams.cancel("b")
    assert (first.cancelled, second.cancelled) == ([], ["b"])
    streams.cancel("a")
    assert (first.cancelled, second.cancelled) == (["a"], ["b"])


async def test_an_engine_that_does_not_come_back_ends_its_own_streams_only() -> None:
    first, second, streams = two_engines(limits=Limits(restart_timeout=0.05))
    lost = begin(streams, "a")
    other = begin(streams, "b")
    queued = opened(streams, ask("c"))
    first.die()
    async with asyncio.timeout(20):
        end = await lost.end()
    await settle()
    assert isinstance(end, Failure)
    assert end.code == "engine_died"
    assert other.ended is None
    assert queued.ended is None
    second.sinks["b"].finish("stop", 1)
    assert submitted(second) == ["b", "c"]


async def test_queued_streams_end_if_no_engine_comes_back() -> None:
    first, second, streams = two_engines(limits=Limits(restart_timeout=0.05))
    running = [begin(streams, name) for name in "ab"]
    queued = opened(streams, ask("c"))
    first.die()
    second.die()
    async with asyncio.timeout(20):
        ends = [await stream.end() for stream in (*running, queued)]
    assert [end.code for end in ends if isinstance(end, Failure)] == ["engine_died"] * 3


async def test_a_model_starts_no_request_while_the_engine_lets_go_of_a_cancelled_one() -> None:
    engine = ScriptedEngine()
    admission = Admission(4)
    admission.bounds, admission.default_model = {"small": 1, "large": 1}, "small"
    streams = Streams([engine], admission=admission)
    opened(streams, ask("a"))
    engine.num_stopping, engine.stopping_of = 1, {"small": 1}
    streams.cancel("a")
    assert engine.cancelled == ["a"]
    opened(streams, ask("b"))
    opened(streams, msgspec.structs.replace(ask("c"), model="large"))
    assert submitted(engine) == ["a", "c"]
    engine.num_stopping, engine.stopping_of = 0, {}
    engine.on_room()
    assert submitted(engine) == ["a", "c", "b"]
