"""`penstock serve --engine vllm` over its socket: plain SSE clients, disconnects and deaths.

Each model has one server. The last test with the OPT model kills vLLM's core, and the last test
with the built-in model kills the server. Tests that need endless answers use the OPT model.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sseclient

from tests.support.raw import Connection, generate, open_stream
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually
from tests.vllm.engines import RESTART_LIMIT_S, SLOTS, core_of, engine_args, group_of
from tests.vllm.running import Watch, watched

GONE_WITHIN_S = 5.0  # it takes milliseconds; a machine may be busy
NUM_TRIES = 10


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Watch the counts of vLLM's scheduler in `server`."""
    with watched() as watch:
        yield watch


@pytest.fixture(scope="module", params=["opt", "rill"])
def server(request: pytest.FixtureRequest, watch: Watch, models: Path) -> Iterator[RunningServer]:
    arguments = [f"{name}={json.dumps(value)}" for name, value in engine_args().items()]
    model = models / request.param
    with serve(engine="vllm", model=model, slots=SLOTS, engine_arg=arguments) as server:
        yield server


only_opt = pytest.mark.parametrize("server", ["opt"], indirect=True, scope="module")
only_rill = pytest.mark.parametrize("server", ["rill"], indirect=True, scope="module")


def stream(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of one generation, read by a plain SSE client."""
    body = {"prompt": "Once upon a time", "temperature": 0, **fields}
    with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        return [
            json.loads(event.data)
            for event in sseclient.SSEClient(answer.iter_content(None)).events()
        ]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["token"] for event in events)


def test_a_plain_sse_client_gets_vllm_s_tokens_as_they_are_generated(server: RunningServer) -> None:
    """A busy machine joins the tokens of some steps, and one that stands still those of many."""
    for _ in range(NUM_TRIES):
        *deltas, end = stream(server, max_tokens=50)
        assert [event["index"] for event in deltas] == list(range(len(deltas)))
        assert end["finished"]
        assert end["finish_reason"] == "length"
        assert end["usage"]["completion_tokens"] == 50
        assert end["timings"]["total_time"] > 0
        if len(deltas) >= 10:
            return
    raise AssertionError(f"answers came in lumps, {NUM_TRIES} times")


def test_the_whole_answer_is_the_streamed_one(server: RunningServer) -> None:
    body = {"prompt": "The lake", "temperature": 0, "max_tokens": 40, "stream": False}
    whole = requests.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert whole["text"] == text_of(stream(server, prompt="The lake", max_tokens=40))
    assert whole["usage"]["completion_tokens"] == 40


def test_a_stop_string_is_found_by_penstock(server: RunningServer) -> None:
    text = text_of(stream(server, max_tokens=40))
    stop = text[20:25]
    *deltas, end = stream(server, max_tokens=40, stop=[stop])
    assert text_of(deltas) == text[: text.index(stop)]
    assert end["finish_reason"] == "stop"
    assert end["usage"]["completion_tokens"] < 40


def test_a_prompt_that_is_too_long_is_a_422(server: RunningServer) -> None:
    answer = requests.post(f"{server.url}/generate", json={"prompt": "a " * 3000}, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["code"] == "prompt_too_long"


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(server: RunningServer) -> None:
    answer = requests.post(f"{server.url}/generate", json={"prompt": "a " * 1_900_000}, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["code"] == "prompt_too_long"
    assert "at least" in answer.json()["detail"]  # the exact number takes seconds


@only_rill
def test_a_conversation_that_cannot_fit_is_refused_before_it_is_tokenised(
    server: RunningServer,
) -> None:
    for text in ("a ", "<|end|>"):
        messages = [{"role": "user", "content": text * (3_900_000 // len(text))}]
        answer = requests.post(f"{server.url}/generate", json={"messages": messages}, timeout=60)
        assert answer.status_code == 422
        assert "at least" in answer.json()["detail"]


@only_opt
def test_messages_to_a_model_without_a_chat_template_are_a_422(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    answer = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["code"] == "no_chat_template"


@only_rill
def test_messages_are_answered_by_a_model_with_a_chat_template(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": False, "seed": 1}
    answer = requests.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert answer["text"].strip()
    assert answer["finish_reason"] == "stop"


@only_rill
def test_a_template_without_tools_shows_earlier_calls_as_it_can(
    server: RunningServer,
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "Hi"},
    ]
    fields = {"messages": messages, "max_tokens": 3}
    answer = requests.post(f"{server.url}/v1/chat/completions", json=fields, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 3


@only_rill
def test_a_model_without_reasoning_ignores_the_effort_by_name(server: RunningServer) -> None:
    fields = {
        "messages": [{"role": "user", "content": "Hello"}],
        "reasoning_effort": "high",
        "max_tokens": 3,
    }
    answer = requests.post(f"{server.url}/v1/chat/completions", json=fields, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["x-penstock-ignored"] == "reasoning_effort"


def test_streams_are_batched_up_to_the_slots(server: RunningServer, watch: Watch) -> None:
    since = time.monotonic()
    ends: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda n=n: ends.append(stream(server, seed=n, max_tokens=400)[-1]))
        for n in range(2 * SLOTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 2 * SLOTS
    assert {end["finish_reason"] for end in ends} <= {"stop", "length"}
    watch.until(SLOTS, since)
    counts = [running for when, running, _ in watch.records if when >= since]
    assert max(counts) == SLOTS


@only_opt
@pytest.mark.parametrize("go", [Connection.close, Connection.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_ends_its_request_in_vllm(
    server: RunningServer, watch: Watch, go: Callable[[Connection], None], streamed: bool
) -> None:
    # As long as the context allows: they take two seconds.
    with open_stream(server.port, generate(max_tokens=2000))[0]:  # keeps vLLM counting
        watch.until(1, time.monotonic())
        client = Connection(server.port).send(generate(max_tokens=2000, stream=streamed))
        watch.until(2, time.monotonic())
        gone = time.monotonic()
        go(client)
        assert watch.until(1, gone) - gone < GONE_WITHIN_S


@only_opt
def test_streams_outlive_a_core_that_is_killed(server: RunningServer) -> None:
    """The text is the same as without the kill, also if vLLM dies within a character."""
    prompts = ["Once upon a time", "The lake", "A girl named Ada"]
    undisturbed = [stream(server, prompt=prompt, max_tokens=300) for prompt in prompts]
    core = core_of(server.engine_pid()).pid
    with contextlib.ExitStack() as stack:
        connections = []
        for prompt in prompts:
            body = generate(prompt, max_tokens=300, temperature=0)
            connection, _ = open_stream(server.port, body)
            connections.append(stack.enter_context(connection))
        readers = [connection.events() for connection in connections]
        begun = [[next(reader) for _ in range(5)] for reader in readers]
        os.kill(core, signal.SIGKILL)
        assert eventually(lambda: server.readiness() == 503, GONE_WITHIN_S)
        refused = requests.post(f"{server.url}/generate", json={"prompt": "Hi"}, timeout=5)
        assert refused.status_code == 503
        for connection in connections:
            connection.socket.settimeout(RESTART_LIMIT_S)
        disturbed = [first + list(reader) for first, reader in zip(begun, readers, strict=True)]
    for one, other in zip(disturbed, undisturbed, strict=True):
        assert text_of(one) == text_of(other)
        assert [event["index"] for event in one] == list(range(len(one)))
        assert one[-1]["finish_reason"] == other[-1]["finish_reason"] == "length"
        for end in (one[-1], other[-1]):  # the caches differ
            assert 0 <= end["usage"].pop("cached_tokens") < end["usage"]["prompt_tokens"]
        assert one[-1]["usage"] == other[-1]["usage"]
    assert eventually(lambda: server.readiness() == 200, RESTART_LIMIT_S)


@only_rill
def test_a_server_that_is_killed_leaves_nothing_of_vllm_behind(server: RunningServer) -> None:
    leader = server.engine_pid()
    assert len(group_of(leader)) >= 3
    files = {path for path in open_files(leader) if path.startswith(("/dev/shm/", "/tmp/penstock"))}
    assert files
    with open_stream(server.port, generate(max_tokens=1000))[0] as connection:
        connection.chunk()
        server.process.kill()
        server.process.wait()
    assert eventually(lambda: not group_of(leader))
    assert eventually(lambda: not any(Path(path).exists() for path in files))


def open_files(leader: int) -> set[str]:
    """Return the mapped files and the bound sockets of the processes of a group."""
    processes = group_of(leader)
    maps = {mapped.path for process in processes for mapped in process.memory_maps()}
    sockets = {str(own.laddr) for process in processes for own in process.net_connections("unix")}
    return maps | sockets
