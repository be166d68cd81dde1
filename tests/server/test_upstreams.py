"""Penstock in front of other servers, over its own sockets: names, failover, waiting, keys."""

import asyncio
import contextlib
import json
import os
import signal
from typing import Any

import httpx
import openai
import pytest

from tests.engine.remote.cuts import after
from tests.support.fake_upstream import BOUND, LOGPROB, Exchange, FakeUpstream, fakes
from tests.support.front import front
from tests.support.remote import text_from
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, refuses_to_start, serve

PATIENCE_S = 30
SURE = "The first bell"
"""A prompt whose greedy answer has no near tie in its first 75 tokens (each gap is over 0.03).

An answer that goes on elsewhere may part there: llama.cpp's log probabilities depend on how many
tokens it reads at once, by up to 0.01.
"""


async def test_an_unchanged_openai_program_notices_only_a_pause_when_an_upstream_is_killed() -> (
    None
):
    with serve(pace=25) as one, serve(pace=25) as two:
        async with (
            front(one.url, two.url) as server,
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
        ):
            model = (await client.models.list()).data[0]
            assert model.id == "rill"
            async with httpx.AsyncClient(timeout=PATIENCE_S) as plain:
                assert (await plain.get(server.url)).json()["model"] == "rill"

            async def text(kill: bool) -> tuple[str, int]:
                stream = await client.completions.create(
                    model="rill",
                    prompt=SURE,
                    max_tokens=75,
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
            assert whole[1] == 75
            assert await text(kill=True) == whole
            assert await asyncio.to_thread(server.has_said, "is left out")
            await client.close()


def kill_the_busy_one(*servers: RunningServer) -> None:
    """Kill the server that has a stream, with its engine."""
    (busy,) = [each for each in servers if num_running(each)]
    os.kill(busy.pid, signal.SIGKILL)


def num_running(server: RunningServer) -> int:
    metrics = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
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
        # Until the server knows that nobody is there, the next one would wait in the engine, too.
        await asyncio.to_thread(
            scrape_until, server, lambda scrape: scrape("penstock_upstream_up") == 0
        )
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
        with contextlib.suppress(ConnectionError):  # the other side is gone amid the tokens
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
    body = {"messages": [{"role": "user", "content": "a b c"}], "max_tokens": 4}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with (
        fakes(upstream),
        front(upstream.url) as server,
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        streamed = (await client.post("/v1/chat/completions", json=body | options)).text
        metrics = (await client.get("/metrics")).text
    *_, last, done, _ = streamed.split("\n\n")
    assert done == "data: [DONE]"
    for usage in (whole["usage"], json.loads(last.removeprefix("data: "))["usage"]):
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 4)
    assert "penstock_prompt_tokens_total 6.0" in metrics


async def test_openai_s_client_gets_schemas_and_log_probabilities_over_upstreams() -> None:
    upstream = FakeUpstream("old sglang")
    async with (
        fakes(upstream),
        front(upstream.url) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        features = (await client.models.list()).data[0].model_dump()["features"]
        assert {"json_schema", "grammar", "top_logprobs"} <= set(features)
        assert "logit_bias" not in features
        chat = client.chat.completions
        turn: Any = {"model": "fake", "messages": [{"role": "user", "content": "a b c"}]}
        schema = {"type": "object", "properties": {"lake": {"type": "integer"}}}
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        bound = await chat.create(**turn, max_tokens=20, response_format=wanted)
        assert bound.choices[0].message.content == "".join(BOUND)
        free = await chat.create(**turn, max_tokens=2, logprobs=True, top_logprobs=3)
        assert free.choices[0].logprobs is not None
        entries = free.choices[0].logprobs.content or []
        assert [(each.token, each.logprob) for each in entries] == [
            ("3 ", LOGPROB),
            ("4 ", LOGPROB),
        ]
        assert [len(each.top_logprobs) for each in entries] == [3, 3]
        upstream.faults = [after(2, "reset")]
        with pytest.raises(openai.APIStatusError) as died:
            await chat.create(**turn, max_tokens=20, response_format=wanted)
        assert died.value.code == "engine_died"
        assert died.value.response.headers["x-should-retry"] == "true"
        with pytest.raises(openai.APIStatusError) as refused:
            await chat.create(**turn, max_tokens=2, logit_bias={"5": 1})
        assert refused.value.code == "unsupported_field"
        await client.close()


async def test_every_api_chooses_among_the_models_of_the_upstreams() -> None:
    small, large = FakeUpstream(model="small"), FakeUpstream(model="large", context=500)
    turns = [{"role": "user", "content": "a b c"}]
    chat = {"messages": turns, "max_tokens": 2}
    bodies = {
        "/generate": {"prompt": "a b c", "max_tokens": 2, "stream": False},
        "/v1/chat/completions": chat,
        "/v1/completions": {"prompt": "a b c", "max_tokens": 2},
        "/v1/responses": {"input": "a b c", "max_output_tokens": 2},
        "/v1/messages": chat,
        "/api/chat": {"messages": turns, "stream": False},
        "/api/generate": {"prompt": "a b c", "raw": True, "stream": False},
        "/completion": {"prompt": "a b c", "n_predict": 2},
    }
    async with (
        fakes(small, large),
        front(small.url, large.url) as server,
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        for path, body in bodies.items():
            for model, upstream in (("large", large), ("small", small)):
                answer = await client.post(path, json=body | {"model": model})
                assert answer.status_code == 200, answer.text
                assert upstream.asked.pop().body["model"] == model, path
                assert small.asked == large.asked == []
        claude = await client.post("/v1/messages", json=chat | {"model": "claude-sonnet-4-5"})
        assert claude.status_code == 200
        assert small.asked.pop().body["model"] == "small", "the first model stands for others"
        missing = await client.post("/v1/completions", json={"prompt": "a", "model": "huge"})
        assert missing.json()["error"]["code"] == "model_not_found"
        missing = await client.post("/generate", json={"prompt": "a", "model": "huge"})
        assert (missing.status_code, missing.json()["code"]) == (404, "model_not_found")
        listed = (await client.get("/v1/models")).json()["data"]
        lengths = {each["id"]: each["context_length"] for each in listed}
        assert (lengths["small"], lengths["large"]) == (100_000, 500)
        tags = (await client.get("/api/tags")).json()["models"]
        assert {"small:latest", "large:latest"} <= {each["name"] for each in tags}
        shown = (await client.post("/api/show", json={"model": "large:latest"})).json()
        assert 500 in shown["model_info"].values()
        counted = await client.post("/tokenize", json={"prompt": "a b c", "model": "large"})
        assert (counted.json()["count"], counted.json()["max_model_len"]) == (3, 500)


async def test_a_model_whose_upstream_comes_late_is_listed_and_served() -> None:
    early, late = FakeUpstream(model="early"), FakeUpstream(model="late")
    async with fakes(early, late):
        await late.close()
        async with (
            front(early.url, late.url, engine_arg="interval=0.1") as server,
            httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client,
        ):
            body = {"model": "late", "prompt": "a b c", "max_tokens": 2}
            assert (await client.post("/v1/completions", json=body)).status_code == 404
            await late.open()
            assert await asyncio.to_thread(server.has_said, "the model 'late'")
            answer = (await client.post("/v1/completions", json=body)).json()
            names = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        assert answer["choices"][0]["text"] == text_from(3, 2)
        assert names == ["early", "late"]


def test_a_bad_upstream_is_named_before_the_start() -> None:
    assert "URL is not valid" in refuses_to_start(upstream="ftp://gpu1")
    said = refuses_to_start(upstream="http://me:sk-secret@gpu1:8000")
    assert "URL is not valid" in said
    assert "sk-secret" not in said
