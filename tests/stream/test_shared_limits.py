"""The limits of an owner hold over several replicas."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Problem
from penstock.request import Request
from penstock.stream import registry, shared_limits
from penstock.stream.budget import Budget, Claim
from penstock.stream.quotas import Owner, Quotas
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Limits, Streams
from penstock.stream.shared_limits import Counts, decode, encode, keep_exchanging
from tests.support.owners import BOB, limited
from tests.support.replicas import ReplicaInTest, started
from tests.support.scripted import ScriptedEngine, ask, opened, settle, speak
from tests.support.shared_store import Shared

NAME = limited().name


class Board:
    """Where replicas publish, as a store has it. It tells when every replica has exchanged."""

    def __init__(self) -> None:
        self.published: dict[str, bytes] = {}
        self.num_exchanges: dict[str, int] = {}
        self.fails = False
        self._changed = asyncio.Condition()

    async def exchange(self, replica: str, mine: bytes) -> Mapping[str, bytes]:
        async with self._changed:
            self.num_exchanges[replica] = self.num_exchanges.get(replica, 0) + 1
            self._changed.notify_all()
        if self.fails:
            raise ConnectionError("secret")
        self.published[replica] = mine
        return {name: data for name, data in self.published.items() if name != replica}

    async def all_exchanged(self, times: int = 2) -> None:
        """Wait until each replica has exchanged so often more: all know what all had before."""
        due = {name: count + times for name, count in self.num_exchanges.items()}
        async with self._changed, asyncio.timeout(20):
            await self._changed.wait_for(
                lambda: all(self.num_exchanges[name] >= count for name, count in due.items())
            )


@contextlib.asynccontextmanager
async def replicas(
    count: int, limits: Limits | None = None
) -> AsyncIterator[tuple[Board, list[Streams]]]:
    """Yield a board, and streams that exchange their counts over it all the time."""
    board = Board()
    every = [Streams([ScriptedEngine()], limits) for _ in range(count)]
    tasks = []
    for number, streams in enumerate(every):
        exchange = functools.partial(board.exchange, f"r{number}")
        loop = keep_exchanging(streams._quotas, exchange, every=0.005)
        tasks.append(asyncio.create_task(loop))
    await asyncio.sleep(0)
    try:
        await board.all_exchanged()
        yield board, every
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def code_of_refusal(streams: Streams, owner: Owner, max_tokens: int = 5, **fields: bool) -> str:
    with pytest.raises(Problem) as refused:
        opened(streams, ask("refused", max_tokens), owner=owner, **fields)
    return refused.value.code


async def test_streams_at_another_replica_count() -> None:
    owner = limited(max_streams=2)
    async with replicas(2) as (board, (first, second)):
        running = opened(first, ask("a"), owner=owner)
        opened(second, ask("b"), owner=owner)
        await board.all_exchanged()
        assert code_of_refusal(first, owner) == "too_many_streams"
        assert code_of_refusal(second, owner) == "too_many_streams"
        opened(second, ask("c"), owner=BOB)
        running.cancel()
        await board.all_exchanged()
        opened(second, ask("d"), owner=owner)


async def test_resumable_streams_at_another_replica_count_while_they_are_kept() -> None:
    owner = limited(max_resumable=1)
    async with replicas(2) as (board, (first, second)):
        speak(opened(first, ask("a"), owner=owner, resumable=True), "text")
        await board.all_exchanged()
        assert code_of_refusal(second, owner, resumable=True) == "too_many_streams"
        first.drop_kept()
        await board.all_exchanged()
        opened(second, ask("b"), owner=owner, resumable=True)


async def test_what_another_replica_keeps_counts() -> None:
    one = Streams([ScriptedEngine()])
    speak(opened(one, ask("a"), owner=BOB, resumable=True), "text")
    owner = limited(max_retained_bytes=one.kept.num_bytes * 3 // 2)
    async with replicas(2) as (board, (first, second)):
        speak(opened(first, ask("a"), owner=owner, resumable=True), "text")
        assert len(first.kept) == 1
        await board.all_exchanged()
        speak(opened(second, ask("b"), owner=owner, resumable=True), "text")
        assert (len(first.kept), len(second.kept)) == (1, 0)
        first.drop_kept()
        await board.all_exchanged()
        speak(opened(second, ask("c"), owner=owner, resumable=True), "text")
        assert len(second.kept) == 1


async def test_tokens_that_are_taken_at_another_replica_are_gone() -> None:
    owner = limited(tokens_per_minute=1000)
    async with replicas(2) as (board, (first, second)):
        running = opened(first, ask("a", 900), owner=owner)
        await board.all_exchanged()
        assert int(second.token_headers(owner)["X-RateLimit-Remaining-Tokens"]) < 110
        assert code_of_refusal(second, owner, 500) == "too_many_tokens"
        running.cancel()  # it never began, so it gives its tokens back
        await board.all_exchanged()
        opened(second, ask("b", 500), owner=owner)


async def test_what_was_too_much_in_one_moment_is_paid_back_everywhere() -> None:
    owner = limited(tokens_per_minute=1000)
    async with replicas(3) as (board, every):
        for streams in every:  # none of them has heard of the others yet
            opened(streams, ask("a", 900), owner=owner)
        await board.all_exchanged()
        for streams in every:
            budget = streams._quotas._budgets[NAME]
            assert -2000 < budget._left < -1600
            assert code_of_refusal(streams, owner, 1) == "too_many_tokens"


async def test_a_replica_that_comes_later_has_what_the_others_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()  # it stands still: no token comes back between two looks
    for module in (registry, shared_limits):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    owner = limited(tokens_per_minute=1000)
    async with replicas(2) as (board, (first, second)):
        for number in range(4):  # the first one has given and got back much more than is left
            opened(first, ask(f"{number}", 900), owner=owner).cancel()
        opened(first, ask("last", 600), owner=owner)
        await board.all_exchanged()
        left = int(second.token_headers(owner)["X-RateLimit-Remaining-Tokens"])
        assert left == int(first.token_headers(owner)["X-RateLimit-Remaining-Tokens"])


async def test_a_dead_replica_s_streams_no_longer_count() -> None:
    owner = limited(max_streams=1)
    async with replicas(1) as (board, (only,)):
        board.published["dead"] = encode({NAME: Counts(num_open=1)})
        await board.all_exchanged()
        assert code_of_refusal(only, owner) == "too_many_streams"
        del board.published["dead"]
        await board.all_exchanged()
        opened(only, ask("a"), owner=owner)


async def test_while_the_store_does_not_answer_the_last_counts_hold(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = limited(max_streams=1)
    async with replicas(2) as (board, (first, second)):
        opened(first, ask("a"), owner=owner)
        await board.all_exchanged()
        board.fails = True
        await board.all_exchanged()
        assert code_of_refusal(second, owner) == "too_many_streams"
        assert "ConnectionError" in caplog.text
        assert "secret" not in caplog.text


async def test_a_stream_that_is_taken_over_takes_its_tokens_from_its_new_owner() -> None:
    shared = Shared()
    first, second = ReplicaInTest(shared, "first"), ReplicaInTest(shared, "second")
    await started(first, second)
    owner = limited(tokens_per_minute=1000)
    request = Request(id="a", max_tokens=500, prompt="x")
    first.streams.open(StreamRecord(request, owner, resumable=True))
    first.begins("a")
    first.generates("a", "one ", "two ")
    first.die()
    await settle()
    budget = second.streams._quotas._budgets[NAME]
    assert budget.num_taken == 498
    second.begins("a")
    second.generates("a", "three ")
    second.finishes("a", 1)
    await settle()
    assert second.streams.find("a", owner).ended is not None
    assert budget.num_taken == 1


async def test_owners_without_limits_are_not_published() -> None:
    quotas = Quotas()
    quotas.opened(BOB, resumable=True)
    assert quotas.counts(0.0) == {}
    quotas.opened(limited(max_streams=3), resumable=True)
    assert quotas.counts(0.0) == {NAME: Counts(1, 1)}
    quotas.ended(limited(max_streams=3))
    quotas.dropped(limited(max_streams=3), 0)
    assert quotas.counts(0.0) == {}


def test_counts_of_another_version_are_left_out() -> None:
    counts = {"a": Counts(1, 2, 3, 4, 5, 6), "b": Counts()}
    assert decode(encode(counts)) == counts
    assert decode(msgspec.msgpack.encode((2, {"a": "new"}))) == {}
    assert decode(b"\xc1") == {}


PER_MINUTE = 600
Step = tuple[float, int, int]
steps = st.lists(
    st.tuples(st.floats(0, 20), st.integers(0, 2), st.integers(1, PER_MINUTE)), max_size=40
)


@given(steps, st.integers(1, 3), st.floats(0.1, 2.0))
def test_n_replicas_give_at_most_n_budgets_and_what_refills(
    asked: list[Step], num_replicas: int, every: float
) -> None:
    """In any t seconds, `per_minute * (n + t / 60)`, and what refills between two exchanges."""
    owner = limited(tokens_per_minute=PER_MINUTE)
    every_quotas = [Quotas() for _ in range(num_replicas)]
    now = exchanged = 0.0
    given_at: list[tuple[float, int]] = []
    exchange(every_quotas, now)
    for number, (pause, where, num_tokens) in enumerate(asked):
        now += pause
        while exchanged + every <= now:
            exchanged += every
            exchange(every_quotas, exchanged)
        quotas = every_quotas[where % num_replicas]
        claim = Claim(0, num_tokens)
        if quotas.refusal_of_tokens(owner, [claim], now) is None:
            quotas.reserve(owner, f"{number}", claim, functools.partial(int, num_tokens), now)
            quotas.prompt_counted(owner, f"{number}", 0, now)
            quotas.settle(owner, f"{number}", now, has_begun=True)
            given_at.append((now, num_tokens))
    slack = num_replicas * PER_MINUTE * every / 60 + 1
    for first, (began, _) in enumerate(given_at):
        total = 0
        for at, num_tokens in given_at[first:]:
            total += num_tokens
            assert total <= PER_MINUTE * (num_replicas + (at - began) / 60) + slack


def exchange(every: list[Quotas], now: float) -> None:
    published = {f"r{number}": quotas.counts(now) for number, quotas in enumerate(every)}
    for number, quotas in enumerate(every):
        mine = f"r{number}"
        quotas.others_have({name: each for name, each in published.items() if name != mine}, now)


def test_budgets_that_exchange_agree_on_what_is_left() -> None:
    first, second = Budget(PER_MINUTE, 0.0), Budget(PER_MINUTE, 0.0)
    first.reserve("a", Claim(0, 400), lambda: 0, 1.0)
    second.others_took(400, 1.0)
    second.others_hold(400, 1.0)
    assert first.left(60.0) == second.left(60.0) == PER_MINUTE - 400
