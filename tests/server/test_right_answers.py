"""Answers keep the values, texts and counts that a client asked for, over a real llama.cpp.

Every test here once failed: the answer was wrong, and nothing said so.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.calling import CALLS, HELLO, client_of, create, tool
from tests.support.raw import Connection, ask, generate
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING, TOOLS


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def caller() -> Iterator[RunningServer]:
    with serve(slots=4, engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


def answer_to(server: RunningServer, schema: dict[str, Any], **fields: Any) -> Any:
    """Return the first choice of an answer that must satisfy this schema."""
    asked = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    fields = {"messages": HELLO, "max_tokens": 60, "temperature": 0, **fields}
    return create(server, response_format=asked, **fields).choices[0]


def arguments_of(server: RunningServer, schema: dict[str, Any], choice: str = "auto") -> Any:
    """Return the value of a tool's only argument, which must satisfy this schema."""
    fields = {**CALLS, "tools": [tool("act", {"it": schema})]}
    message = create(server, **fields, tool_choice=choice).choices[0].message
    return json.loads(message.tool_calls[0].function.arguments)["it"]


# Integers.

GREATEST = 2**53


@pytest.mark.parametrize("number", [GREATEST, -GREATEST, GREATEST - 1], ids=str)
def test_a_schema_keeps_an_integer_up_to_2_53(rill: RunningServer, number: int) -> None:
    for schema in ({"const": number}, {"enum": [number]}, bounded(number)):
        assert json.loads(answer_to(rill, schema).message.content) == number


def bounded(number: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": number, "maximum": number}


def refusal_of(asked: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        asked()
    return refused.value


@pytest.mark.parametrize(
    "number",
    [GREATEST + 1, -GREATEST - 1, 2512292042121000001, 12345678901234567890, 10**30],
    ids=str,
)
def test_a_schema_with_an_integer_that_would_change_is_refused(
    rill: RunningServer, number: int
) -> None:
    inner = {"type": "object", "properties": {"id": {"const": number}}, "required": ["id"]}
    values = ({"const": number}, {"enum": [1, {"a": [number]}]}, bounded(number), inner)
    beyond = "exclusiveMinimum" if number > 0 else "exclusiveMaximum"
    for schema in (*values, {"type": "number", beyond: number}):
        refused = refusal_of(lambda schema=schema: answer_to(rill, schema))
        assert refused.code == "invalid_schema"
        assert str(GREATEST) in refused.message


def strictly(server: RunningServer, schema: dict[str, Any]) -> str:
    """Return an answer that must satisfy this strict schema."""
    named = {"name": "it", "schema": schema, "strict": True}
    asked = {"type": "json_schema", "json_schema": named}
    fields: Any = {"messages": HELLO, "max_tokens": 60, "temperature": 0}
    return str(create(server, response_format=asked, **fields).choices[0].message.content)


@pytest.mark.parametrize(
    "pattern",
    [r'^[^"]{2}x[0-9]{2}$', r"""^["'][a-z]["']$""", r'^[^"\\]{3}$', r"^[a-z]+ \d$"],
)
def test_an_answer_matches_its_pattern(rill: RunningServer, pattern: str) -> None:
    text = json.loads(strictly(rill, {"type": "string", "pattern": pattern, "maxLength": 9}))
    assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", ['^a"[0-9]$', r"^C:\\[a-z]+$", r"^a\n[0-9]$"])
def test_a_pattern_that_llama_cpp_binds_to_other_texts_is_refused(
    rill: RunningServer, pattern: str
) -> None:
    """llama.cpp gave a quotation mark too early for the first one, and nothing after it."""
    schemas: list[dict[str, Any]] = [
        {"type": "string", "pattern": pattern},
        {"type": "object", "patternProperties": {pattern: {}}},
    ]
    for schema in schemas:
        refused = refusal_of(lambda schema=schema: strictly(rill, schema))
        assert refused.code == "invalid_schema"


def test_a_bound_beyond_2_53_that_only_allows_more_is_left_out(rill: RunningServer) -> None:
    """Many programs describe their integers of 64 bits with such bounds."""
    schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    it = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    called = {"tools": [tool("act", {"it": schema})], "tool_choice": "required"}
    ways: list[tuple[str, dict[str, Any]]] = [
        ("tools[].parameters", called),
        ("response_format", {"response_format": it}),
    ]
    for name, asked in ways:
        body = {"messages": HELLO, "max_tokens": 60, **asked}
        with client_of(rill) as client:
            raw = client.chat.completions.with_raw_response
            answer = raw.create(model="rill", **body)
        assert answer.headers["x-penstock-ignored"] == f"{name} (relaxed)"


def test_a_bound_beyond_2_53_is_refused_also_as_a_float(rill: RunningServer) -> None:
    """llama.cpp gave 9223372036854775807 for 1e20."""
    schema = {"type": "integer", "minimum": 1e20, "maximum": 1e20}
    assert refusal_of(lambda: answer_to(rill, schema)).code == "invalid_schema"


def test_a_tool_keeps_an_integer_up_to_2_64_and_refuses_a_greater_one(
    caller: RunningServer,
) -> None:
    for number in (GREATEST + 1, 2**64 - 1, -(2**63) + 2**10):
        assert arguments_of(caller, {"const": number}) == number
        assert arguments_of(caller, {"enum": [number]}) == number
    for number in (2**64, -(2**63) + 1, -(2**63)):
        refused = refusal_of(lambda number=number: arguments_of(caller, {"enum": [number]}))
        assert refused.code == "invalid_tools"
        assert "an integer is not from" in refused.message
    # A forced call is bound by another grammar, which keeps fewer integers.
    refused = refusal_of(lambda: arguments_of(caller, {"const": GREATEST + 1}, "required"))
    assert refused.code == "invalid_tools"


def test_the_number_at_which_the_grammar_library_crashes_is_refused(rill: RunningServer) -> None:
    refused = refusal_of(lambda: answer_to(rill, {"const": -(2.0**63)}))
    assert refused.code == "invalid_schema"
    assert "-2^63" in refused.message


# Reasoning.


def test_an_answer_of_reasoning_only_has_no_content_and_is_taken_back() -> None:
    asked: Any = {"messages": HELLO, "max_tokens": 3, "temperature": 0}
    arguments = [f"chat_template={REASONING}", "sampling.reasoning_budget_tokens=8"]
    with serve(engine_arg=arguments) as server, client_of(server) as client:
        for number in (1, 2):
            whole = create(server, **asked, n=number).choices
            with client.chat.completions.stream(model="rill", **asked, n=number) as events:
                events.until_done()
                streamed = events.current_completion_snapshot.choices
            assert len(whole) == len(streamed) == number
            for choice in (*whole, *streamed):
                assert choice.finish_reason == "length"
                assert choice.message.content is None
                assert choice.message.to_dict()["reasoning_content"]
                turns = [*HELLO, choice.message.to_dict(), *HELLO]
                again = create(server, messages=turns, max_tokens=1)
                assert again.usage.completion_tokens == 1


def test_reasoning_that_the_last_turn_has_begun_goes_on_as_reasoning() -> None:
    begun = {"role": "assistant", "content": None, "reasoning_content": "I think that"}
    done = {"role": "assistant", "content": "Once upon", "reasoning_content": "I think."}
    asked: Any = {"max_tokens": 3, "temperature": 0, "extra_body": {"continue_final_message": True}}
    with serve(engine_arg=[f"chat_template={REASONING}"]) as server:
        thought = create(server, messages=[*HELLO, begun], **asked).choices[0].message.to_dict()
        assert thought["content"] is None
        assert thought["reasoning_content"]
        answer = create(server, messages=[*HELLO, done], **asked).choices[0].message.to_dict()
        assert answer["content"]
        assert "reasoning_content" not in answer


# Counts.

LONG = "Once upon a time there was a lighthouse near the sea"


@pytest.fixture
def fresh() -> Iterator[RunningServer]:
    """A server with one slot, whose cache is empty."""
    with serve(slots=1) as server:
        yield server


def test_usage_says_how_much_of_the_prompt_was_cached(fresh: RunningServer) -> None:
    native = ask(fresh.port, generate(prompt=LONG, max_tokens=1, stream=False)).json()["usage"]
    assert native["cached_tokens"] == 0
    num_tokens = native["prompt_tokens"]
    # llama.cpp reads at least the last token again.
    native = ask(fresh.port, generate(prompt=LONG, max_tokens=1, stream=False)).json()["usage"]
    assert native == {
        "prompt_tokens": num_tokens,
        "completion_tokens": 1,
        "total_tokens": num_tokens + 1,
        "cached_tokens": num_tokens - 1,
    }
    with Connection(fresh.port).send(generate(prompt=LONG, max_tokens=1)) as connection:
        connection.head()
        *_, end = connection.events()
    assert end["usage"] == native
    with client_of(fresh) as client:
        asked: Any = {"model": "rill", "prompt": LONG, "max_tokens": 2}
        usage = client.completions.create(**asked).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == num_tokens - 1
        asked["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        for chunk in client.completions.create(**asked, stream=True):
            assert chunk.usage is not None
            assert chunk.usage.prompt_tokens_details is not None
            assert chunk.usage.prompt_tokens_details.cached_tokens == num_tokens - 1


def test_a_chat_with_and_without_tools_says_how_much_was_cached(caller: RunningServer) -> None:
    for fields in ({"messages": HELLO}, {**CALLS, "max_tokens": 4}):
        first, second = (
            create(caller, **{"max_tokens": 2, **fields}).usage.prompt_tokens_details.cached_tokens
            for _ in range(2)
        )
        usage = create(caller, **{"max_tokens": 2, **fields}).usage
        assert first <= second
        assert usage.prompt_tokens_details.cached_tokens > usage.prompt_tokens // 2


def test_several_choices_count_their_prompt_once_everywhere(fresh: RunningServer) -> None:
    with client_of(fresh) as client:
        usage = client.completions.create(
            model="rill", prompt=[LONG, "Hi"], n=3, max_tokens=2, temperature=0
        ).usage
        assert usage is not None
        alone = [
            client.completions.create(model="rill", prompt=each, max_tokens=1).usage
            for each in (LONG, "Hi")
        ]
    num_tokens = sum(each.prompt_tokens for each in alone if each is not None)
    assert usage.prompt_tokens == num_tokens
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) < num_tokens
    scrape = scrape_until(fresh, lambda scrape: scrape("penstock_streams_ended_total") == 8)
    assert scrape("penstock_prompt_tokens_total") == 2 * num_tokens
    assert scrape("penstock_completion_tokens_total") == usage.completion_tokens + 2


def test_the_mock_engine_has_nothing_cached() -> None:
    with serve(engine="mock", mock_interval=0) as server:
        for _ in range(2):
            usage = ask(server.port, generate(stream=False)).json()["usage"]
            assert usage["cached_tokens"] == 0
        assert Scrape(server)("penstock_prompt_tokens_total") == 2 * usage["prompt_tokens"]


# Control tokens.

MARKED = "a <|user|> b"


@pytest.mark.parametrize("text", [MARKED, "a <|end|> b", "<|system|>", "<|end|>"])
def test_a_schema_s_text_of_a_control_token_is_spelled_out(rill: RunningServer, text: str) -> None:
    pattern = re.escape(text).replace("<", "[<]")
    named = {
        "type": "object",
        "properties": {text: {"const": 1}},
        "required": [text],
        "additionalProperties": False,
    }
    schemas = ({"const": text}, {"enum": [text]}, {"type": "string", "pattern": f"^{pattern}$"})
    for schema, value in [*((schema, text) for schema in schemas), (named, {text: 1})]:
        choice = answer_to(rill, schema)
        assert json.loads(choice.message.content) == value
        assert choice.finish_reason == "stop"
        assert "".join(streamed(rill, schema)) == choice.message.content


def test_a_grammar_s_text_of_a_control_token_is_spelled_out(rill: RunningServer) -> None:
    bonds: list[dict[str, Any]] = [
        {"guided_choice": [MARKED]},
        {"guided_regex": r"a <\|user\|> b"},
        {"guided_grammar": f'root ::= "{MARKED}"'},
        {"structured_outputs": {"choice": [MARKED]}},
    ]
    for bond in bonds:
        asked: Any = {"messages": HELLO, "max_tokens": 60, "temperature": 0, "extra_body": bond}
        assert create(rill, **asked).choices[0].message.content == MARKED


def streamed(server: RunningServer, schema: dict[str, Any]) -> list[str]:
    chunks = create(
        server,
        messages=HELLO,
        max_tokens=60,
        temperature=0,
        stream=True,
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    )
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


def test_a_stop_string_finds_the_text_of_a_control_token(rill: RunningServer) -> None:
    choice = answer_to(rill, {"const": MARKED}, stop=["a <"])
    assert (choice.message.content, choice.finish_reason) == ('"', "stop")
    choice = answer_to(rill, {"const": MARKED}, stop=["|> c", "user|>"])
    assert choice.message.content == '"a <|'


def test_turn_marks_in_a_message_are_text(rill: RunningServer) -> None:
    marks = "a<|end|><|system|>b<|end|><|user|>c"
    usage = create(rill, messages=[{"role": "user", "content": marks}], max_tokens=1).usage
    assert usage.prompt_tokens == 17  # 11 if they were turns
    with client_of(rill) as client:
        raw = client.completions.create(model="rill", prompt=marks, max_tokens=1)
    assert raw.usage is not None
    assert raw.usage.prompt_tokens == 8  # a raw prompt is in the model's own form


def test_special_tokens_among_the_likeliest_have_names(rill: RunningServer) -> None:
    asked: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "logprobs": True}
    chat = create(rill, messages=HELLO, top_logprobs=20, **asked).choices[0]
    tops = [top for each in chat.logprobs.content for top in each.top_logprobs]
    assert all(top.token and top.bytes for top in tops)
    (end, *_) = [top for top in tops if top.token == "<|end|>"]
    assert bytes(end.bytes) == b"<|end|>"


def test_bytes_that_are_no_character_have_openai_s_names(rill: RunningServer) -> None:
    with client_of(rill) as client:
        answer = client.completions.create(
            model="rill", prompt="Hi", max_tokens=3, logprobs=5, logit_bias={str(B7): 100}
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert answer.choices[0].text == "\ufffd" * 3
    assert logprobs.tokens == ["bytes:\\xb7"] * 3
    assert logprobs.text_offset == [0, 1, 2]
    assert all(len(top) == 6 and "bytes:\\xb7" in top for top in logprobs.top_logprobs or ())


B7 = 120
"""The id of rill's token for the byte B7."""
