"""A key stands for one stream, also where several replicas are asked at once."""

import asyncio
import random

import pytest

from penstock.api import joining
from penstock.api.joining import Joining
from penstock.errors import Problem
from penstock.events import Failure
from penstock.store.names import MemoryNames
from penstock.store.protocol import StoreError
from penstock.stream.quotas import ANYBODY
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream
from tests.support.problems import raises_problem
from tests.support.replicas import ReplicaInTest, started
from tests.support.scripted import ScriptedEngine, ask, opened, settle, speak
from tests.support.shared_store import Shared

BODY, OTHER = b"body", b"other"


class RemoteNames(MemoryNames):
    """Names that take a while, as in a store; each call takes effect somewhere in between."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self.is_down = False

    async def _travel(self) -> None:
        for _ in range(self._chance.randrange(6)):
            await asyncio.sleep(0)
        if self.is_down:
            raise StoreError("secret")

    async def get(self, name: str) -> bytes | None:
        await self._travel()
        return await super().get(name)

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        await self._travel()
        kept = await super().put_if_absent(name, value, ttl)
        await self._travel()
        return kept

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        await self._travel()
        await super().put(name, value, ttl)

    async def delete(self, name: str) -> None:
        await self._travel()
        await super().delete(name)


class Replicas:
    """Three replicas over one store. Each finds every stream, as it does with a store of logs."""

    def __init__(self, names: MemoryNames) -> None:
        self.engine = ScriptedEngine()
        self.streams = Streams([self.engine], Limits(retain=3600))
        self.every = [Joining(names, self.streams) for _ in range(3)]
        self.num_opened = 0

    async def answer(self, where: int, body: bytes = BODY) -> Stream:
        """Return the stream that a request at this replica gets."""
        replica = self.every[where]
        self.num_opened += 1
        stream_id = f"s{self.num_opened}"
        joined = await replica.join("name", body, ANYBODY, stream_id)
        if joined is not None:
            return joined
        stream = opened(self.streams, ask(stream_id), resumable=True, name="name")
        await replica.confirm("name", body, stream_id)
        return stream


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_LOOK_EVERY_S", 0.001)


@pytest.fixture
async def memory() -> tuple[MemoryNames, Replicas]:
    names = MemoryNames()
    return names, Replicas(names)


@pytest.mark.parametrize("seed", range(20))
async def test_of_requests_at_once_one_begins_and_the_others_join(seed: int) -> None:
    replicas = Replicas(RemoteNames(seed))
    answers = await asyncio.gather(*(replicas.answer(number % 3) for number in range(9)))
    assert len({stream.id for stream in answers}) == 1
    assert len(replicas.streams) == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("end", ["cancelled", "dropped", "failed"])
async def test_a_key_whose_stream_is_gone_is_taken_over_once(seed: int, end: str) -> None:
    """Also while the replica that had it frees the key."""
    replicas = Replicas(RemoteNames(seed))
    first = await replicas.answer(2)  # the one that is told of dropped streams
    match end:
        case "cancelled":
            first.cancel()
        case "failed":
            first.accepted((1,))
            first.fail("engine_error", "It gave up.")
            assert isinstance(first.ended, Failure)
            assert first.ended.retry_safe
        case "dropped":
            speak(first, "text")
            replicas.streams.drop_kept()
    answers = await asyncio.gather(*(replicas.answer(number % 3) for number in range(9)))
    assert len({stream.id for stream in answers}) == 1
    assert answers[0].id != first.id
    assert len(replicas.streams) == 1
    await settle()
    assert await replicas.answer(1) is answers[0], "the key was freed for another's stream"


async def test_another_body_is_refused_while_the_stream_is_claimed_runs_or_is_kept() -> None:
    replicas = Replicas(MemoryNames())
    assert await replicas.every[0].join("name", BODY, ANYBODY, "s1") is None
    with raises_problem("idempotency_key_reused"):
        await replicas.answer(1, OTHER)
    stream = opened(replicas.streams, ask("s1"), resumable=True, name="name")
    await replicas.every[0].confirm("name", BODY, "s1")
    with raises_problem("idempotency_key_reused"):
        await replicas.answer(1, OTHER)
    speak(stream, "text")
    with raises_problem("idempotency_key_reused"):
        await replicas.answer(1, OTHER)
    replicas.streams.drop_kept()
    assert await replicas.answer(1, OTHER) is not stream


async def test_a_replica_whose_store_is_late_keeps_its_key() -> None:
    """The name may be stored elsewhere than the log, and sooner: then the stream looked gone."""
    shared = Shared()
    first, second = ReplicaInTest(shared, "first"), ReplicaInTest(shared, "second")
    await started(first, second)
    mine, others = (Joining(each.store, each.streams) for each in (first, second))
    assert await mine.join("name", BODY, ANYBODY, "s1") is None
    first.store.fall_behind()
    opened(first.streams, ask("s1"), resumable=True, name="name")
    confirming = asyncio.create_task(mine.confirm("name", BODY, "s1"))
    await settle()
    joining_it = asyncio.create_task(others.join("name", BODY, ANYBODY, "s2"))
    await settle()
    first.store.catch_up()
    await confirming
    joined = await joining_it
    assert joined is not None
    assert joined.id == "s1"


async def test_a_replica_that_dies_before_its_stream_is_open_loses_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "_CLAIM_S", 0.02)
    replicas = Replicas(MemoryNames())
    assert await replicas.every[0].join("name", BODY, ANYBODY, "never") is None
    async with asyncio.timeout(20):
        stream = await replicas.answer(1)
    assert stream.id != "never"


async def test_a_replica_that_takes_a_stream_over_confirms_its_key() -> None:
    """Its server may have died after it opened the stream, and before it confirmed the key."""
    replicas = Replicas(MemoryNames())
    assert await replicas.every[0].join("name", BODY, ANYBODY, "s1") is None
    stream = opened(replicas.streams, ask("s1"), resumable=True, name="name")
    waiting = asyncio.create_task(replicas.answer(1))
    await settle()
    assert not waiting.done()
    for tell in replicas.streams.on_adopted:
        tell(stream)
    async with asyncio.timeout(20):
        assert await waiting is stream
    with raises_problem("idempotency_key_reused"):
        await replicas.answer(1, OTHER)


async def test_a_claim_that_is_released_lets_the_next_one_begin() -> None:
    replicas = Replicas(MemoryNames())
    assert await replicas.every[0].join("name", BODY, ANYBODY, "refused") is None
    waiting = asyncio.create_task(replicas.answer(1))
    await settle()
    assert not waiting.done()
    await replicas.every[0].release("name")
    async with asyncio.timeout(20):
        assert (await waiting).id != "refused"


async def test_there_are_no_more_names_than_kept_streams(
    memory: tuple[MemoryNames, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_SUCCESSION_S", 0.0)
    names, replicas = memory
    replica = replicas.every[-1]  # the one that is told of dropped streams
    for number in range(50):
        name, stream_id = f"name {number}", f"kept {number}"
        assert await replica.join(name, BODY, ANYBODY, stream_id) is None
        stream = opened(replicas.streams, ask(stream_id), resumable=True, name=name)
        speak(stream, "text")
        await replica.confirm(name, BODY, stream_id)
    assert len(names) == len(replicas.streams.kept) == 50
    while replicas.streams.drop_kept():
        pass
    await settle()
    assert len(names) == 0


async def test_a_store_that_does_not_answer_is_a_problem_that_is_safe_to_retry() -> None:
    names = RemoteNames()
    replicas = Replicas(names)
    names.is_down = True
    (replica, *_) = replicas.every
    for asking in (
        replica.is_taken("name"),
        replica.join("name", BODY, ANYBODY, "s1"),
        replica.confirm("name", BODY, "s1"),
        replica.release("name"),
    ):
        with pytest.raises(Problem) as refused:
            await asking
        assert (refused.value.code, refused.value.retry_safe) == ("store_unavailable", True)
        assert "secret" not in refused.value.detail


async def test_a_name_in_memory_ends_with_its_time() -> None:
    names = MemoryNames()
    assert await names.put_if_absent("a", b"1", 0.01) is None
    assert await names.put_if_absent("a", b"2", 60) == b"1"
    await names.put("b", b"1", 0.01)
    await names.put("b", b"2", 60)
    async with asyncio.timeout(20):
        while await names.get("a") is not None:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    assert await names.get("b") == b"2"
    await names.delete("b")
    await names.delete("b")
    assert len(names) == 0
