"""A real model's answers with OpenAI's own client: text, usage, log probabilities, schemas."""

import asyncio
import json
import math
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest

from tests.support.calling import counts_of, create, ends_of, joined, usage_of
from tests.support.openai_wire import chunks_of
from tests.support.servers import RunningServer
from tests.support.smollm2 import Reference


def asked(text: str, **fields: Any) -> dict[str, Any]:
    """Return the fields of a chat with the most likely answer of at most 24 tokens."""
    fields = {"temperature": 0, "max_tokens": 24, **fields}
    return {"messages": [{"role": "user", "content": text}], **fields}


FRANCE = asked("What is the capital of France? Answer in one sentence.")
EMOJI = asked("Repeat these emoji: 🐶 🐱 🦊 👩‍👩‍👧‍👦")
TEXTS = [
    "Hello",
    "  two  spaces\tand\n\n\nlines  ",
    "0123456789 and 3.14159, 1,000,000",
    "don't, we'll, I'M",
    "déjà vu, Привет, 日本語, العربية, हिन्दी",
    "🐶👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u00a0 \u200b",
    "def f(x):\n    return {'a': [x**2 for _ in range(3)]}\n",
    "a" * 300,
]


@pytest.mark.parametrize("fields", [FRANCE, EMOJI], ids=["words", "emoji"])
def test_a_chat_is_the_same_streamed_and_whole(
    server: RunningServer, fields: dict[str, Any]
) -> None:
    whole = create(server, **fields)
    chunks = create(server, **fields, stream=True, stream_options={"include_usage": True})
    assert whole.choices[0].message.content == joined(chunks)["content"] != ""
    assert ends_of(chunks) == [(0, whole.choices[0].finish_reason)]
    assert usage_of(chunks) == counts_of(whole.usage)


def test_an_emoji_comes_in_one_piece(server: RunningServer) -> None:
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in create(server, **EMOJI, stream=True)
    ]
    text = "".join(pieces)
    assert any(ord(character) > 0xFFFF for character in text), text
    assert "\ufffd" not in text
    assert len([piece for piece in pieces if piece]) < 24  # an emoji is several tokens


def test_the_answer_ends_exactly_before_a_stop_string(server: RunningServer) -> None:
    for fields in (FRANCE, EMOJI):
        text = create(server, **fields).choices[0].message.content
        for stop in (text[3:4], text[5:9]):
            for answer in (
                create(server, **fields, stop=[stop]).choices[0].message.content,
                joined(create(server, **fields, stop=[stop], stream=True))["content"],
            ):
                assert answer == text[: text.index(stop)]


def test_a_prompt_s_usage_is_the_number_of_its_tokens(
    server: RunningServer, reference: Reference
) -> None:
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate([*TEXTS, "Hello"])
    ]
    for messages in (turns, [{"role": "system", "content": "\n".join(TEXTS)}, turns[0]]):
        answer = create(server, messages=messages, max_tokens=1)
        assert answer.usage.prompt_tokens == len(reference.ids_of_chat(messages))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for text in TEXTS:
            fields: Any = {"model": "smollm2", "max_tokens": 1, "temperature": 0}
            as_text = client.completions.create(prompt=text, **fields)
            as_ids = client.completions.create(prompt=reference.ids_of(text), **fields)
            assert as_text.choices[0].text == as_ids.choices[0].text
            assert counts_of(as_text.usage) == counts_of(as_ids.usage)


@pytest.mark.parametrize("fields", [FRANCE, EMOJI], ids=["words", "emoji"])
def test_log_probabilities_belong_to_the_answer_s_tokens(
    server: RunningServer, fields: dict[str, Any]
) -> None:
    answer = create(server, **fields, logprobs=True, top_logprobs=4)
    (choice,) = answer.choices
    entries = choice.logprobs.content
    assert b"".join(bytes(each.bytes) for each in entries).decode() == choice.message.content
    for each in entries:
        top = [likely.logprob for likely in each.top_logprobs]
        assert top == sorted(top, reverse=True)
        assert top[0] == each.logprob  # the temperature is 0
        assert 0 < sum(map(math.exp, top)) < 1.001
    if fields is FRANCE:  # each of its tokens has text
        ending = choice.finish_reason == "stop"
        assert len(entries) == answer.usage.completion_tokens - ending


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 3},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
# The model's own person has an age of 20 or 25, which are equally likely.
ANNA = 'Repeat this: {"name":"Anna","age":34,"pets":["cat","dog"]}'
VERBATIM = {"const": ["日本語 🌊", "e\u0301", {"ключ": 'a "b" \\ c'}]}


@pytest.mark.parametrize("schema", [PERSON, VERBATIM], ids=["person", "verbatim"])
def test_an_answer_follows_its_schema(server: RunningServer, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    fields = asked(ANNA, max_tokens=120, response_format=form)
    whole = create(server, **fields)
    assert whole.choices[0].finish_reason == "stop"
    assert jsonschema_rs.is_valid(schema, json.loads(whole.choices[0].message.content))
    assert joined(create(server, **fields, stream=True))["content"] == (
        whole.choices[0].message.content
    )


async def test_eight_streams_side_by_side_are_each_complete(
    server: RunningServer, reference: Reference
) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:

        async def answer(number: int) -> None:
            fields = asked(f"Write {number} words about the sea.", max_tokens=24)
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
            fields |= {"logprobs": True}
            response = await http.post("/v1/chat/completions", json=fields)
            *deltas, last = chunks_of(response.content)
            choices = [delta["choices"][0] for delta in deltas]
            said = "".join(choice["delta"].get("content", "") for choice in choices)
            entries = [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]]
            assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == said != ""
            assert last["usage"]["prompt_tokens"] == len(reference.ids_of_chat(fields["messages"]))
            assert last["usage"]["completion_tokens"] <= 24
            assert choices[-1]["finish_reason"] in ("stop", "length")

        await asyncio.gather(*map(answer, range(8)))
