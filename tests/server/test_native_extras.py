"""The native API takes what OpenAI's routes take: schemas, grammars, log probabilities and ids."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.api.native.fields import parse_generate
from penstock.api.tolerance import Notes
from penstock.client import Client
from penstock.errors import InvalidFields
from tests.support.dying import MortalServer, mortal
from tests.support.openai_wire import CHAT, COMPLETIONS
from tests.support.raw import Response, ask, frames_of, generate, post, resume, text_of
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

HELLO = [{"role": "user", "content": "Hello"}]
STORY: dict[str, Any] = {"prompt": "Once upon a time"}
# Token 18 of the story would be a near tie.
GREEDY: dict[str, Any] = {"temperature": 0, "top_p": 1, "top_k": -1, "max_tokens": 16}
DETAILS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Ulm"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}


def named(schema: object, **fields: object) -> dict[str, Any]:
    inner = {"name": "a", "schema": schema, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    with serve() as running:
        yield running
        assert "Traceback" not in "".join(running.output)


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    with mortal(tmp_path_factory.mktemp("dying"), after=8) as server:
        yield server


def native(server: RunningServer, body: dict[str, Any], *headers: str) -> Response:
    """Return the whole answer of the native API."""
    sent = {**GREEDY, "stream": False, **body}
    return ask(server.port, post(json.dumps(sent).encode(), *headers))


def of_openai(server: RunningServer, path: str, body: dict[str, Any]) -> Any:
    """Return the only choice of OpenAI's whole answer, and what stands beside the choices."""
    answer = ask(server.port, post(json.dumps({**GREEDY, **body}).encode(), path=path)).json()
    (choice,) = answer["choices"]
    return answer | choice


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Return the data of a native stream's events."""
    lines = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (named(CITY, strict=True), r'\{"city": ?"(Bonn|Ulm)", ?"days": ?[12]\}'),
        ({"response_format": {"type": "json_object", "schema": {"const": {}}}}, r"\{\}"),
        ({"structured_outputs": {"regex": "[xy]z"}}, "[xy]z"),
        ({"guided_json": {"const": [1]}}, r"\[1\]"),
        ({"guided_regex": "[0-9]{3}x"}, "[0-9]{3}x"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "a" [bc] "."'}, r"a[bc]\."),
        ({"grammar": 'root ::= "a" [bc] "."'}, r"a[bc]\."),
        ({"json_schema": '{"const": true}'}, "true"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_answer_is_bound_under_every_name_streamed_and_whole(
    rill: RunningServer, fields: dict[str, Any], pattern: str
) -> None:
    for asked in (STORY, {"messages": HELLO}):
        body = {**asked, **fields, "max_tokens": 40}
        whole = native(rill, body)
        assert (whole.status, whole.headers.get("x-penstock-ignored")) == (200, None)
        assert re.fullmatch(pattern, whole.json()["text"])
        events = events_of(native(rill, {**body, "stream": True}).body)
        assert text_of(events) == whole.json()["text"]
        assert events[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"guided_regex": "(zqxj"}, "invalid_grammar", None),
        ({"grammar": "root ::= zqxj"}, "invalid_grammar", None),
        (named({"not": {"const": "zqxj"}}, strict=True), "invalid_schema", None),
        ({"guided_regex": "a", "json_schema": {}, "grammar": "zqxj"}, "invalid_value", "grammar"),
        ({"skip_special_tokens": False}, "unsupported_field", "skip_special_tokens"),
        ({"prompt_logprobs": 1}, "unsupported_field", "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "invalid_value", "prompt_logprobs"),
        ({"suffix": "zqxj"}, "unsupported_field", "suffix"),
        ({"min_tokens": 5, "guided_choice": ["zqxj"]}, "unsupported_field", None),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"use_beam_search": True}, "unsupported_field", "use_beam_search"),
        ({"include_reasoning": False}, "unsupported_field", "include_reasoning"),
        ({"thinking_budget": 0}, "unsupported_field", "thinking_budget"),
        ({"tools": [{"type": "function"}]}, "unsupported_field", "tools"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_kept_is_refused_in_the_native_form(
    rill: RunningServer, fields: dict[str, Any], code: str, field: str | None
) -> None:
    answer = native(rill, {**STORY, **fields})
    problem = answer.json()
    assert (answer.status, problem["code"]) == (422, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert [each["field"] for each in problem.get("errors", [])] == ([field] if field else [])
    assert problem["detail"].endswith(".")
    assert b"zqxj" not in answer.body


def test_a_schema_that_is_relaxed_is_named(rill: RunningServer) -> None:
    answer = native(rill, {**STORY, **named({"const": 5, "not": {"const": 6}})})
    assert answer.json()["text"] == "5"
    assert answer.headers["x-penstock-ignored"] == "response_format (relaxed)"


def test_a_token_s_details_are_those_of_openai_s_routes(rill: RunningServer) -> None:
    whole = native(rill, {"messages": HELLO, **DETAILS}).json()
    chat = of_openai(rill, CHAT, {"messages": HELLO, **DETAILS})
    assert whole["text"] == chat["message"]["content"]
    ours, theirs = whole["logprobs"], chat["logprobs"]["content"]
    for one, other in zip(ours, theirs, strict=True):  # the cache changes the last digits
        assert one.pop("logprob") == pytest.approx(other.pop("logprob"), abs=0.05)
        assert len(one.pop("top_logprobs")) == len(other.pop("top_logprobs")) == 2
        assert one == other
    assert whole["token_ids"] == chat["token_ids"]
    assert whole["prompt_token_ids"] == chat["prompt_token_ids"]
    assert len(whole["token_ids"]) == whole["usage"]["completion_tokens"] == 16


def test_a_stream_s_details_are_those_of_the_whole_answer_and_resume(rill: RunningServer) -> None:
    whole = native(rill, {**STORY, **DETAILS}).json()
    stream = native(rill, {**STORY, **DETAILS, "stream": True, "resumable": True})
    *deltas, end = events_of(stream.body)
    assert [event["index"] for event in (*deltas, end)] == list(range(len(deltas) + 1))
    assert text_of(deltas) == whole["text"]
    shown = [each["bytes"] for event in deltas for each in event["logprobs"]]
    assert shown == [each["bytes"] for each in whole["logprobs"]]
    ids = [each for event in deltas for each in event["token_ids"]]
    assert [*ids, *end["token_ids"]] == whole["token_ids"]
    assert end["prompt_token_ids"] == whole["prompt_token_ids"]
    rest = resume(rill.port, stream.headers["x-stream-id"], "Last-Event-ID: 4")
    assert frames_of(rest.body) == frames_of(stream.body)[5:]


def test_only_what_was_asked_for_is_shown(rill: RunningServer) -> None:
    plain = {"text", "usage", "request_time", "finish_reason", "timings"}
    assert set(native(rill, STORY).json()) == plain
    assert set(native(rill, {**STORY, "logprobs": True}).json()) == plain | {"logprobs"}
    ids = plain | {"token_ids", "prompt_token_ids"}
    assert set(native(rill, {**STORY, "return_token_ids": True}).json()) == ids


def test_the_last_message_is_continued_and_the_cache_may_be_left_alone(
    rill: RunningServer,
) -> None:
    fields = {"return_token_ids": True, "cache_prompt": False, "max_tokens": 6}  # no near tie
    turns = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    for last in ({"continue_final_message": True}, {"add_generation_prompt": False}):
        ours = native(rill, {"messages": turns, **fields, **last})
        theirs = of_openai(rill, CHAT, {"messages": turns, **fields, **last})
        assert ours.json()["prompt_token_ids"] == theirs["prompt_token_ids"]
        assert ours.json()["text"] == (theirs["message"]["content"] or "")
        assert ours.json()["usage"]["cached_tokens"] == 0


def test_what_is_for_messages_alone_is_named_beside_a_prompt(rill: RunningServer) -> None:
    fields = {"chat_template_kwargs": {"a": 1}, "reasoning_effort": "none"}
    answer = native(rill, {**STORY, **fields, "continue_final_message": False})
    assert answer.headers["x-penstock-ignored"] == "chat_template_kwargs, reasoning_effort"
    assert answer.json()["text"] == native(rill, STORY).json()["text"]


def test_a_strict_server_refuses_what_has_no_effect_and_takes_what_has_one() -> None:
    strict = Notes(strict=True)
    with pytest.raises(InvalidFields) as refused:
        parse_generate({**STORY, "chat_template_kwargs": {"a": 1}}, strict)
    assert [each.field for each in refused.value.errors] == ["chat_template_kwargs"]
    assert parse_generate({**STORY, "guided_choice": ["yes"]}, strict).bond is not None


def test_reasoning_is_turned_off() -> None:
    with serve(engine_arg=[f"chat_template={REASONING}"]) as thinker:
        usual = native(thinker, {"messages": HELLO}).json()
        for off in (
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ):
            answer = native(thinker, {"messages": HELLO, **off})
            assert answer.headers.get("x-penstock-ignored") is None
            assert answer.json()["usage"]["prompt_tokens"] > usual["usage"]["prompt_tokens"]


def test_details_go_on_after_the_engine_s_death(dying: MortalServer) -> None:
    sent = generate(**STORY, **GREEDY, **DETAILS)
    dying.undisturbed(generate(**STORY, **{**GREEDY, "max_tokens": 1}))  # the prompt is cached now
    *expected, last = events_of(dying.undisturbed(sent).body)
    *deltas, end = events_of(dying.cut_off(sent).body)
    assert text_of(deltas) == text_of(expected)
    for name in ("token_ids", "prompt_token_ids"):
        assert end[name] == last[name]
    assert [each["token_ids"] for each in deltas] == [each["token_ids"] for each in expected]
    tokens = [[each["token"] for each in event["logprobs"]] for event in deltas]
    assert tokens == [[each["token"] for each in event["logprobs"]] for event in expected]


def test_a_value_that_was_shown_in_part_ends_when_the_engine_dies(dying: MortalServer) -> None:
    schema = named({"type": "string", "minLength": 200}, strict=True)
    body = {**STORY, **GREEDY, **schema, "max_tokens": 200}
    *deltas, end = events_of(dying.cut_off(generate(**body)).body)
    assert text_of(deltas).startswith('"')
    assert (end["finish_reason"], end["error"]["retry_safe"]) == ("error", True)


def test_the_client_asks_for_a_schema(rill: RunningServer) -> None:
    with Client(rill.url) as client:
        answer = client.generate("Once", max_tokens=40, **named(CITY))
        assert set(json.loads(answer.text)) == {"city", "days"}
        with client.stream("Once", max_tokens=40, temperature=0, **named(CITY)) as stream:
            assert set(json.loads("".join(stream))) == {"city", "days"}


def test_completions_and_the_native_api_fill_the_same_form(rill: RunningServer) -> None:
    native(rill, {**STORY, "max_tokens": 1})  # the prompt is cached for all of them
    for fields in (named(CITY), {"guided_choice": ["Bonn", "Ulm"]}, {"repeat_penalty": 3.0}):
        ours = native(rill, {**STORY, **fields, "max_tokens": 40}).json()["text"]
        body = {**STORY, **fields, "max_tokens": 40}
        assert of_openai(rill, COMPLETIONS, body)["text"] == ours
