"""Penstock in front of two real vLLM servers, which are killed and stopped in mid-answer.

`python -m tests.engine.remote.kills` kills llama.cpp's servers, and more often.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from penstock.engine.llamacpp.hub import find_model
from penstock.engine.remote.engine import Remote
from penstock.request import Request, Sampling
from tests.support.llama_server import LlamaServer, llama_server
from tests.support.random_model import random_model
from tests.support.raw import cancel_stream, frames_of, generate, open_stream, post, resume
from tests.support.recording import RecordingSink
from tests.support.remote import FIRST
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually
from tests.vllm.engines import SLOTS, engine_args
from tests.vllm.own_server import OwnServer, own_servers

# In the texts that both kinds of server must share, the best two tokens are never nearly equal.
PROMPTS = ("In winter", "The market", "Near the sea", "Pepper the goat lived")
NUM_PROMPT_TOKENS = 19  # of all together
LENGTH = 900  # vLLM needs half a second, in which the tests kill it
ENDLESS = {"ignore_eos": True}
SAME_CHARACTERS = 250
"""The greedy answers of vLLM and of llama.cpp begin with the same text, at least so long."""
AT = 4
"""The number of the piece at which something happens to its server."""
SILENCE_S = 10  # longer than any step of vLLM's on a busy machine
PATIENCE_S = 800


@pytest.fixture(scope="module")
def servers(models: Path) -> Iterator[list[OwnServer]]:
    """Two servers of vLLM's with the built-in model. Tests kill them."""
    cache = ("--kv-cache-memory-bytes", str(engine_args()["kv_cache_memory_bytes"]))
    with own_servers(2, models / "rill", *cache, "--max-num-seqs", str(SLOTS)) as servers:
        yield servers


def restarted(*servers: OwnServer) -> None:
    """Start those of the servers that an earlier test has killed."""
    killed = [each for each in servers if not each.is_running]
    for each in killed:
        each.start()
    for each in killed:
        each.until_ready()


@pytest.fixture
def both(servers: list[OwnServer]) -> list[OwnServer]:
    """Return both servers, running."""
    restarted(*servers)
    return servers


@pytest.fixture
def one(servers: list[OwnServer]) -> OwnServer:
    """Return a server that runs; the other may be dead."""
    running = [each for each in servers if each.is_running]
    restarted(*servers[: not running])
    return (running or servers)[0]


@contextlib.contextmanager
def front(*upstreams: OwnServer | LlamaServer, silence: int = 120) -> Iterator[RunningServer]:
    """Run a Penstock in front of these servers. Answers begin at the first one, if it is well."""
    weights = [FIRST, *(1.0 for _ in upstreams[1:])]
    tables = ", ".join(
        f'{{url = "{each.url}", weight = {weight}}}'
        for each, weight in zip(upstreams, weights, strict=True)
    )
    arguments = [f"upstreams=[{tables}]", f"silence={silence}", f"patience={PATIENCE_S}"]
    with serve(engine="remote", engine_arg=arguments) as server:
        yield server


def ask(server: OwnServer | RunningServer, path: str, **fields: object) -> dict[str, Any]:
    """Return a server's whole answer to a greedy request."""
    body = {"model": "rill", "temperature": 0, **fields}
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def completion(
    server: OwnServer | RunningServer, prompt: str = PROMPTS[0], **fields: object
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the first choice and the usage of an endless answer."""
    fields = {"prompt": prompt, "max_tokens": LENGTH, **ENDLESS, **fields}
    answer = ask(server, "/v1/completions", **fields)
    return answer["choices"][0], answer["usage"]


def total(servers: list[OwnServer], metric: str) -> int:
    """Return the sum of a metric of vLLM's own."""
    return sum(each.count(metric) for each in servers)


async def read(
    server: RunningServer, at: Callable[[], object], prompts: Sequence[str] = PROMPTS[:1]
) -> list[tuple[str, int]]:
    """Read endless answers as a program with OpenAI's client does: their texts and lengths.

    `at` is called when the piece number `AT` of the first answer has come.
    """

    async def read_one(prompt: str, at: Callable[[], object]) -> tuple[str, int]:
        stream = await client.completions.create(
            model="rill",
            prompt=prompt,
            max_tokens=LENGTH,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=ENDLESS,
        )
        pieces, length = [], 0
        async for each in stream:
            pieces += [choice.text for choice in each.choices]
            length = each.usage.completion_tokens if each.usage else length
            if each.choices and len(pieces) == AT:
                at()
        return "".join(pieces), length

    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        first, *others = prompts
        readers = [read_one(first, at), *(read_one(each, lambda: None) for each in others)]
        return list(await asyncio.gather(*readers))


def test_tokens_texts_and_usage_are_those_of_vllm_itself(both: list[OwnServer]) -> None:
    with front(*both) as server:
        for prompt in PROMPTS:
            theirs, counted = completion(both[0], prompt, return_token_ids=True)
            ours, usage = completion(server, prompt, return_token_ids=True)
            for name in ("text", "token_ids", "finish_reason"):
                assert ours[name] == theirs[name]
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert usage[name] == counted[name]
        chat = {"messages": [{"role": "user", "content": "Hello! Who are you?"}], "max_tokens": 60}
        theirs, ours = (ask(each, "/v1/chat/completions", **chat) for each in (both[0], server))
        for name in ("role", "content"):
            assert ours["choices"][0]["message"][name] == theirs["choices"][0]["message"][name]
        assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert ours["usage"][name] == theirs["usage"][name]


def test_a_prompt_s_log_probabilities_are_those_of_vllm_itself(both: list[OwnServer]) -> None:
    fields: dict[str, Any] = {"prompt": PROMPTS[0], "max_tokens": 3}
    with front(*both) as server:
        ours, _ = completion(server, **fields, prompt_logprobs=2)
    theirs, _ = completion(both[0], **fields, prompt_logprobs=2)
    assert ours["prompt_logprobs"][0] is theirs["prompt_logprobs"][0] is None
    for one, other in zip(ours["prompt_logprobs"][1:], theirs["prompt_logprobs"][1:], strict=True):
        assert set(one) == set(other)
        for token, each in one.items():
            assert each["rank"] == other[token]["rank"]
            assert each["decoded_token"] == other[token]["decoded_token"]
            assert each["logprob"] == pytest.approx(other[token]["logprob"], abs=0.01)
    assert ours["text"] == theirs["text"]


def test_a_stop_string_ends_the_text_where_vllm_ends_it(both: list[OwnServer]) -> None:
    whole, _ = completion(both[0])
    stop = [whole["text"][200:212]]
    with front(*both) as server:
        (theirs, counted), (ours, usage) = (
            completion(each, stop=stop) for each in (both[0], server)
        )
    assert ours["text"] == theirs["text"] == whole["text"][:200]
    assert ours["finish_reason"] == theirs["finish_reason"] == "stop"
    assert usage["completion_tokens"] == counted["completion_tokens"]


def test_several_choices_are_whole_and_counted(both: list[OwnServer]) -> None:
    theirs, counted = completion(both[0])
    with front(*both) as server:
        ours = ask(server, "/v1/completions", prompt=PROMPTS[0], n=3, max_tokens=LENGTH, **ENDLESS)
    assert [each["index"] for each in ours["choices"]] == [0, 1, 2]
    assert {each["text"] for each in ours["choices"]} == {theirs["text"]}
    assert ours["usage"]["completion_tokens"] == 3 * LENGTH
    assert ours["usage"]["prompt_tokens"] == counted["prompt_tokens"]


def test_a_stream_is_resumed_without_asking_vllm_again(both: list[OwnServer]) -> None:
    whole, counted = completion(both[0], ignore_eos=False)
    data = generate(PROMPTS[0], temperature=0, max_tokens=LENGTH, resumable=True)
    with front(*both) as server:
        before = total(both, "prompt_tokens_total")
        connection, stream_id = open_stream(server.port, data)
        events = connection.events()
        first = [next(events) for _ in range(AT)]
        connection.reset()
        rest = resume(server.port, stream_id, f"Last-Event-ID: {first[-1]['index']}")
        asked = total(both, "prompt_tokens_total") - before
    assert rest.status == 200, rest.body
    events_after = [json.loads(frame.split(b"data: ")[1]) for frame in frames_of(rest.body)]
    *deltas, end = first + events_after
    assert "".join(each["token"] for each in deltas) == whole["text"]
    assert [each["index"] for each in deltas] == list(range(len(deltas)))
    assert end["finish_reason"] == whole["finish_reason"] == "stop"
    assert end["usage"]["completion_tokens"] == counted["completion_tokens"]
    assert asked == counted["prompt_tokens"]


def test_a_cancel_ends_the_work_at_vllm(both: list[OwnServer]) -> None:
    """Eight choices: four at once, and then four others. One alone would end within a second."""
    before = total(both, "generation_tokens_total")
    body = {"prompt": PROMPTS[0], "max_tokens": LENGTH, "stream": True, "n": 8, **ENDLESS}
    data = post(json.dumps(body).encode(), path="/v1/completions")
    with front(both[0]) as server:
        connection, stream_id = open_stream(server.port, data)
        with connection:
            next(connection.events())
            assert total(both, "num_requests_running") >= 1
            assert cancel_stream(server.port, stream_id) == "cancelled"
        assert eventually(lambda: total(both, "num_requests_running") == 0)
    assert total(both, "generation_tokens_total") - before < 8 * LENGTH


async def test_an_answer_leaves_a_vllm_that_hangs(both: list[OwnServer]) -> None:
    victim = both[0]
    whole, _ = completion(victim)
    with front(*both, silence=SILENCE_S) as server:
        try:
            answers = await read(server, lambda: victim.signal(signal.SIGSTOP))
            assert answers == [(whole["text"], LENGTH)]
            assert f"the upstream {victim.url} is left out" in "".join(server.output)
        finally:
            victim.signal(signal.SIGCONT)
        # It finds the connection closed, and drops the request.
        assert eventually(lambda: total(both, "num_requests_running") == 0)


async def test_an_answer_waits_rather_than_go_on_in_another_vocabulary(
    one: OwnServer, tmp_path: Path
) -> None:
    whole, _ = completion(one)
    odd = random_model(
        tmp_path / "rill.gguf",
        find_model("rill"),
        context=1024,
        template="{{ messages[0].content }}",
        more_tokens=["<think>"],
    )
    with llama_server(model=odd) as other, front(one, other, silence=SILENCE_S) as server:
        assert f"{other.url} is left out: its model has another vocabulary" in "".join(
            server.output
        )
        reading = asyncio.create_task(read(server, lambda: one.signal(signal.SIGSTOP)))
        try:
            assert await asyncio.to_thread(server.has_said, "no upstream answers; requests wait")
            assert not reading.done()
        finally:
            one.signal(signal.SIGCONT)
        assert await reading == [(whole["text"], LENGTH)]


async def stories(engine: Remote, on_delta: Callable[[], None] = lambda: None) -> list[str]:
    """Return the beginnings of some greedy, endless stories."""
    sinks = [RecordingSink(on_delta=on_delta) for _ in PROMPTS]
    for prompt, sink in zip(PROMPTS, sinks, strict=True):
        request = Request(prompt, LENGTH, prompt=prompt, sampling=Sampling(0.0), ignore_eos=True)
        engine.submit(request, sink)
    for sink in sinks:
        await sink.end(PATIENCE_S)
        assert sink.failure is None
        assert sink.num_tokens == sink.completion_tokens == LENGTH
    return [sink.text()[:SAME_CHARACTERS] for sink in sinks]


async def kill_between_kinds(
    victim: OwnServer | LlamaServer, survivor: OwnServer | LlamaServer
) -> None:
    """Kill a server under stories: one of the other kind tells them to the end."""
    engines = [Remote(urls=[each.url]) for each in (victim, survivor)]
    engines.append(Remote(upstreams=[{"url": victim.url, "weight": FIRST}, {"url": survivor.url}]))
    for each in engines:
        await each.start()
    try:
        expected = await stories(engines[0])
        assert await stories(engines[1]) == expected
        num_deltas = 0

        def kill() -> None:
            nonlocal num_deltas
            num_deltas += 1
            if num_deltas == AT and isinstance(victim, OwnServer):
                victim.kill()

        if isinstance(victim, LlamaServer):  # it would be done before a busy test kills it
            victim.die_in_the_next_answer()
        assert await stories(engines[2], kill) == expected
        assert num_deltas > AT
    finally:
        for each in engines:
            await each.stop()


async def test_answers_go_on_from_llama_cpp_to_vllm(
    one: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    with llama_server(is_mortal=True) as victim:
        await kill_between_kinds(victim, one)
        assert f"the upstream {victim.url} is left out" in caplog.text


@pytest.mark.parametrize("kill", [OwnServer.kill, OwnServer.kill_core], ids=["all of it", "core"])
async def test_an_openai_program_notices_only_a_pause_when_vllm_is_killed(
    both: list[OwnServer], kill: Callable[[OwnServer], None]
) -> None:
    victim, survivor = both
    expected = [completion(victim, prompt)[0]["text"] for prompt in PROMPTS]
    before = survivor.count("prompt_tokens_total")
    with front(*both) as server:
        answers = await read(server, lambda: kill(victim), PROMPTS)
        said = f"the upstream {victim.url} is left out"
        assert await asyncio.to_thread(server.has_said, said)
    assert answers == [(text, LENGTH) for text in expected]
    asked = survivor.count("prompt_tokens_total") - before
    assert asked > NUM_PROMPT_TOKENS, "it has read a prompt with a begun answer"


async def test_an_answer_waits_for_the_restart_of_one_when_all_are_killed(
    servers: list[OwnServer], one: OwnServer
) -> None:
    whole, _ = completion(one)
    killed: list[OwnServer] = []

    def kill_all() -> None:
        killed.extend(each for each in servers if each.is_running)
        for each in killed:
            each.kill()

    with front(*servers) as server:
        reading = asyncio.create_task(read(server, kill_all))
        assert await asyncio.to_thread(server.has_said, "no upstream answers; requests wait")
        assert not reading.done()
        await asyncio.to_thread(restarted, one)
        assert await reading == [(whole["text"], LENGTH)]


async def test_answers_go_on_from_vllm_to_llama_cpp(
    one: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    with llama_server() as survivor:
        await kill_between_kinds(one, survivor)
        assert f"the upstream {one.url} is left out" in caplog.text
