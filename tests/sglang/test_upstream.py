"""The remote engine in front of real SGLang servers: exact tokens, refusals, cancel, kill -9."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import openai

from penstock.engine.remote.engine import Remote
from penstock.request import Message, Request, Sampling
from tests.sglang.servers import CONTEXT, Server
from tests.support.recording import RecordingSink
from tests.support.remote import FIRST
from tests.support.servers import serve
from tests.support.upstreams import shared_upstream
from tests.support.waiting import eventually

GREEDY = Sampling(temperature=0.0)
PATIENCE_S = 300
NUM_STREAMS = 3
LENGTH = 60


@contextlib.asynccontextmanager
async def remote(*upstreams: dict[str, object]) -> AsyncIterator[Remote]:
    engine = Remote(upstreams=upstreams)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def story(number: int, length: int = LENGTH) -> Request:
    prompt = f"Story {number}. Once upon a time"
    return Request(f"{number}", length, prompt=prompt, sampling=GREEDY, ignore_eos=True)


async def answer(engine: Remote, request: Request) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(request, sink)
    return await sink.end(PATIENCE_S)


async def post(server: Server, path: str, body: dict[str, object]) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        found = await client.post(path, json=body)
        assert found.status_code == 200, found.text
        return dict(found.json())


async def test_a_conversation_and_its_tokens_are_those_of_the_server_itself(
    pair: list[Server],
) -> None:
    server = pair[0]
    messages = (Message("user", "Hello! Who are you?"),)
    async with remote({"url": server.url}) as engine:
        assert engine.info.upstreams[0].kind == "sglang"
        assert engine.info.upstreams[0].level == "ids"
        assert engine.info.context_length == CONTEXT
        sink = await answer(engine, Request("a", 20, messages=messages, sampling=GREEDY))
    turns = [{"role": "user", "content": messages[0].content}]
    body = {"messages": turns, "max_tokens": 20, "temperature": 0}
    direct = await post(server, "/v1/chat/completions", body)
    assert isinstance(direct["choices"], list)
    assert sink.text() == direct["choices"][0]["message"]["content"]
    assert isinstance(direct["usage"], dict)
    assert len(sink.prompt_ids) == direct["usage"]["prompt_tokens"]
    assert sink.completion_tokens == direct["usage"]["completion_tokens"]
    assert len(sink.token_ids) == sink.completion_tokens
    texts = await post(server, "/detokenize", {"tokens": sink.token_ids})
    assert texts["text"] == sink.text()


async def test_turns_are_rendered_as_they_are(pair: list[Server]) -> None:
    begun = (Message("user", "Hello!"), Message("assistant", "I am"))
    requests = [
        Request("open", 5, messages=begun, sampling=GREEDY),
        Request("closed", 5, messages=begun, sampling=GREEDY, open_answer=False),
        Request("begun", 5, messages=begun, sampling=GREEDY, continue_last_message=True),
    ]
    async with remote({"url": pair[0].url}) as engine:
        sinks = [await answer(engine, each) for each in requests]
    prompts = [
        (await post(pair[0], "/detokenize", {"tokens": s.prompt_ids, "skip_special_tokens": False}))
        for s in sinks
    ]
    start = "<|endoftext|><|user|>Hello!<|end|><|assistant|>I am"
    assert [each["text"] for each in prompts] == [
        f"{start}<|end|><|assistant|>",
        f"{start}<|end|>",
        start,
    ]


async def test_a_token_that_the_model_does_not_have_is_refused_and_the_server_lives(
    pair: list[Server],
) -> None:
    async with remote({"url": pair[0].url}) as engine:
        bad = await answer(engine, Request("bad", 5, prompt_ids=(0, 99_999), sampling=GREEDY))
        good = await answer(engine, Request("good", 5, prompt_ids=(0, 432), sampling=GREEDY))
    assert bad.failure is not None
    assert bad.failure[0] == "engine_refused"
    assert good.failure is None
    assert len(good.token_ids) == good.completion_tokens


async def test_a_stop_string_ends_the_answer_for_an_openai_program(pair: list[Server]) -> None:
    def ask(url: str, stop: str | None) -> tuple[str, str | None]:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S)
        given = client.completions.create(
            model="rill", prompt="Once upon a time", max_tokens=30, temperature=0, stop=stop
        )
        return given.choices[0].text, given.choices[0].finish_reason

    def both() -> None:
        with serve(upstream=[pair[0].url]) as front:
            whole, _ = ask(front.url, None)
            stop = whole[len(whole) // 2 :][:4]
            assert ask(front.url, stop) == (whole[: whole.index(stop)], "stop")

    await asyncio.to_thread(both)


async def test_a_cancel_aborts_the_request_at_the_server(pair: list[Server]) -> None:
    def aborted() -> float:
        lines = httpx.get(f"{pair[0].url}/metrics", timeout=PATIENCE_S).text.splitlines()
        counts = [each for each in lines if each.startswith("sglang:num_aborted_requests_total")]
        return sum(float(each.rsplit(" ", 1)[1]) for each in counts)

    before = await asyncio.to_thread(aborted)
    async with remote({"url": pair[0].url}) as engine:
        sink = RecordingSink()
        engine.submit(story(1, 900), sink)
        await sink.until("delta")
        stopped = asyncio.Event()
        engine.cancel("1", stopped.set)
        async with asyncio.timeout(PATIENCE_S):
            await stopped.wait()
        assert await asyncio.to_thread(eventually, lambda: aborted() == before + 1, PATIENCE_S)
        assert not sink.ended


async def test_answers_outlive_a_killed_server(pair: list[Server]) -> None:
    """Runs last: it kills one of the two, and then the other."""
    victim, survivor = pair
    async with remote({"url": survivor.url}) as engine:
        expected = [await answer(engine, story(n)) for n in range(NUM_STREAMS)]
    await go_on_after_a_kill(victim, survivor.url, expected)
    # The built-in model has the same vocabulary everywhere.
    await go_on_after_a_kill(survivor, shared_upstream(), expected)


async def go_on_after_a_kill(victim: Server, other: str, expected: list[RecordingSink]) -> None:
    heavy: dict[str, object] = {"url": victim.url, "weight": FIRST}  # every answer begins here
    async with remote(heavy, {"url": other}) as engine:
        assert {each.level for each in engine.info.upstreams} == {"ids"}
        # Kill from inside the first delta: the server may be far ahead of a task that waits.
        sinks = [RecordingSink(on_delta=victim.kill) for _ in range(NUM_STREAMS)]
        for n, sink in enumerate(sinks):
            engine.submit(story(n), sink)
        for sink, whole in zip(sinks, expected, strict=True):
            await sink.end(PATIENCE_S)
            assert sink.failure is None
            assert sink.text() == whole.text()
            assert sink.completion_tokens == sink.num_tokens == LENGTH
