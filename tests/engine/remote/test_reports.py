"""What the engine tells the server of its upstreams: who is up, what they did, and their slots."""

import asyncio
from collections.abc import Callable

from penstock.engine.protocol import ModelInfo, UpstreamState
from penstock.engine.remote.engine import Remote
from tests.engine.remote.cuts import after
from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.remote import FIRST, ask, remote, text_from

PATIENCE_S = 20


class Told:
    """Everything that an engine tells, and a wait for it."""

    def __init__(self, engine: Remote) -> None:
        self.upstreams: tuple[UpstreamState, ...] = ()
        self.info = engine.info
        self._changed = asyncio.Event()
        engine.on_upstreams = self._take_upstreams
        engine.on_info = self._take_info

    def _take_upstreams(self, states: tuple[UpstreamState, ...]) -> None:
        self.upstreams = states
        self._changed.set()

    def _take_info(self, info: ModelInfo) -> None:
        self.info = info
        self._changed.set()

    async def until(self, is_so: Callable[["Told"], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so(self):
                self._changed.clear()
                await self._changed.wait()


async def test_failures_and_failovers_are_counted_at_the_upstream_that_failed() -> None:
    one, two = FakeUpstream(), FakeUpstream()
    one.weight = FIRST  # the answer begins here
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = [after(4, "reset")]
        told = Told(engine)
        sink = await ask(engine, "a", 20).end()
        assert sink.text() == text_from(3, 20)
        await told.until(lambda told: sum(each.answered for each in told.upstreams) == 1)
        first, second = told.upstreams
        assert (first.name, first.model) == (one.url, "fake")
        assert (first.failed, first.failures, first.failovers, first.answered) == (1, 1, 1, 0)
        assert (second.failed, second.failures, second.failovers, second.answered) == (0, 0, 0, 1)
        assert [each.running for each in told.upstreams] == [0, 0]
        assert sink.calls.count("continuing") == 1
        assert sink.calls.index("continuing") == sink.calls.index("delta") + 4


async def test_an_outage_is_told_at_once_and_its_answers_wait() -> None:
    only = FakeUpstream()
    async with fakes(only), remote(only, interval=0.05) as engine:
        told = Told(engine)
        only.faults = [after(4, "reset")]
        sink = ask(engine, "a", 20)
        await only.close()
        await told.until(lambda told: bool(told.upstreams) and not told.upstreams[0].is_up)
        await only.open()
        assert (await sink.end()).text() == text_from(3, 20)
        await told.until(lambda told: told.upstreams[0].is_up)
        assert told.upstreams[0].look_time > 0
    assert [each for each in sink.calls if each in ("waiting", "continuing")][:1] == ["waiting"]


async def test_requests_under_way_refused_and_cancelled_are_counted() -> None:
    only = FakeUpstream()
    async with fakes(only), remote(only) as engine:
        told = Told(engine)
        arrived = asyncio.Queue[Exchange]()

        async def hold(exchange: Exchange) -> None:
            arrived.put_nowait(exchange)
            await exchange.until_gone()

        only.always = hold
        for name in "ab":
            ask(engine, name, 5)
        async with asyncio.timeout(PATIENCE_S):  # questions about prompts count as running, too
            for _ in "ab":
                await arrived.get()
        await told.until(lambda told: bool(told.upstreams) and told.upstreams[0].running == 2)
        engine.cancel("a", lambda: None)
        engine.cancel("b", lambda: None)
        await told.until(lambda told: told.upstreams[0].cancelled == 2)
        only.always = lambda exchange: exchange.whole({}, "400 Bad Request")
        await ask(engine, "c", 5).end()
        await told.until(lambda told: told.upstreams[0].refused == 1)
        assert told.upstreams[0].running == told.upstreams[0].failures == 0


async def test_a_model_has_its_own_slots_and_none_while_no_upstream_is_up() -> None:
    small, large = FakeUpstream(model="small"), FakeUpstream(model="large")
    async with fakes(small, large), remote(small, large, interval=0.05) as engine:
        told = Told(engine)
        assert (engine.info.slots, engine.info.own_slots) == (128, 64)
        assert engine.info.of("large").own_slots == 64
        await large.close()
        await told.until(lambda told: told.info.of("large").own_slots == 0)
        assert told.info.own_slots == 64
        await large.open()
        await told.until(lambda told: told.info.of("large").own_slots == 64)


async def test_the_model_is_described_as_its_upstreams_are_now() -> None:
    early, late = FakeUpstream("openai"), FakeUpstream("ollama")
    async with fakes(early, late):
        await late.close()
        async with remote(early, late, interval=0.05) as engine:
            told = Told(engine)
            assert [each.kind for each in engine.info.upstreams] == ["openai"]
            assert "tools_with_schema" in engine.info.supports
            await late.open()
            await told.until(lambda told: len(told.info.upstreams) == 2)
            assert [each.kind for each in told.info.upstreams] == ["openai", "ollama"]
            assert "tools_with_schema" not in told.info.supports, "Ollama cannot"
            early.kind, early.context = "vllm", 200_000
            await told.until(lambda told: told.info.upstreams[0].kind == "vllm")
            assert told.info.upstreams[0].context_length == 200_000
            assert told.info.context_length == 100_000, "this was promised"


async def test_an_upstream_that_comes_late_adds_its_slots() -> None:
    early, late = FakeUpstream(), FakeUpstream()
    async with fakes(early, late):
        await late.close()
        async with remote(early, late, interval=0.05) as engine:
            told = Told(engine)
            assert engine.info.slots == 64
            await late.open()
            await told.until(lambda told: told.info.slots == 128)
            assert told.info.own_slots is None  # there is one model
