import asyncio

import msgspec
import pytest

from penstock.events import Failure, Finish
from penstock.request import Request
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream
from tests.support.problems import raises_problem
from tests.support.scripted import (
    ScriptedEngine,
    ask,
    begin,
    is_recovering,
    opened,
    pass_trial,
    settle,
)


async def test_running_streams_go_on_where_they_were_in_their_order() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    running = [begin(streams, name) for name in "abc"]
    engine.submitted.clear()
    engine.die()
    await settle()
    assert engine.submitted == []
    assert is_recovering(streams)
    engine.come_back()
    await settle()
    assert not is_recovering(streams)
    assert [request.id for request in engine.submitted] == ["a", "b", "c"]
    assert {request.generated for request in engine.submitted} == {(7,)}
    assert {request.max_tokens for request in engine.submitted} == {4}
    for stream in running:
        stream.delta("more", 1, (8,))
        stream.finish("stop", 1)
        assert isinstance(stream.ended, Finish)
        assert stream.log.text() == f"{stream.id} more"


async def test_new_requests_are_refused_until_the_lost_ones_go_on() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    begin(streams, "a")
    engine.die()
    with raises_problem("engine_down") as refused:
        opened(streams, ask("b"))
    assert refused.value.code == "engine_down"
    assert "Retry-After" in refused.value.headers


async def test_a_stream_cancelled_while_the_engine_is_away_does_not_come_back() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    begin(streams, "a")
    engine.die()
    assert streams.cancel("a") == "cancelled"
    engine.come_back()
    await settle()
    assert engine.sinks == {}
    assert not is_recovering(streams)


async def test_streams_end_with_one_error_if_the_engine_does_not_come_back() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine], Limits(restart_timeout=0.02))
    stream = begin(streams, "a")
    engine.die()
    async with asyncio.timeout(20):
        end = await stream.end()
    assert isinstance(end, Failure)
    assert (end.code, end.retry_safe) == ("engine_died", True)
    await settle()
    assert not is_recovering(streams)


async def test_a_stream_whose_last_token_had_come_ends_without_the_engine() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = opened(streams, ask("a", max_tokens=1))
    stream.accepted((1,))
    stream.started()
    stream.delta("word", 1, (7,))
    engine.die()
    engine.come_back()
    await settle()
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "length"
    assert stream.ended.usage.completion_tokens == 1
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("has_slot", [True, False], ids=["running", "being tokenised"])
async def test_a_request_that_kills_the_engine_twice_is_given_up_and_the_others_go_on(
    has_slot: bool,
) -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    good = begin(streams, "good")
    queued = opened(streams, ask("queued"))
    queued.accepted((1,))
    bad = opened(streams, ask("bad"))
    if has_slot:
        bad.accepted((1,))
        bad.started()
    engine.submitted.clear()
    engine.die()
    engine.come_back()
    await settle()
    assert [request.id for request in engine.submitted] == ["bad"]  # alone
    engine.die()
    assert isinstance(bad.ended, Failure)
    assert (bad.ended.code, bad.ended.retry_safe) == ("engine_died", False)
    engine.come_back()
    await settle()
    assert [request.id for request in engine.submitted] == ["bad", "good", "queued"]
    assert good.ended is None
    assert queued.ended is None


async def test_a_suspect_that_survives_its_trial_goes_on_with_the_others() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    suspects = [opened(streams, ask(name)) for name in "ab"]
    for suspect in suspects:
        suspect.accepted((1,))
        suspect.started()
    engine.submitted.clear()
    engine.die()
    engine.come_back()
    await settle()
    assert [(each.id, each.max_tokens) for each in engine.submitted] == [("b", 1)]  # alone
    pass_trial(engine, "b")
    await settle()
    assert [(each.id, each.max_tokens) for each in engine.submitted[1:]] == [("a", 1)]
    assert list(engine.sinks) == ["a"]
    pass_trial(engine, "a")
    await settle()
    assert not is_recovering(streams)
    assert list(engine.sinks) == ["b", "a"]
    assert [(each.generated, each.max_tokens) for each in engine.submitted[2:]] == [((7,), 4)] * 2
    assert [suspect.ended for suspect in suspects] == [None, None]


async def die_after(engine: ScriptedEngine, num_tokens: int) -> None:
    """Give every stream so many tokens; then the engine dies and comes back."""
    for sink in list(engine.sinks.values()):
        for _ in range(num_tokens):
            sink.delta("x", 1, (7,))
    engine.die()
    engine.come_back()
    await settle()


async def deaths_by(killer: Stream, engine: ScriptedEngine, num_tokens: int) -> int:
    """Let the engine die whenever `killer` has got so many tokens, until `killer` is given up.

    Return the number of deaths.
    """
    num_deaths = 0
    while killer.ended is None:
        if killer.id in engine.sinks:
            await die_after(engine, num_tokens)
            num_deaths += 1
        else:
            for name in list(engine.sinks):
                pass_trial(engine, name)
            await settle()
    return num_deaths


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 100])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["oldest", "middle", "youngest"])
async def test_a_killer_with_progress_ends_after_four_deaths_and_others_go_on(
    place: int, num_tokens: int
) -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    names = ["a", "b"]
    names.insert(place, "bad")
    of = {name: opened(streams, ask(name, 10_000)) for name in names}
    bad = of.pop("bad")
    assert await deaths_by(bad, engine, num_tokens) == 4
    assert isinstance(bad.ended, Failure)
    assert (bad.ended.code, bad.ended.retry_safe) == ("engine_died", False)
    assert "4 times" in bad.ended.message
    assert not is_recovering(streams)
    assert set(engine.sinks.values()) == set(of.values())  # not on trial any more
    assert [(stream.ended, stream.deaths) for stream in of.values()] == [(None, 0)] * 2


async def test_a_killer_that_survives_its_trials_ends_after_six_deaths() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    bad = opened(streams, ask("bad", 100_000))
    num_deaths = 0
    while bad.ended is None:
        while is_recovering(streams):
            pass_trial(engine, "bad")
            await settle()
        await die_after(engine, 300)
        num_deaths += 1
    assert num_deaths == 6


async def test_an_innocent_stream_beside_one_that_cannot_pause_is_not_convicted() -> None:
    """A schema's stream cannot pause after its trial: the engine's death in the next trial may be
    its fault."""
    engine = ScriptedEngine()
    streams = Streams([engine])
    innocent = opened(streams, ask("innocent"))
    bound = opened(streams, msgspec.structs.replace(ask("bound"), json_schema="{}"))
    engine.die()
    engine.come_back()
    await settle()
    assert list(engine.sinks) == ["bound"]
    engine.sinks["bound"].delta("{", 1, (7,))
    await settle()
    assert list(engine.sinks) == ["bound", "innocent"]
    engine.die()
    assert isinstance(bound.ended, Failure)
    assert bound.ended.retry_safe
    assert innocent.ended is None
    engine.come_back()
    await settle()
    assert list(engine.sinks) == ["innocent"]
    pass_trial(engine, "innocent")
    await settle()
    assert not is_recovering(streams)


async def test_an_engine_that_dies_while_streams_go_on_is_waited_for_again() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = begin(streams, "a")
    for _ in range(3):
        engine.die()
        engine.die()
        engine.come_back()
        await settle()
        stream.delta("a ", 1, (7,))
    assert stream.log.text() == "a a a a "


async def test_draining_ends_those_that_wait_for_the_engine() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = begin(streams, "a")
    engine.die()
    await streams.drain(0)
    assert isinstance(stream.ended, Failure)
    assert stream.ended.code == "server_shutdown"
    engine.come_back()
    await settle()
    assert engine.sinks == {}


async def test_an_answer_under_a_schema_is_given_up_at_once_and_the_others_go_on() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    other = begin(streams, "other")
    request = msgspec.structs.replace(ask("schema"), json_schema="{}")
    stream = opened(streams, request)
    stream.accepted((1,))
    stream.started()
    stream.delta("{", 1, (7,))
    engine.die()
    assert isinstance(stream.ended, Failure)
    assert (stream.ended.code, stream.ended.retry_safe) == ("engine_died", True)
    engine.come_back()
    await settle()
    assert list(engine.sinks) == ["other"]
    assert other.ended is None
    assert not is_recovering(streams)


async def test_an_answer_under_a_schema_that_has_not_begun_is_simply_asked_for_again() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    request = msgspec.structs.replace(ask("schema"), json_schema="{}")
    stream = opened(streams, request)
    stream.accepted((1,))
    engine.die()
    engine.come_back()
    await settle()
    assert list(engine.sinks) == ["schema"]
    assert engine.submitted[-1].json_schema == "{}"
    assert stream.ended is None


async def test_streams_wait_on_when_the_engine_dies_again_before_they_could_go_on() -> None:
    """Once, an engine that died again before the recovery's task ran made that task fail: its
    streams hung, and new requests were refused for ever. Now these streams stay in the recovery."""
    engine = ScriptedEngine()
    streams = Streams([engine])
    stream = begin(streams, "a")
    engine.die()
    await settle()
    engine.come_back()
    engine.go_down()
    await settle()
    assert is_recovering(streams)
    engine.come_back()
    await settle()
    assert not is_recovering(streams)
    stream.delta("more", 1, (8,))
    assert stream.log.text() == "a more"


async def test_a_stream_that_cannot_be_continued_for_a_bug_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    broken, sound = begin(streams, "broken"), begin(streams, "sound")
    continuation = Stream.continuation

    def fail_once(stream: Stream) -> Request:
        if stream is broken:
            raise LookupError("a bug")
        return continuation(stream)

    monkeypatch.setattr(Stream, "continuation", fail_once)
    engine.die()
    engine.come_back()
    await settle()
    assert isinstance(broken.ended, Failure)
    assert broken.ended.code == "internal_error"
    assert list(engine.sinks) == ["sound"]
    assert sound.ended is None
    assert not is_recovering(streams)
