"""Requests as real programs send them are answered, and the response says what was left out.

The bodies are those that the programs send to a local server that speaks OpenAI's API; names,
prompts and ids are replaced, and long lists shortened.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
import pytest
import requests
from pydantic import BaseModel

from tests.support.calling import BOTH, CALLS, client_of
from tests.support.openai_wire import CHAT, COMPLETIONS, chunks_of
from tests.support.raw import ask, generate, post
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS

IGNORED, LIMIT = "x-penstock-ignored", "x-penstock-max-tokens"
CACHED = {"type": "ephemeral"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
HELLO: Any = {"role": "user", "content": "Hello"}
USAGE = {"include_usage": True}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": USAGE}


def part(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def called(call_id: str = "call_1", **fields: Any) -> dict[str, Any]:
    function = {"name": "get_time", "arguments": '{"zone": "UTC"}'}
    calls = [{"id": call_id, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls, **fields}


def result(call_id: str = "call_1", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "It is noon.", **fields}


@dataclass
class Sent:
    """A program's request, and fields that the response must name as ignored."""

    client: str
    body: dict[str, Any]
    ignored: set[str] = field(default_factory=set)
    path: str = CHAT

    def __str__(self) -> str:
        return self.client


def chat(client: str, *messages: dict[str, Any], ignored: str = "", **fields: Any) -> Sent:
    return Sent(client, {"messages": list(messages), **fields}, set(ignored.split()))


def completion(client: str, ignored: str = "", **fields: Any) -> Sent:
    return Sent(client, {"prompt": "Once upon a time", **fields}, set(ignored.split()), COMPLETIONS)


SENT = [
    chat("AutoGen", SYSTEM, {**HELLO, "name": "user"}, stream=False),
    chat(
        "LangChain.js createAgent",
        HELLO,
        called(name="model"),
        result(name="get_time"),
        tools=BOTH,
        stream=False,
    ),
    chat(
        "LangGraph create_agent(name=...)",
        HELLO,
        called(name="clerk", refusal=None),
        result(),
        tools=BOTH,
        parallel_tool_calls=True,
    ),
    chat("Semantic Kernel", {**SYSTEM, "name": "Host"}, HELLO, stream=False, store=False),
    chat(
        "instructor, after a failed validation",
        HELLO,
        called(),
        result(name="get_time", content="Validation Error found: age\nRecall the function."),
        tools=BOTH[1:],
        tool_choice={"type": "function", "function": {"name": "get_time"}},
    ),
    chat("CrewAI", SYSTEM, {**HELLO, "name": "clerk"}, stop=["\nObservation:"], n=1, top_p=None),
    chat("Haystack", SYSTEM, HELLO, n=1, stream=False, tools=[], timeout=30, ignored="timeout"),
    chat("pydantic-ai", HELLO, tools=BOTH, tool_choice="auto", n=1, stream=False),
    chat(
        "openai-agents",
        SYSTEM,
        HELLO,
        **STREAMED,
        tools=BOTH,
        metadata={"trace": "a"},
        verbosity="low",
        ignored="metadata verbosity",
    ),
    chat("Vercel AI SDK", HELLO, **STREAMED, tools=BOTH, tool_choice="auto"),
    chat(
        "LiteLLM's proxy",
        HELLO,
        **STREAMED,
        user="default_user_id",
        litellm_session_id="a",
        ignored="user litellm_session_id",
    ),
    chat("opencode", SYSTEM, HELLO, **STREAMED, max_tokens=32000, tools=BOTH, tool_choice="auto"),
    chat(
        "guidellm",
        {**HELLO, "content": [part("Hello")]},
        stream=True,
        stream_options={**USAGE, "continuous_usage_stats": True},
        max_completion_tokens=16,
        stop=None,
        ignore_eos=True,
    ),
    completion(
        "vllm bench serve",
        temperature=0.0,
        repetition_penalty=1.0,
        max_tokens=16,
        logprobs=None,
        **STREAMED,
        ignore_eos=True,
    ),
    chat(
        "VS Code Copilot",
        {**SYSTEM, "copilot_cache_control": CACHED},
        {**HELLO, "copilot_cache_control": CACHED},
        **STREAMED,
        top_p=1,
        temperature=0.1,
        max_tokens=4096,
        n=1,
        tools=BOTH,
        ignored="messages[].copilot_cache_control",
    ),
    chat(
        "Cline",
        {**SYSTEM, "content": [part("You are Cline.", cache_control=CACHED)]},
        {**HELLO, "content": [part("Hello", cache_control=CACHED)]},
        **STREAMED,
        temperature=0,
        ignored="messages[].content[].cache_control",
    ),
    chat(
        "Continue, applying an edit",
        HELLO,
        stream=True,
        max_tokens=-1,
        prediction={"type": "content", "content": "def f(): pass"},
        ignored="prediction",
    ),
    chat("LibreChat", SYSTEM, HELLO, **STREAMED, user="66a1", ignored="user"),
    chat(
        "Open WebUI",
        HELLO,
        **STREAMED,
        session_id="a",
        chat_id="b",
        features={"web_search": False},
        ignored="session_id chat_id features",
    ),
    chat(
        "n8n",
        HELLO,
        stream=True,
        temperature=0.7,
        top_p=1,
        frequency_penalty=0,
        presence_penalty=0,
        n=1,
        max_tokens=-1,
    ),
    chat("LM Studio's clients", SYSTEM, HELLO, temperature=0.7, max_tokens=-1, stream=True),
    chat(
        "Home Assistant",
        SYSTEM,
        HELLO,
        **STREAMED,
        max_completion_tokens=3000,
        service_tier="flex",
        store=False,
        user="01J",
        ignored="service_tier user",
    ),
    chat(
        "qwen-code",
        SYSTEM,
        HELLO,
        **STREAMED,
        metadata={"sessionId": "a", "promptId": "b"},
        vl_high_resolution_images=True,
        ignored="metadata vl_high_resolution_images",
    ),
    chat(
        "a client of OpenRouter",
        HELLO,
        {
            "role": "assistant",
            "content": "Hi.",
            "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}],
        },
        HELLO,
        provider={"order": ["a"]},
        transforms=["middle-out"],
        usage={"include": True},
        ignored="provider transforms usage messages[].reasoning_details",
    ),
    chat(
        "llama.cpp's web UI",
        HELLO,
        stream=True,
        samplers="edkypmxt",
        temperature=0.8,
        dynatemp_range=0,
        xtc_probability=0.5,
        timings_per_token=True,
        ignored="samplers xtc_probability timings_per_token",
    ),
    chat("smolagents", {**HELLO, "content": [part("Hello")]}, stop=["Observation:"], tools=None),
    completion("lm-eval", max_tokens=16, temperature=0, stop=["\n\n"], seed=1234),
    completion("llm", **STREAMED, best_of=1, n=1, suffix="", user="", echo=False),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose model calls tools."""
    with serve(engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve(
        engine="mock", mock_interval=0, engine_arg=["length=300", "context_length=200"]
    ) as s:
        yield s


def names_in(header: str | None) -> list[str]:
    return header.split(", ") if header else []


@pytest.mark.parametrize("sent", SENT, ids=str)
def test_a_request_as_a_real_client_sends_it_is_answered(server: RunningServer, sent: Sent) -> None:
    answer = ask(server.port, post(json.dumps(sent.body).encode(), path=sent.path))
    assert answer.status == 200, answer.body
    assert sent.ignored <= set(names_in(answer.headers.get(IGNORED)))
    if sent.body.get("stream"):
        chunks = chunks_of(answer.body)
        assert not [chunk for chunk in chunks if "error" in chunk]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        choices = answer.json()["choices"]
    (end,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert end in ("stop", "length", "tool_calls")


def test_a_message_of_openai_s_parse_is_taken_back(server: RunningServer) -> None:
    class Lake(BaseModel):
        depth: Literal[5]

    asked: Any = {"model": "rill", "messages": [HELLO], "temperature": 0}
    with client_of(server) as client:
        parsed = client.chat.completions.parse(**asked, response_format=Lake, max_tokens=30)
        asked["messages"] = [HELLO, parsed.choices[0].message.to_dict(warnings=False), HELLO]
        raw = client.chat.completions.with_raw_response.create(**asked, max_tokens=3)
    assert names_in(raw.headers[IGNORED]) == ["messages[].parsed"]
    assert raw.parse().choices[0].message.content


def test_a_call_of_openai_s_parse_is_taken_back(server: RunningServer) -> None:
    asked: Any = {"model": "rill", **CALLS}
    with client_of(server) as client:
        strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in BOTH]
        with client.chat.completions.stream(**{**asked, "tools": strict}) as stream:
            message: Any = stream.get_final_completion().choices[0].message.to_dict(warnings=False)
        (call,) = message["tool_calls"]
        assert "parsed_arguments" in call["function"]
        asked["messages"] = [HELLO, message, result(call["id"])]
        raw = client.chat.completions.with_raw_response.create(**asked, max_tokens=3)
    assert "messages[].tool_calls[].function.parsed_arguments" in names_in(raw.headers[IGNORED])


def test_unknown_fields_at_any_depth_are_left_out_and_named_once(mock: RunningServer) -> None:
    body = {
        "messages": [{**HELLO, "cache_control": CACHED}, {**HELLO, "cache_control": CACHED}],
        "min_p2": 0.1,
        "stream_options": {"include_usage": True, "include_costs": True},
        "response_format": {"type": "text", "syntax": "lark"},
        "nothing": None,
    }
    for streamed in (True, False):
        sent = json.dumps({**body, "stream": streamed}).encode()
        answer = ask(mock.port, post(sent, path=CHAT))
        assert answer.status == 200
        assert sorted(names_in(answer.headers[IGNORED])) == [
            "messages[].cache_control",
            "min_p2",
            "response_format.syntax",
            "stream_options.include_costs",
        ]
    answer = ask(mock.port, generate(min_p2=1, stream=False))
    assert (answer.status, answer.headers[IGNORED]) == (200, "min_p2")
    assert IGNORED not in ask(mock.port, generate(stream=False)).headers


def test_the_header_of_ignored_fields_is_bounded_and_safe(mock: RunningServer) -> None:
    fields: dict[str, Any] = {f"field{n}": 1 for n in range(1_000)}
    names = ask(mock.port, generate(**fields)).headers[IGNORED]
    assert len(names) <= 1024
    assert names.startswith("field0, field1, ")
    *_, last = names_in(names)
    assert int(last.split()[1]) + len(names_in(names)) - 1 == 1_000
    unsafe: dict[str, Any] = {"é\r\nX-Other: 1": 1}
    answer = ask(mock.port, generate(**unsafe))
    assert answer.headers[IGNORED] == "???X-Other??1"
    assert "x-other" not in answer.headers


def test_each_ignored_name_is_logged_once_for_each_owner() -> None:
    keys = ["k" * 20, "m" * 20]
    with serve(engine="mock", mock_interval=0, api_key=keys, log_format="json") as server:
        for key in (keys[0], keys[0], keys[1]):
            for _ in range(2):
                headers = {"Authorization": f"Bearer {key}"}
                body = {"prompt": "a", "zqxj": 1, "stream": False}
                assert requests.post(f"{server.url}/generate", json=body, headers=headers).ok
        many: dict[str, Any] = {f"field{n}": 1 for n in range(200)}
        requests.post(f"{server.url}/generate", json={"prompt": "a", **many}, headers=headers)
    lines = [json.loads(line) for line in server.output if "is ignored" in line]
    assert [(each["field"], each["owner"]) for each in lines if each["field"] == "zqxj"] == [
        ("zqxj", "key #1"),
        ("zqxj", "key #2"),
    ]
    assert len([each for each in lines if each["owner"] == "key #2"]) == 100


def test_a_strict_server_refuses_what_it_would_ignore() -> None:
    with serve("--strict", engine="mock", mock_interval=0) as server:
        for sent, path in (
            ({"messages": [HELLO], "min_p2": 1}, CHAT),
            ({"messages": [{**HELLO, "zqxj": 1}]}, CHAT),
            ({"messages": [HELLO], "verbosity": "low"}, CHAT),
            ({"messages": [HELLO], "stream_options": USAGE}, CHAT),
            ({"messages": [HELLO], "max_tokens": 100_000}, CHAT),
            ({"prompt": "a", "min_p2": 1}, COMPLETIONS),
        ):
            answer = ask(server.port, post(json.dumps(sent).encode(), path=path))
            assert (answer.status, IGNORED in answer.headers) == (400, False)
            if "min_p2" in sent:
                assert answer.json()["error"]["code"] == "unknown_field"
        assert ask(server.port, generate(min_p2=1)).json()["code"] == "unknown_field"
        assert ask(server.port, generate(stream=False)).status == 200


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"web_search_options": {}}, "search the web"),
        ({"web_search_options": {"search_context_size": "low"}}, "search the web"),
        ({"function_call": {"name": "a"}}, "functions"),
        ({"audio": {"voice": "a", "format": "wav"}}, "text only"),
        ({"modalities": ["text", "audio"]}, "text only"),
        ({"moderation": {"model": "a"}}, "moderate"),
        ({"store": True}, "stores no answers"),
    ],
    ids=str,
)
def test_a_field_that_asks_for_the_impossible_is_refused_in_a_sentence(
    mock: RunningServer, fields: dict[str, Any], word: str
) -> None:
    with client_of(mock) as client, pytest.raises(openai.BadRequestError) as refused:
        client.post(
            "/chat/completions", body={"model": "mock", "messages": [HELLO], **fields}, cast_to=dict
        )
    assert refused.value.param == next(iter(fields))
    assert word in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"


NEUTRAL: list[object] = [None, False, "", [], {}]


@pytest.mark.parametrize("value", NEUTRAL, ids=str)
def test_a_value_that_asks_for_nothing_is_accepted_in_any_field(
    mock: RunningServer, value: object
) -> None:
    api = requests.get(f"{mock.url}/openapi.json", timeout=30).json()["components"]["schemas"]
    for path, model, required in (
        (CHAT, "ChatRequest", {"messages": [HELLO]}),
        (COMPLETIONS, "CompletionRequest", {"prompt": "a"}),
        ("/generate", "GenerateRequest", {"prompt": "a"}),
    ):
        names = {*api[model]["properties"], "audio", "functions", "suffix", "zqxj"} - {"messages"}
        if value is False:  # in these fields it asks for something that the mock does not have
            names -= {"add_generation_prompt", "skip_special_tokens"}
        fields = dict.fromkeys(names - set(required), value)
        answer = ask(mock.port, post(json.dumps({**fields, **required}).encode(), path=path))
        assert (answer.status, answer.headers.get(IGNORED)) == (200, None), answer.body


@pytest.mark.parametrize("streamed", [True, False])
def test_a_token_limit_that_does_not_fit_is_cut_and_the_header_says_so(
    mock: RunningServer, streamed: bool
) -> None:
    with client_of(mock) as client:
        for limit in (32_000, -1, 198):
            raw: Any = client.chat.completions.with_raw_response.create(
                model="mock",
                messages=[{"role": "user", "content": "one two three"}],
                max_tokens=limit,
                stream=streamed,
            )
            assert raw.headers[LIMIT] == "197"
            answer: Any = raw.parse()
            end = list(answer)[-1] if streamed else answer
            assert end.choices[0].finish_reason == "length"
        raw = client.chat.completions.with_raw_response.create(
            model="mock", messages=[{"role": "user", "content": "one two three"}], max_tokens=197
        )
    assert LIMIT not in raw.headers
    answer = ask(mock.port, generate("one two three", max_tokens=2**31 - 1, stream=streamed))
    assert (answer.status, answer.headers[LIMIT]) == (200, "197")


def test_the_new_name_of_the_token_limit_wins(mock: RunningServer) -> None:
    with client_of(mock) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="mock",
            messages=[HELLO],
            max_tokens=9,
            max_completion_tokens=5,
        )
    assert names_in(raw.headers[IGNORED]) == ["max_tokens"]
    usage = raw.parse().usage
    assert usage is not None
    assert usage.completion_tokens == 5


def test_an_overflow_has_the_sentence_that_programs_look_for(mock: RunningServer) -> None:
    body: dict[str, Any]
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": "word " * 300}]}),
        (COMPLETIONS, {"prompt": "word " * 300}),
    ):
        error = ask(mock.port, post(json.dumps(body).encode(), path=path)).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("This model's maximum context length is 200 tokens. ")


def test_models_with_a_slash_is_the_list(mock: RunningServer) -> None:
    listed = requests.get(f"{mock.url}/v1/models", timeout=30).json()
    assert requests.get(f"{mock.url}/v1/models/", timeout=30).json() == listed
    for answer in (
        requests.get(f"{mock.url}/v1/models/gpt-4o", timeout=30),
        requests.post(mock.url + CHAT, json={"messages": [HELLO], "model": "gpt-4o"}, timeout=30),
    ):
        assert answer.status_code == 404
        assert "It serves mock." in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"


def test_errors_say_when_to_retry_in_the_headers_that_the_sdks_obey() -> None:
    with (
        serve(engine="mock", engine_arg=["hang_at=0"], slots=1, max_queue=0) as server,
        requests.post(f"{server.url}/generate", json={"prompt": "a"}, stream=True, timeout=30),
    ):
        full = requests.post(f"{server.url}/generate", json={"prompt": "a"}, timeout=30)
    assert full.status_code == 429
    assert full.headers["x-should-retry"] == "true"
    assert int(full.headers["retry-after-ms"]) == 1000 * int(full.headers["retry-after"])
