"""What operators and clients learn when upstreams go and come back, and what a busy model costs."""

import asyncio
import json
from typing import Any

import httpx

from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.front import front
from tests.support.remote import text_from
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer
from tests.support.watching import Watch

PATIENCE_S = 30
QUICK = "interval=0.1"
ASKS = {"X-Penstock-Status": "true"}


def client_of(server: RunningServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=2 * PATIENCE_S)


class Answer:
    """A streamed answer with its statuses, as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.statuses: list[dict[str, Any]] = []
        self.text = ""
        self.code = ""

    async def until(self, state: str) -> dict[str, Any]:
        """Read until a status has this state."""
        async for line in self._lines:
            if self._read(line) == state:
                return self.statuses[-1]
        raise AssertionError(self.statuses)

    async def until_text(self, text: str) -> None:
        async for line in self._lines:
            self._read(line)
            if self.text == text:
                return

    async def to_end(self) -> str:
        async for line in self._lines:
            self._read(line)
        return self.text

    @property
    def states(self) -> list[str]:
        """The states in order, without repetitions."""
        states = [each["state"] for each in self.statuses]
        return [each for n, each in enumerate(states) if states[n - 1 : n] != [each]]

    def _read(self, line: str) -> str:
        if line.startswith(": status "):
            self.statuses.append(json.loads(line.removeprefix(": status ")))
            return str(self.statuses[-1]["state"])
        if line.startswith("data: "):
            self.text += json.loads(line.removeprefix("data: ")).get("token", "")
        return ""


async def test_metrics_health_and_the_live_view_show_an_outage_and_its_end() -> None:
    one, two = FakeUpstream(model="m"), FakeUpstream(model="m")
    up = "penstock_upstream_up"
    async with fakes(one, two), front(one.url, two.url, engine_arg=QUICK) as server:

        def told() -> tuple[httpx.Response, httpx.Response]:
            with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
                return client.get("/health"), client.get("/health/ready")

        async def until_up(*urls: str) -> Scrape:
            wanted = {each.url: float(each.url in urls) for each in (one, two)}
            return await asyncio.to_thread(
                scrape_until, server, lambda scrape: scrape.by(up, "upstream") == wanted
            )

        watch = await asyncio.to_thread(Watch, server.port)
        scrape = await until_up(one.url, two.url)
        assert scrape.by(up, "model") == {"m": 2}
        assert set(scrape.by("penstock_build_info", "model")) == {"m"}
        await one.close()
        failed = await until_up(two.url)
        assert failed("penstock_upstream_failures_total", upstream=one.url) >= 1
        assert failed("penstock_upstream_failures_total", upstream=two.url) == 0
        health, ready = await asyncio.to_thread(told)
        assert health.json() == {"status": "healthy", "upstreams": {"m": {"up": 1, "all": 2}}}
        await two.close()
        await until_up()
        health, ready = await asyncio.to_thread(told)
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert health.json()["upstreams"] == {"m": {"up": 0, "all": 2}}
        await asyncio.to_thread(until_mark, watch, "0 of 2 upstreams of m are up.")
        await one.open()
        await two.open()
        again = await until_up(one.url, two.url)
        assert again("penstock_upstream_look_seconds", upstream=one.url) > 0
        await asyncio.to_thread(until_mark, watch, "2 of 2 upstreams of m are up.")
        watch.connection.close()


async def test_several_processes_tell_their_upstreams_together() -> None:
    upstream = FakeUpstream(model="m")
    async with fakes(upstream), front(upstream.url, processes=2, engine_arg=QUICK) as server:
        both = await asyncio.to_thread(
            scrape_until,
            server,
            lambda scrape: scrape.by("penstock_upstream_up", "process") == {"1": 1, "2": 1},
        )
        assert both.by("penstock_upstream_up", "upstream") == {upstream.url: 2}
        await upstream.close()
        await asyncio.to_thread(
            scrape_until,
            server,
            lambda scrape: scrape.by("penstock_upstream_up", "process") == {"1": 0, "2": 0},
        )
        last = await asyncio.to_thread(scrape_until, server, lambda scrape: True)
        assert last("penstock_process_restarts_total") == 0


def until_mark(watch: Watch, text: str) -> None:
    """Wait until the newest mark of an upstream has this text."""

    def texts() -> list[str]:
        return [mark["text"] for mark in watch.marks if mark["kind"] == "upstream"]

    watch.until(lambda: texts()[-1:] == [text])


async def test_a_client_is_told_that_its_answer_goes_on_at_another_upstream() -> None:
    several = [FakeUpstream() for _ in range(2)]
    gate = asyncio.Event()

    async def break_off(exchange: Exchange) -> None:
        await exchange.tokens(4)
        await gate.wait()
        exchange.reset()

    async with fakes(*several), front(*(each.url for each in several)) as server:
        for each in several:
            each.always = break_off
        body = {"prompt": "one two three", "max_tokens": 9}
        async with (
            client_of(server) as client,
            client.stream("POST", "/generate", json=body, headers=ASKS) as response,
        ):
            answer = Answer(response)
            await answer.until_text(text_from(3, 4))
            for each in several:
                each.always = None
            gate.set()
            assert await answer.to_end() == text_from(3, 9)
        assert answer.states[-3:] == ["generating", "continuing", "generating"]
        assert answer.statuses[-2:] == [
            {"state": "continuing", "tokens": 4},
            {"state": "generating", "tokens": 4},
        ]
        scrape = await asyncio.to_thread(
            scrape_until,
            server,
            lambda scrape: scrape("penstock_upstream_requests_total", outcome="answered") == 1,
        )
    assert scrape("penstock_upstream_failovers_total") == 1
    assert scrape("penstock_upstream_requests_total", outcome="failed") == 1


async def test_clients_are_told_that_their_answers_wait_for_an_upstream() -> None:
    upstream = FakeUpstream()
    body = {"prompt": "one two three", "max_tokens": 9}

    async def begin(exchange: Exchange) -> None:
        await exchange.tokens(4)
        await exchange.until_gone()

    async with (
        fakes(upstream),
        # No look notices an outage: requests do.
        front(upstream.url, engine_arg="interval=600") as server,
        client_of(server) as client,
    ):
        upstream.faults = [begin]
        async with client.stream("POST", "/generate", json=body, headers=ASKS) as response:
            answer = Answer(response)
            await answer.until_text(text_from(3, 4))
            watch = await asyncio.to_thread(Watch, server.port)
            await upstream.close()
            assert await answer.until("waiting") == {"state": "waiting", "tokens": 4}
            stream_id = response.headers["X-Stream-ID"]
            await asyncio.to_thread(watch.until_state, stream_id, "waiting")
            watch.connection.close()
            await upstream.open()
            assert await answer.to_end() == text_from(3, 9)
        assert answer.states[-4:] == ["generating", "waiting", "continuing", "generating"]
        await upstream.close()
        async with client.stream("POST", "/generate", json=body, headers=ASKS) as response:
            late = Answer(response)  # it finds nobody there
            assert await late.until("waiting") == {"state": "waiting", "tokens": 0}
            await upstream.open()
            assert await late.to_end() == text_from(3, 9)
        assert late.states[-1] == "generating"


async def test_a_busy_model_leaves_the_others_their_slots() -> None:
    busy, other = FakeUpstream(model="busy"), FakeUpstream(model="other")
    asked, gate = asyncio.Event(), asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        if len(busy.asked) == 2:
            asked.set()
        await gate.wait()
        await exchange.answer()

    busy.always = hold
    async with fakes(busy, other):
        tables = ", ".join(f'{{url = "{each.url}", slots = 2}}' for each in (busy, other))
        arguments = ["interval=0.1", f"upstreams=[{tables}]"]
        async with (
            front(engine="remote", engine_arg=arguments, max_queue=4) as server,
            client_of(server) as client,
            asyncio.TaskGroup() as tasks,
        ):

            def post(model: str) -> asyncio.Task[httpx.Response]:
                body = {"prompt": "a b c", "max_tokens": 3, "model": model}
                return tasks.create_task(client.post("/v1/completions", json=body))

            held = [post("busy") for _ in range(6)]
            async with asyncio.timeout(PATIENCE_S):
                await asked.wait()
            full = await asyncio.to_thread(
                scrape_until, server, lambda scrape: scrape("penstock_streams_waiting") == 4
            )
            assert full("penstock_engine_slots") == 4
            assert full("penstock_streams_running") == 2, "a busy model has its own slots only"
            assert (await post("busy")).status_code == 429
            for _ in range(10):
                assert (await post("other")).status_code == 200
            assert len(busy.asked) == 2
            assert not any(each.done() for each in held)
            gate.set()
            assert {(await each).status_code for each in held} == {200}
    assert len(other.asked) == 10
