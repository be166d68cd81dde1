"""A Penstock that starts before its upstreams: requests wait until the first one comes."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.front import early_front
from tests.support.keyed import Keys
from tests.support.raw import WAYS_TO_GO, Connection, ask, generate, post, request
from tests.support.remote import text_from
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer
from tests.support.watching import Watch

PATIENCE_S = 60
QUICK = "interval=0.1"
TURNS = [{"role": "user", "content": "a b c"}]
CHAT = {"messages": TURNS, "max_tokens": 2}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "a b c", "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a b c", "max_tokens": 2},
    "/v1/responses": {"input": "a b c", "max_output_tokens": 2},
    "/v1/messages": CHAT,
    "/api/chat": {"messages": TURNS, "options": {"num_predict": 2}},
    "/api/generate": {"prompt": "a b c", "raw": True, "options": {"num_predict": 2}},
    "/completion": {"prompt": "a b c", "n_predict": 2},
}


@contextlib.asynccontextmanager
async def absent(*upstreams: FakeUpstream) -> AsyncIterator[None]:
    """Give these upstreams their addresses. Nobody is there until a test opens one."""
    async with fakes(*upstreams):
        for each in upstreams:
            await each.close()
        yield


def client_of(server: RunningServer) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, limits=limits)


async def until_waiting(server: RunningServer, number: int) -> Scrape:
    return await asyncio.to_thread(
        scrape_until, server, lambda scrape: scrape("penstock_streams_waiting") == number
    )


async def test_requests_on_every_api_start_when_the_first_upstream_comes() -> None:
    upstream = FakeUpstream(model="m")
    async with (
        absent(upstream),
        early_front(upstream.url) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [
            tasks.create_task(client.post(path, json=body | {"model": "m", "stream": is_streamed}))
            for path, body in BODIES.items()
            for is_streamed in (True, False)
        ]
        waiting = await until_waiting(server, len(asked))
        assert waiting("penstock_streams_running") == 0
        assert waiting("penstock_memory_held_bytes", kind="waiting") > 0
        health = await client.get("/health/ready")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert not any(each.done() for each in asked)
        await upstream.open()
        for task in asked:
            answer = await task
            assert answer.status_code == 200, answer.text
            assert text_from(3, 1) in answer.text
            assert text_from(4, 1) in answer.text
        await until_waiting(server, 0)
    assert len(upstream.asked) == len(asked)


async def test_an_unchanged_openai_program_waits_for_the_first_upstream() -> None:
    upstream = FakeUpstream(model="m")
    async with (
        absent(upstream),
        early_front(upstream.url) as server,
        openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):

        async def streamed() -> str:
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "a b c"}],
                max_tokens=9,
                stream=True,
            )
            return "".join([each.choices[0].delta.content or "" async for each in stream])

        async def whole() -> str:
            answer = await client.completions.create(model="m", prompt="a b c", max_tokens=9)
            return answer.choices[0].text

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(each()) for each in (streamed, whole)]
            await until_waiting(server, 2)
            await upstream.open()
        assert [each.result() for each in asked] == [text_from(3, 9)] * 2


async def test_more_requests_than_slots_are_all_answered() -> None:
    upstream = FakeUpstream(model="m")
    async with (
        absent(upstream),
        early_front(upstream.url, slots=2, max_queue=20) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        # Every fourth is so large that it is read in a thread.
        prompts = ["a b c" + " " * 40_000 * (number % 4 == 3) for number in range(20)]
        asked = [
            tasks.create_task(
                client.post("/v1/completions", json={"prompt": each, "max_tokens": 3, "model": "m"})
            )
            for each in prompts
        ]
        await until_waiting(server, 20)
        full = await client.post("/v1/completions", json={"prompt": "a", "model": "m"})
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["Retry-After"]) >= 1
        await upstream.open()
        texts = [(await each).json()["choices"][0]["text"] for each in asked]
    assert texts == [text_from(3, 3)] * 20


async def test_what_a_request_asks_is_checked_when_the_model_is_known() -> None:
    upstream = FakeUpstream(model="m")
    asks = {
        ("/v1/completions", 404, "model_not_found"): {"prompt": "a", "model": "other"},
        ("/v1/completions", 400, "out_of_range"): {"prompt": "a", "temperature": 9},
        ("/generate", 404, "model_not_found"): {"prompt": "a", "model": "other"},
    }
    async with (
        absent(upstream),
        early_front(upstream.url) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        asked = {
            wanted: tasks.create_task(client.post(wanted[0], json=body))
            for wanted, body in asks.items()
        }
        await until_waiting(server, len(asked))
        await upstream.open()
        for (_, status, code), task in asked.items():
            refused = await task
            problem = refused.json()
            assert (refused.status_code, problem.get("error", problem)["code"]) == (status, code)
        scrape = await until_waiting(server, 0)
    assert scrape("penstock_streams_running") == 0
    assert upstream.asked == []


async def test_cheap_errors_come_at_once() -> None:
    upstream = FakeUpstream()
    async with absent(upstream), early_front(upstream.url, max_body_bytes=2000) as server:

        def status(data: bytes) -> int:
            return ask(server.port, data).status

        path = "/v1/completions"
        assert status(post(b"{", path=path)) == 400
        assert status(post(b"[]", path=path)) == 400
        assert status(post(b'{"prompt": "%b"}' % (b"a" * 2000), path=path)) == 413
        assert status(post(b'{"prompt": "a"}', "X-Penstock-Timeout: soon", path=path)) == 400
        assert status(generate(temperature=9)) == 422
        assert Scrape(server)("penstock_streams_waiting") == 0


async def test_keys_are_checked_at_once_and_keep_their_limits(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "one", "two", "admin")
    keys.fields["one"] = {"max_streams": 2}
    keys.write()
    upstream = FakeUpstream(model="m")
    flags = {"keys": keys.path, "max_queue": 4, "engine_arg": QUICK}
    async with absent(upstream), early_front(upstream.url, **flags) as server:

        def send(name: str) -> Connection:
            return stack.enter_context(Connection(server.port)).send(
                keys.generate(name, "a b c", max_tokens=2, stream=False)
            )

        def until(number: int) -> None:
            while Scrape(server, keys.header("admin"))("penstock_streams_waiting") != number:
                pass

        with contextlib.ExitStack() as stack:
            assert ask(server.port, generate()).status == 401
            ones = [send("one"), send("one")]
            await asyncio.to_thread(until, 2)
            third = send("one").response()
            assert (third.status, third.json()["code"]) == (429, "too_many_streams")
            twos = [send("two"), send("two")]
            await asyncio.to_thread(until, 4)
            assert send("two").response().json()["code"] == "queue_full"
            del keys.keys["two"]
            keys.write()
            server.signal(signal.SIGHUP)
            for each in twos:
                ended = await asyncio.to_thread(each.response)
                assert (ended.status, ended.json()["code"]) == (401, "revoked_api_key")
            await upstream.open()
            for each in ones:
                assert (await asyncio.to_thread(each.response)).status == 200


async def test_a_deadline_holds_while_no_upstream_is_there() -> None:
    upstream = FakeUpstream(model="m")
    async with (
        absent(upstream),
        early_front(upstream.url) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        header = {"X-Penstock-Timeout": "0.2"}
        body, timed = BODIES["/v1/completions"], BODIES["/generate"] | {"timeout": 0.2}
        asked = [
            tasks.create_task(client.post("/v1/completions", json=body, headers=header)),
            tasks.create_task(client.post("/generate", json=timed)),
        ]
        for task in asked:
            assert (await task).status_code == 504
        problem = asked[1].result().json()
        assert problem["code"] == "deadline_passed"
        scrape = await until_waiting(server, 0)
    assert scrape("penstock_streams_ended_total", cause="deadline") == 2


async def test_the_time_of_an_answer_begins_with_its_wait_for_an_upstream() -> None:
    upstream = FakeUpstream(model="m")
    async with (
        absent(upstream),
        early_front(upstream.url, engine_arg=QUICK) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        body = BODIES["/generate"] | {"stream": False}
        asked = tasks.create_task(client.post("/generate", json=body))
        await until_waiting(server, 1)
        loop = asyncio.get_running_loop()
        waits_since = loop.time()
        await until_waiting(server, 1)
        waited = loop.time() - waits_since
        await upstream.open()
        timings = (await asked).json()["timings"]
        scrape = await until_waiting(server, 0)
    assert timings["total_time"] >= timings["queue_time"] >= waited
    assert scrape("penstock_queue_time_seconds_sum") >= waited
    assert scrape("penstock_queue_time_seconds_count") == 1


async def test_after_patience_the_client_is_told_to_try_again() -> None:
    upstream = FakeUpstream()
    async with (
        absent(upstream),
        early_front(upstream.url, engine_arg="patience=0.2") as server,
        client_of(server) as client,
    ):
        for stream in (True, False):
            body = BODIES["/v1/completions"] | {"stream": stream}
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_loading"
            assert int(refused.headers["Retry-After"]) >= 1
        scrape = await until_waiting(server, 0)
    assert scrape("penstock_refusals_total", reason="engine_loading") == 2


@pytest.mark.parametrize("way", WAYS_TO_GO)
@pytest.mark.parametrize("http2", [False, True], ids=["plain", "granian"])
async def test_a_client_that_leaves_waits_no_more(way: str, http2: bool) -> None:
    upstream = FakeUpstream(model="m")
    flags = {"http2": True} if http2 else {}
    async with absent(upstream), early_front(upstream.url, engine_arg=QUICK, **flags) as server:
        leaving = Connection(server.port).send(generate("a b c", max_tokens=2))
        with Connection(server.port) as staying:
            staying.send(generate("a b c", max_tokens=2, stream=False))
            await until_waiting(server, 2)
            WAYS_TO_GO[way](leaving)
            scrape = await until_waiting(server, 1)
            assert scrape("penstock_streams_ended_total", cause="client_gone") == 1
            await upstream.open()
            assert (await asyncio.to_thread(staying.response)).status == 200
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("http2", [False, True], ids=["plain", "granian"])
async def test_a_client_may_leave_after_its_wait(http2: bool) -> None:
    upstream = FakeUpstream(model="m")
    asked = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        asked.set()
        await exchange.tokens(1)
        await exchange.until_gone()

    upstream.always = hold
    flags = {"http2": True} if http2 else {}
    async with absent(upstream), early_front(upstream.url, engine_arg=QUICK, **flags) as server:
        for stream in (True, False):
            with Connection(server.port) as leaving:
                leaving.send(generate("a b c", max_tokens=2, stream=stream))
                if stream:
                    await until_waiting(server, 1)
                    await upstream.open()
                await asked.wait()  # a stream runs a moment before its upstream is asked
                asked.clear()
                await asyncio.to_thread(
                    scrape_until, server, lambda scrape: scrape("penstock_streams_running") == 1
                )
            await asyncio.to_thread(
                scrape_until, server, lambda scrape: scrape("penstock_streams_running") == 0
            )
    assert len(upstream.asked) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_waiting_requests_are_refused_when_the_server_stops(number: signal.Signals) -> None:
    upstream = FakeUpstream()
    async with absent(upstream), early_front(upstream.url) as server:
        with Connection(server.port) as one, Connection(server.port) as other:
            one.send(generate("a b c", stream=False))
            other.send(generate("a b c", stream=True))
            await until_waiting(server, 2)
            server.signal(number)
            for each in (one, other):
                refused = await asyncio.to_thread(each.response)
                assert (refused.status, refused.json()["code"]) == (503, "draining")
                assert int(refused.headers["retry-after"]) >= 1
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0
        assert "Traceback" not in "".join(server.output)


async def test_requests_are_refused_while_a_server_without_a_model_is_leaving() -> None:
    upstream = FakeUpstream()
    async with absent(upstream), early_front(upstream.url, drain_grace=PATIENCE_S) as server:
        with Connection(server.port) as waiting:
            waiting.send(generate("a b c"))
            await until_waiting(server, 1)
            server.signal(signal.SIGTERM)
            assert (await asyncio.to_thread(waiting.response)).json()["code"] == "draining"
        body = json.dumps(CHAT | {"model": "m"}).encode()
        late = ask(server.port, post(body, path="/v1/messages"))
        assert late.status == 529
        health = ask(server.port, request("GET", "/health"))
        assert (health.status, health.json()["status"]) == (503, "draining")
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0


async def test_the_live_view_shows_requests_that_wait() -> None:
    upstream = FakeUpstream(model="m")
    async with absent(upstream), early_front(upstream.url, engine_arg=QUICK) as server:
        with Connection(server.port) as waiting:
            waiting.send(generate("a b c", max_tokens=2, stream=False))
            await until_waiting(server, 1)
            watch = await asyncio.to_thread(Watch, server.port)
            (stream_id,) = watch.streams
            assert watch.streams[stream_id]["state"] == "queued"
            assert watch.server["waiting"] == 1
            await upstream.open()
            assert (await asyncio.to_thread(waiting.response)).status == 200
            await asyncio.to_thread(watch.until_state, stream_id, "moved")
            watch.connection.close()


async def test_one_idempotency_key_has_one_answer_whoever_waits() -> None:
    upstream = FakeUpstream(model="m")
    headers = {"Idempotency-Key": "same"}
    async with (
        absent(upstream),
        early_front(upstream.url) as server,
        client_of(server) as client,
        asyncio.TaskGroup() as tasks,
    ):
        body = BODIES["/v1/completions"]
        asked = [
            tasks.create_task(client.post("/v1/completions", json=body, headers=headers))
            for _ in range(3)
        ]
        await until_waiting(server, 3)
        await upstream.open()
        ids = {(await each).json()["id"] for each in asked}
    assert len(ids) == len(upstream.asked) == 1


async def test_several_processes_wait_for_the_first_upstream() -> None:
    upstream = FakeUpstream(model="m")
    async with absent(upstream):
        port = upstream.port
        flags = {"processes": 2, "engine_arg": QUICK}
        async with early_front(f"http://127.0.0.1:{port}", **flags) as server:
            with contextlib.ExitStack() as stack:
                several = [stack.enter_context(Connection(server.port)) for _ in range(6)]
                for each in several:
                    each.send(generate("a b c", max_tokens=2, stream=False))
                await until_waiting(server, 6)
                await upstream.open()
                for each in several:
                    assert (await asyncio.to_thread(each.response)).status == 200
