"""Penstock in front of other servers, over its own sockets: names, failover, waiting, keys."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator

import httpx
import openai

from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.remote import text_from
from tests.support.servers import RunningServer, refuses_to_start, serve

PATIENCE_S = 30


@contextlib.asynccontextmanager
async def front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock in front of these upstreams. The test's own loop goes on meanwhile."""
    running = serve(upstream=list(urls), **flags)
    server = await asyncio.to_thread(running.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


async def test_an_unchanged_openai_program_notices_only_a_pause_when_an_upstream_is_killed() -> (
    None
):
    with serve(pace=100) as one, serve(pace=100) as two:
        async with front(one.url, two.url) as server:
            client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
            model = (await client.models.list()).data[0]
            assert model.id == "rill"

            async def text(kill: bool) -> tuple[str, int]:
                stream = await client.completions.create(
                    model="rill",
                    prompt="Once upon a time",
                    max_tokens=120,
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                pieces, count = [], 0
                async for each in stream:
                    pieces += [choice.text for choice in each.choices]
                    count = each.usage.completion_tokens if each.usage else count
                    if kill and len(pieces) == 10:
                        kill_the_busy_one(one, two)
                return "".join(pieces), count

            whole = await text(kill=False)
            assert whole[1] == 120
            assert await text(kill=True) == whole
            assert any("is left out" in line for line in server.output)
            await client.close()


def kill_the_busy_one(*servers: RunningServer) -> None:
    """Kill the server that has a stream, with its engine."""
    (busy,) = [each for each in servers if num_running(each)]
    os.kill(busy.pid, signal.SIGKILL)


def num_running(server: RunningServer) -> int:
    metrics = httpx.get(f"{server.url}/metrics").text
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith("penstock_streams_running")
    )


async def test_requests_wait_in_the_queue_while_no_upstream_is_there() -> None:
    upstream = FakeUpstream()
    async with (
        fakes(upstream),
        front(upstream.url, engine_arg="interval=0.1", heartbeat=0.2) as server,
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        body = {"prompt": "one two three", "max_tokens": 5, "stream": False}
        assert (await client.post("/generate", json=body)).json()["text"] == text_from(3, 5)
        await upstream.close()
        # This request finds out that nobody is there, and waits in the engine until its deadline.
        late = await client.post("/generate", json={**body, "timeout": 0.5})
        assert late.json()["code"] == "deadline_passed"
        async with client.stream("POST", "/generate", json={**body, "stream": True}) as response:
            lines = response.aiter_lines()
            async for line in lines:
                if line.startswith(": queue position="):
                    break
            await upstream.open()
            rest = [line async for line in lines]
        events = [json.loads(line[6:]) for line in rest if line.startswith("data: ")]
        assert "".join(each.get("token", "") for each in events) == text_from(3, 5), rest
        assert events[-1]["finish_reason"] == "length"


async def test_an_upstream_s_key_is_sent_and_never_told() -> None:
    upstream = FakeUpstream()
    async with fakes(upstream), front(upstream.url, upstream_key="sk-secret-5") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            body = {"prompt": "one two three", "max_tokens": 5, "stop": ["6"], "stream": False}
            answer = (await client.post("/generate", json=body)).json()
            models = (await client.get("/v1/models")).json()
        assert answer["text"] == "3 4 5 "
        assert upstream.asked[0].headers["authorization"] == "Bearer sk-secret-5"
        (described,) = models["data"][0]["upstreams"]
        assert described["kind"] == "vllm"
        assert described["level"] == "ids"
        assert "127.0.0.1" not in str(models)
        assert "sk-secret-5" not in "".join(server.output)


async def test_a_stop_string_ends_the_work_at_the_upstream() -> None:
    upstream = FakeUpstream()
    gone = asyncio.Event()

    async def go_on(exchange: Exchange) -> None:
        await exchange.tokens(6)
        await exchange.until_gone()
        gone.set()

    async with fakes(upstream), front(upstream.url) as server:
        upstream.faults = [go_on]
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            body = {"prompt": "one two three", "max_tokens": 50, "stop": ["5 6"], "stream": False}
            answer = (await client.post("/generate", json=body)).json()
        assert answer["text"] == "3 4 "
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()


async def test_usage_has_the_prompt_s_tokens_as_a_server_without_ids_counts_them() -> None:
    upstream = FakeUpstream("openai")
    asked = {"model": "fake", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 4}
    async with fakes(upstream), front(upstream.url) as server:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        whole = await client.chat.completions.create(**asked)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *_, last = [each async for each in await client.chat.completions.create(**asked, **options)]
        await client.close()
        metrics = httpx.get(f"{server.url}/metrics").text
    for usage in (whole.usage, last.usage):
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 4, 7)
    assert "penstock_prompt_tokens_total 6.0" in metrics


def test_a_bad_upstream_is_named_before_the_start() -> None:
    assert "URL is not valid" in refuses_to_start(upstream="ftp://gpu1")
    said = refuses_to_start(upstream="http://me:sk-secret@gpu1:8000")
    assert "URL is not valid" in said
    assert "sk-secret" not in said
