"""The limits of an owner: open streams, kept streams and tokens per minute."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from penstock.errors import Problem
from penstock.request import Request
from penstock.stream import registry
from penstock.stream.quotas import Owner
from penstock.stream.record import ChoiceGroup, StreamRecord
from penstock.stream.registry import Limits, Streams
from tests.support.owners import BOB, limited
from tests.support.problems import raises_problem
from tests.support.scripted import ScriptedEngine, ask, end, one_slot, opened, speak, submitted


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no tokens come back while a test counts them."""
    now = time.monotonic()
    monkeypatch.setattr(registry, "time", SimpleNamespace(monotonic=lambda: now))


def refusal(streams: Streams, owner: Owner, *, resumable: bool = False, max_tokens: int = 5) -> str:
    with pytest.raises(Problem) as refused:
        opened(streams, ask("refused", max_tokens), owner=owner, resumable=resumable)
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
    async with asyncio.timeout(20):
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


async def test_a_burst_reserves_what_it_may_use_and_gives_back_the_rest() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(tokens_per_minute=100)
    first = opened(streams, ask("a", max_tokens=60), owner=owner)
    assert refusal(streams, owner, max_tokens=60) == "too_many_tokens"
    assert refusal(streams, owner, max_tokens=40) == "too_many_tokens"  # and a prompt
    opened(streams, ask("b", max_tokens=20), owner=owner)
    speak(first, "text", 10)
    opened(streams, ask("c", max_tokens=60), owner=owner)
    assert refusal(streams, owner, max_tokens=10) == "too_many_tokens"


async def test_a_refusal_says_in_how_many_seconds_there_are_enough_tokens() -> None:
    streams = Streams([ScriptedEngine()])
    owner = limited(tokens_per_minute=100)
    speak(opened(streams, ask("a", max_tokens=99), owner=owner), "text", 99)
    with raises_problem("too_many_tokens") as refused:
        opened(streams, ask("b", max_tokens=60), owner=owner)
    assert 36 <= int(refused.value.headers["Retry-After"]) <= 37  # 61 of 100 in a minute
    assert refused.value.headers["X-RateLimit-Limit-Tokens"] == "100"
    assert refused.value.headers["X-RateLimit-Remaining-Tokens"] == "0"
    reset = streams.token_headers(owner)["X-RateLimit-Reset-Tokens"]
    assert 59 < float(reset.removesuffix("s")) <= 60


@pytest.mark.parametrize(("max_tokens", "has_limit"), [(5000, True), (90, False)])
async def test_a_request_without_a_fitting_limit_gets_its_share(
    max_tokens: int, has_limit: bool
) -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    owner = limited(tokens_per_minute=100)
    for name in "abc":
        opened(streams, ask(name, max_tokens), owner=owner, has_limit=has_limit)
    assert [request.max_tokens for request in engine.submitted] == [25, 25, 25]
    assert refusal(streams, owner, max_tokens=25) == "too_many_tokens"


async def test_a_prompt_larger_than_its_estimate_is_refused_before_the_engine_reads_it() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    owner = limited(tokens_per_minute=100)
    stream = opened(streams, ask("a", max_tokens=50), owner=owner)
    stream.accepted(tuple(range(60)))
    never = stream.was_accepted.result()
    assert never is not None
    assert not never.retry_safe  # it does not fit into any minute
    assert engine.cancelled == ["a"]
    fitting = opened(streams, ask("b", max_tokens=30), owner=owner)
    fitting.accepted(tuple(range(40)))
    assert fitting.ended is None
    later = opened(streams, ask("c", max_tokens=10), owner=owner)
    later.accepted(tuple(range(40)))
    problem = later.was_accepted.result()
    assert problem is not None
    assert problem.retry_safe
    assert int(problem.headers["Retry-After"]) >= 1


async def test_choices_reserve_their_tokens_together_or_not_at_all() -> None:
    engine = ScriptedEngine()
    streams = Streams([engine])
    owner = limited(tokens_per_minute=100)
    opened(streams, ask("other", max_tokens=50), owner=owner)
    group = [
        StreamRecord(
            ask(name, max_tokens=20), owner, choices=ChoiceGroup("a", number, 3, number == 0)
        )
        for number, name in enumerate("abc")
    ]
    with raises_problem("too_many_tokens"):
        streams.open_all(group)
    assert submitted(engine) == ["other"]


async def test_requests_that_end_without_a_token_cost_their_estimate() -> None:
    engine, streams = one_slot()
    owner = limited(tokens_per_minute=100)
    opened(streams, ask("refused", max_tokens=50), owner=owner).fail("prompt_too_long", "Long.")
    assert left(streams, owner) == 84
    opened(streams, ask("cancelled", max_tokens=50), owner=owner).cancel()
    assert left(streams, owner) == 68
    big = Request("big", max_tokens=1, prompt="x" * 160)
    opened(streams, big, owner=owner).fail("prompt_too_long", "Long.")
    assert left(streams, owner) == 27  # a token of four bytes, and one more
    opened(streams, ask("running", max_tokens=1), owner=BOB)
    opened(streams, ask("queued", max_tokens=1), owner=owner).cancel()
    assert left(streams, owner) in (25, 26)
    engine.go_down()


def left(streams: Streams, owner: Owner) -> int:
    return int(streams.token_headers(owner)["X-RateLimit-Remaining-Tokens"])


@pytest.mark.parametrize("other", [10, 99, 101, 100_000])
async def test_what_was_used_stays_used_if_the_limit_changes(other: int) -> None:
    streams = Streams([ScriptedEngine()])
    speak(
        opened(streams, ask("a", max_tokens=99), owner=limited(tokens_per_minute=100)), "text", 99
    )
    assert left(streams, limited(tokens_per_minute=other)) <= other / 60
    opened(streams, ask("b"), owner=limited())
    assert left(streams, limited(tokens_per_minute=100)) <= 2


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
    async with asyncio.timeout(20):
        while len(streams.kept):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
    accounts = streams._quotas
    assert not accounts._num_open
    assert not accounts._num_resumable
    assert not accounts._kept_bytes
