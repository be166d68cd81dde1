"""Ollama's API with Ollama's own client: answers, tools, thinking, models and refusals."""

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.support.ollama_wire import (
    CHAT,
    COLD,
    GENERATE,
    HELLO,
    LAST,
    answer_to,
    asks,
    client_of,
    close_clients,
    joined,
    lines_of,
)
from tests.support.raw import ask, post, request
from tests.support.scripted_answer import CALLS, TEXTS, THOUGHTS
from tests.support.servers import RunningServer, serve, serve_terse_mock

IGNORED, LIMIT = "x-penstock-ignored", "x-penstock-max-tokens"
ENGINE = "tests.support.scripted_answer:ScriptedAnswer"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLED: Any = [
    {"id": call_id, "function": {"index": n, "name": name, "arguments": json.loads("".join(parts))}}
    for n, (call_id, name, parts) in enumerate(CALLS)
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=4, model_name="rill,small:1b") as running:
        yield running


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve_terse_mock() as running:
        yield running


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningServer]:
    """A model that thinks, speaks and calls two tools."""
    with serve(engine=ENGINE, model_name="rill") as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    close_clients()


# Answers.


def test_a_chat_is_the_same_streamed_and_whole(server: RunningServer) -> None:
    client = client_of(server)
    whole = client.chat("rill", HELLO, options=COLD)
    lines = list(client.chat("rill", HELLO, options=COLD, stream=True))
    assert joined(lines)["content"] == whole.message.content != ""
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    for last in (whole, lines[-1]):
        assert (last.model, last.done_reason, last.eval_count) == ("rill", "length", 12)
        assert last.prompt_eval_count == whole.prompt_eval_count
        parts = (last.load_duration, last.prompt_eval_duration, last.eval_duration)
        assert abs(sum(parts) - last.total_duration) < 3  # each is rounded
        assert 1_000 < last.total_duration < 60_000_000_000
    assert {line.created_at for line in lines} == {lines[0].created_at}


def test_a_prompt_is_answered_streamed_and_whole(server: RunningServer) -> None:
    client = client_of(server)
    whole = client.generate("rill", "Hello", system="Be brief.", options=COLD)
    lines = list(client.generate("rill", "Hello", system="Be brief.", options=COLD, stream=True))
    assert "".join(line.response for line in lines) == whole.response
    turns = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert client.chat("rill", turns, options=COLD).message.content == whole.response


def test_a_raw_prompt_is_continued_without_the_template(server: RunningServer) -> None:
    raw = client_of(server).generate("rill", "Once upon a time", raw=True, options=COLD)
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
    native = ask(server.port, post(json.dumps({**body, "stream": False}).encode())).json()
    assert raw.response == native["text"]
    assert raw.prompt_eval_count == native["usage"]["prompt_tokens"]
    answer = answer_to(server, path=GENERATE, raw=True, system="Be brief.", options=COLD)
    assert answer.headers[IGNORED] == "system"


def test_an_answer_without_stream_is_streamed(mock: RunningServer) -> None:
    answer = answer_to(mock)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, last = lines_of(answer.body)
    assert [line["message"] for line in lines[:2]] == [
        {"role": "assistant", "content": " Water"},
        {"role": "assistant", "content": " comes"},
    ]
    assert len(lines) == 12
    assert set(lines[0]) == {"model", "created_at", "message", "done"}
    assert set(last) == set(lines[0]) | LAST
    assert answer_to(mock, stream=False).headers["content-type"] == "application/json"


def test_options_do_what_they_say(server: RunningServer, mock: RunningServer) -> None:
    def text(**options: Any) -> str:
        answer = client_of(server).generate("rill", "Hello", options={"num_predict": 24, **options})
        return str(answer.response)

    greedy = text(temperature=0)
    for narrow in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert text(**narrow, temperature=2) == greedy
    assert text(seed=7) == text(seed=7)
    assert len({text(temperature=2, seed=seed) for seed in range(4)}) > 1
    assert text(temperature=0, repeat_penalty=100.0) != greedy
    assert text(temperature=0, presence_penalty=2.0, frequency_penalty=2.0) != greedy
    stopped = client_of(mock).generate("rill", "Hello", options={"stop": ["hills", " the hi"]})
    assert (stopped.response, stopped.done_reason) == (" Water comes down from", "stop")


@pytest.mark.parametrize("num_predict", [-2, -1, 0, 9999])
def test_a_limit_that_does_not_fit_is_the_room_in_the_context(
    mock: RunningServer, num_predict: int
) -> None:
    answer = answer_to(mock, stream=False, messages=[{"role": "user", "content": "a " * 45}],
                       options={"num_predict": num_predict})  # fmt: skip
    assert answer.json()["eval_count"] == 4
    assert answer.json()["done_reason"] == "length"
    assert answer.headers.get(LIMIT) == ("4" if num_predict > 0 else None)


def test_an_answer_keeps_to_a_format(server: RunningServer) -> None:
    client = client_of(server)
    schema = {
        "type": "object",
        "properties": {"age": {"enum": [7, 8]}},
        "required": ["age"],
        "additionalProperties": False,
    }
    said = client.chat("rill", HELLO, format=schema).message.content
    assert json.loads(said or "")["age"] in (7, 8)
    options = {"temperature": 0, "num_predict": 200}
    answer = client.generate("rill", "Hello", format="json", options=options)
    assert answer.response.startswith("{")
    assert answer.done_reason == "length" or isinstance(json.loads(answer.response), dict)
    assert client.chat("rill", HELLO, format="", options=COLD).message.content[0] != "{"


def test_log_probabilities_come_with_each_token(server: RunningServer) -> None:
    client = client_of(server)
    asked: Any = {"options": {**COLD, "num_predict": 3}, "logprobs": True, "top_logprobs": 2}
    whole = client.chat("rill", HELLO, **asked)
    assert whole.logprobs is not None
    assert "".join(each.token for each in whole.logprobs) == whole.message.content
    assert [len(each.top_logprobs or ()) for each in whole.logprobs] == [2, 2, 2]
    streamed = [each for line in client.chat("rill", HELLO, **asked, stream=True)
                for each in line.logprobs or ()]  # fmt: skip
    assert [each.token for each in streamed] == [each.token for each in whole.logprobs]


def test_a_begun_answer_goes_on(server: RunningServer) -> None:
    client = client_of(server)
    options = {"temperature": 0, "num_predict": 40}
    whole = client.chat("rill", HELLO, options=options).message.content or ""
    begun = whole[: whole.index(" ", 20)]
    turns = [*HELLO, {"role": "assistant", "content": begun}]
    rest = client.chat("rill", turns, options={"temperature": 0, "num_predict": 8})
    assert whole.startswith(begun + (rest.message.content or ""))


# Tools and thinking.


def test_a_call_comes_whole_and_goes_back(agent: RunningServer) -> None:
    client = client_of(agent)
    whole = client.chat("rill", HELLO, tools=[WEATHER])
    raw = lines_of(answer_to(agent, tools=[WEATHER]).body)
    message = joined(raw)
    assert message == {
        "content": "".join(TEXTS),
        "thinking": "".join(THOUGHTS),
        "tool_calls": CALLED,
    }
    assert [len(line["message"].get("tool_calls", ())) for line in raw] == [0, 0, 0, 0, 1, 1, 0]
    assert joined([whole.model_dump()])["content"] == message["content"]
    assert whole.message.thinking == message["thinking"]
    assert [call.function.arguments for call in whole.message.tool_calls or ()] == [
        call["function"]["arguments"] for call in CALLED
    ]
    assert whole.done_reason == "stop"
    results = [
        {"role": "tool", "content": "Sunny.", "tool_name": "get_weather"},
        {"role": "tool", "content": "Noon.", "tool_name": "get_time"},
    ]
    # Ollama's client drops the ids of calls, so the results belong to the calls in their order.
    answer = client.chat("rill", [*HELLO, whole.message, *results], tools=[WEATHER])
    said, called = json.loads(answer.message.content or "")
    ids = [call_id for call_id, _, _ in called]
    assert said[1][:3] == ["assistant", "".join(TEXTS), "".join(THOUGHTS)]
    assert [(role, text, of) for role, text, _, of in said[2:]] == [
        ("tool", "Sunny.", ids[0]),
        ("tool", "Noon.", ids[1]),
    ]
    assert json.loads(called[0][2]) == {"city": "Bonn", "days": 2}


def test_a_call_that_is_cut_has_what_is_complete() -> None:
    with serve(engine=ENGINE, engine_arg="cut=true", model_name="rill") as cut:
        streamed = joined(lines_of(answer_to(cut, tools=[WEATHER]).body))["tool_calls"]
        whole = answer_to(cut, tools=[WEATHER], stream=False).json()
    assert whole["done_reason"] == "length"
    (call,) = whole["message"]["tool_calls"]
    assert streamed == [call]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {}}


def test_thinking_is_shown_unless_it_is_turned_off(agent: RunningServer) -> None:
    for think, thoughts in ((None, THOUGHTS), (True, THOUGHTS), (False, ())):
        for path in (CHAT, GENERATE):
            body = answer_to(agent, path=path, think=think).body
            parts = [line.get("message", line) for line in lines_of(body)]
            assert "".join(part.get("thinking", "") for part in parts) == "".join(thoughts)
            whole = answer_to(agent, path=path, think=think, stream=False).json()
            part = whole.get("message", whole)
            assert part.get("thinking", "") == "".join(thoughts)
            assert part.get("content", part.get("response")) == "".join(TEXTS)
    assert answer_to(agent, think="high").headers[IGNORED] == "think"


def test_a_model_that_does_not_think_leaves_thinking_out(server: RunningServer) -> None:
    answer = answer_to(server, think=True, options=COLD)
    assert answer.headers[IGNORED] == "think"
    assert IGNORED not in answer_to(server, think=False, options=COLD).headers


# Models.


def test_the_model_is_listed_shown_and_running(server: RunningServer) -> None:
    client = client_of(server)
    assert [model.model for model in client.list().models] == ["rill:latest", "small:1b"]
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("rill:latest", 1024)
    shown = client.show("rill")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 1024
    assert shown.template.startswith("{{ bos_token }}")
    assert (shown.details.parameter_size, running.size) == ("2.9M", 5_776_384)
    version = ask(server.port, request("GET", "/api/version")).json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


@pytest.mark.parametrize("name", ["rill", "rill:latest", "small:1b"])
def test_every_name_of_the_model_is_echoed(server: RunningServer, name: str) -> None:
    client = client_of(server)
    assert client.generate(name, "Hello", options=COLD).model == name
    assert client.show(name).details.family == "llama"
    assert client.pull(name).status == "success"
    assert [each.status for each in client.pull(name, stream=True)][-1] == "success"


def test_another_model_is_not_found(server: RunningServer) -> None:
    client = client_of(server)
    for call in (client.show, client.pull, lambda name: client.chat(name, HELLO)):
        for name in ("another", "rill:1b", "small"):
            with pytest.raises(ollama.ResponseError) as failed:
                call(name)
            assert failed.value.status_code == 404
            assert name not in failed.value.error.replace("small:1b", "")


def test_an_empty_request_finds_the_model_loaded(mock: RunningServer) -> None:
    client = client_of(mock)
    for answer in (client.generate("rill", keep_alive="5m"), client.chat("rill")):
        assert (answer.done, answer.done_reason) == (True, "load")
    loaded = ask(mock.port, post(b'{"model": "rill", "keep_alive": -1}', path=GENERATE))
    assert (loaded.json()["response"], loaded.headers[IGNORED]) == ("", "keep_alive")


# What is left out, and what is refused.


def test_what_cannot_be_done_is_left_out_and_named(mock: RunningServer) -> None:
    options = {"num_gpu": 1, "mirostat": 2, "num_ctx": 4096, "zqxj": 1, "typical_p": None}
    answer = answer_to(mock, keep_alive="10m", options=options, stream=False, truncate=True)
    assert answer.status == 200
    names = set(answer.headers[IGNORED].split(", "))
    assert names == {"keep_alive", "truncate", "num_gpu", "mirostat", "options.num_ctx",
                     "options.zqxj"}  # fmt: skip
    assert IGNORED not in answer_to(mock, options={"num_ctx": 50}, template="", context=[],
                                    path=GENERATE).headers  # fmt: skip


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(mock: RunningServer) -> None:
    with pytest.raises(ollama.ResponseError, match="context length is 50 tokens") as failed:
        client_of(mock).chat("rill", [{"role": "user", "content": "a " * 98 + "b"}])
    assert failed.value.status_code == 400


MARK = "zqxj"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (post(b"", path=CHAT), 400, "invalid_json"),
        (post(b'{"a":"zqxj\xff"}', path=GENERATE), 400, "invalid_utf8"),
        (post(b'["zqxj"]', path="/api/show"), 400, "not_an_object"),
        (asks(messages=MARK), 400, "invalid_type"),
        (asks(messages=[MARK]), 400, "invalid_type"),
        (asks(messages=[{"role": MARK}]), 400, "invalid_value"),
        (asks(messages=[{"role": "user", "images": [MARK]}]), 400, "unsupported_field"),
        (asks(messages=[{"role": "assistant", "tool_calls": [{"function": 1}]}]), 400,
         "invalid_type"),
        (asks(tools=[{"function": {"parameters": {}}}]), 400, "missing_field"),
        (asks(tools=[WEATHER, WEATHER]), 400, "invalid_value"),
        (asks(format=MARK), 400, "invalid_value"),
        (asks(think=MARK), 400, "invalid_value"),
        (asks(options=MARK), 400, "invalid_type"),
        (asks(options={"temperature": MARK}), 400, "invalid_type"),
        (asks(options={"temperature": -1}), 400, "out_of_range"),
        (asks(options={"stop": [MARK] * 65}), 400, "too_many_items"),
        (asks(options={"num_predict": 2**31}), 400, "out_of_range"),
        (asks(top_logprobs=2), 400, "invalid_value"),
        (asks(path=GENERATE, prompt=[MARK]), 400, "invalid_type"),
        (asks(path=GENERATE, images=[MARK]), 400, "unsupported_field"),
        (asks(path=GENERATE, template=MARK), 400, "unsupported_field"),
        (asks(path=GENERATE, context=[1, 2]), 400, "unsupported_field"),
        (asks(path=GENERATE, suffix=MARK), 400, "unsupported_field"),
        (asks(model=MARK), 404, "model_not_found"),
        (asks(model=MARK * 100), 400, "too_long"),
        (post(b'{"model":"zqxj"}', path="/api/pull"), 404, "model_not_found"),
        (post(b'{"model":5}', path="/api/show"), 400, "invalid_type"),
        (asks(path="/api/zqxj"), 404, "no_such_route"),
        (request("GET", CHAT), 405, "method_not_allowed"),
        (request("POST", CHAT, "Content-Type: text/plain"), 415, "unsupported_media_type"),
        (asks("X-Penstock-Resumable: true", stream=False), 400, "invalid_value"),
        *((post(b'{"model":"zqxj"}', path=f"/api/{name}"), 501, "not_served")
          for name in ("embed", "embeddings", "create", "copy", "push", "blobs/sha256:zqxj")),
        (request("DELETE", "/api/delete", "Content-Length: 0"), 501, "not_served"),
    ],
)  # fmt: skip
def test_errors_have_ollama_s_form_and_echo_nothing(
    mock: RunningServer, sent: bytes, status: int, code: str
) -> None:
    answer = ask(mock.port, sent)
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"error", "code", "retry_safe"}
    assert 10 < len(answer.json()["error"]) < 500
    assert MARK.encode() not in answer.body
