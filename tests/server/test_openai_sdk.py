"""OpenAI's API with OpenAI's own client, over the built-in model and the mock engine."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from tests.support.calling import client_of, counts_of
from tests.support.servers import RunningServer, serve

HELLO: Any = [{"role": "user", "content": "Hello"}]
STORY = "Once upon a time"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"enum": [7, 8]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema(value: dict[str, Any], **fields: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": value, **fields}}


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0, engine_arg=["length=30", "context_length=200"]) as s:
        yield s


@pytest.fixture(params=["rill", "mock"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    running: RunningServer = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def of_rill(rill: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(rill) as client:
        yield client


@pytest.fixture
def of_mock(mock: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(mock) as client:
        yield client


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def name_of(client: openai.OpenAI) -> str:
    (model,) = client.models.list()
    return model.id


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


def text_of_completion(chunks: list[Completion], index: int = 0) -> str:
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)


def ends_of(chunks: list[Any]) -> dict[int, list[str]]:
    """Return the finish reasons of each choice; each should have exactly one."""
    ends: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                ends.setdefault(choice.index, []).append(choice.finish_reason)
    return ends


def test_the_model_is_listed_and_found(client: openai.OpenAI) -> None:
    model = client.models.retrieve(name_of(client))
    assert (model.object, model.owned_by) == ("model", "penstock")
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-none")
    assert refused.value.code == "model_not_found"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="http://example.org", messages=HELLO)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_chat_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": name_of(client),
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 25,
        "user": "somebody",
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(
            **asked,
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
        )
    )
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert text_of(chunks) == whole.choices[0].message.content
    assert ends_of(chunks) == {0: [whole.choices[0].finish_reason]}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert counts_of(chunks[-1].usage) == counts_of(whole.usage)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_completion_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    # Token 18 would be a near tie.
    asked: Any = {"model": name_of(client), "prompt": STORY, "temperature": 0, "max_tokens": 16}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert whole.choices[0].text == text_of_completion(chunks) != ""
    assert ends_of(chunks) == {0: ["length"]}
    assert whole.choices[0].finish_reason == "length"
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_async_client_reads_many_at_once(async_client: openai.AsyncOpenAI) -> None:
    (model,) = (await async_client.models.list()).data

    async def one(number: int) -> list[ChatCompletionChunk]:
        stream = await async_client.chat.completions.create(
            model=model.id, messages=HELLO, max_tokens=5 + number, temperature=0, stream=True
        )
        return [chunk async for chunk in stream]

    answers = await asyncio.gather(*(one(number) for number in range(16)))
    texts = sorted((text_of(chunks) for chunks in answers), key=len)
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(texts))
    assert all(len(ends_of(chunks)[0]) == 1 for chunks in answers)


def test_the_default_length_is_openai_s(of_mock: openai.OpenAI) -> None:
    completion = of_mock.completions.create(model="mock", prompt="a")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    chat = of_mock.chat.completions.create(model="mock", messages=HELLO)
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 30  # its whole text
    assert chat.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_has_two_names(client: openai.OpenAI, name: str) -> None:
    asked: Any = {"model": name_of(client), "messages": HELLO, name: 3, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_stop_strings_end_the_answer_before_them(client: openai.OpenAI) -> None:
    asked: Any = {"model": name_of(client), "prompt": STORY, "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**asked).choices[0].text
    for stop in (whole[6:9], ["\x00", whole[10:11]]):
        last = stop[-1] if isinstance(stop, list) else stop
        chunks = list(client.completions.create(**asked, stop=stop, stream=True))
        assert text_of_completion(chunks) == whole[: whole.index(last)]
        assert ends_of(chunks) == {0: ["stop"]}


def test_several_choices_are_streamed_together_and_each_ends_once(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": name_of(client),
        "messages": HELLO,
        "max_tokens": 10,
        "n": 3,
        "seed": 5,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {n: len(ends) for n, ends in ends_of(chunks).items()} == {0: 1, 1: 1, 2: 1}
    for choice in whole.choices:
        assert text_of(chunks, choice.index) == choice.message.content
        assert ends_of(chunks)[choice.index] == [choice.finish_reason]
    roles = [c.index for chunk in chunks for c in chunk.choices if c.delta.role == "assistant"]
    assert sorted(roles) == [0, 1, 2]
    alone = client.chat.completions.create(**{**asked, "n": 1})
    assert whole.usage is not None
    assert alone.usage is not None
    assert chunks[-1].usage is not None
    assert counts_of(chunks[-1].usage) == counts_of(whole.usage)
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens


def test_a_seed_gives_the_same_choices_and_each_choice_its_own(of_rill: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 16}
    # No draw of these seeds falls on the border of two tokens, whatever else is in the batch.
    three = [c.text for c in of_rill.completions.create(**asked, seed=20, n=3).choices]
    again = [c.text for c in of_rill.completions.create(**asked, seed=20, n=3).choices]
    second = of_rill.completions.create(**asked, seed=21).choices[0].text
    assert three == again
    assert len(set(three)) == 3
    assert three[1] == second


def test_temperature_and_top_p_narrow_the_choice(of_rill: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 12}
    greedy = of_rill.completions.create(**asked, temperature=0).choices[0].text
    for narrow in ({"temperature": 2, "top_p": 0.0001}, {"extra_body": {"top_k": 1}}):
        fields: Any = narrow
        answers = [of_rill.completions.create(**asked, seed=n, **fields) for n in range(3)]
        assert {answer.choices[0].text for answer in answers} == {greedy}
    wide = [of_rill.completions.create(**asked, seed=n) for n in range(3)]
    assert len({answer.choices[0].text for answer in wide}) == 3


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    model = name_of(client)
    asked: Any = {"model": model, "max_tokens": 6, "temperature": 0}
    prompts = ["The lake", STORY]
    alone = [client.completions.create(prompt=each, **asked) for each in prompts]
    both = client.completions.create(prompt=prompts, n=2, echo=True, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    expected = [
        each + whole.choices[0].text
        for each, whole in zip(prompts, alone, strict=True)
        for _ in range(2)
    ]
    assert [choice.text for choice in both.choices] == expected
    usages = [whole.usage for whole in alone]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(usage.prompt_tokens for usage in usages if usage)
    assert both.usage.completion_tokens == 4 * 6


def test_the_echo_comes_first_and_once(client: openai.OpenAI) -> None:
    asked: Any = {"model": name_of(client), "prompt": STORY, "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**asked).choices[0].text
    chunks = list(client.completions.create(**asked, echo=True, stream=True))
    assert text_of_completion(chunks) == STORY + plain


def test_a_prompt_may_be_the_ids_of_tokens(of_rill: openai.OpenAI) -> None:
    answer = of_rill.completions.create(model="rill", prompt=[263, 472], max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    both = of_rill.completions.create(model="rill", prompt=[[263, 472], [263]], max_tokens=2)
    assert len(both.choices) == 2
    for ids in ([263, 2048], [-1]):
        with pytest.raises(openai.BadRequestError) as refused:
            of_rill.completions.create(model="rill", prompt=ids)
        assert refused.value.param == "prompt"


def test_usage_comes_with_every_chunk_where_it_is_asked_for(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model=name_of(client), messages=HELLO, max_tokens=8, stream=True, stream_options=options
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == counts[-2]
    assert len({chunk.usage.prompt_tokens for chunk in chunks if chunk.usage}) == 1


def test_logprobs_of_a_chat(of_rill: openai.OpenAI) -> None:
    asked: Any = {
        "model": "rill",
        "messages": HELLO,
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = of_rill.chat.completions.create(**asked)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content) == whole.choices[0].message.content
    for each in logprobs.content:
        assert each.bytes is not None
        assert bytes(each.bytes).decode() == each.token
        assert len(each.top_logprobs) == 3
        # A greedy token is the likeliest.
        assert each.top_logprobs[0].logprob == each.logprob <= 0
    chunks = list(of_rill.chat.completions.create(**asked, stream=True))
    streamed = [
        each
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for each in choice.logprobs.content or ()
    ]
    assert [each.token for each in streamed] == [each.token for each in logprobs.content]
    for chunk in chunks[:-1]:
        choice = chunk.choices[0]
        assert choice.logprobs is not None
        text = "".join(each.token for each in choice.logprobs.content or ())
        assert text == choice.delta.content


def test_logprobs_of_a_completion(of_rill: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 12, "temperature": 0}
    answer = of_rill.completions.create(**asked, logprobs=2).choices[0]
    logprobs = answer.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == answer.text
    for token, offset, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True
    ):
        assert answer.text[offset:].startswith(token)
        assert token in top
        assert len(top) == 2
    none_likely = of_rill.completions.create(**asked, logprobs=0).choices[0].logprobs
    assert none_likely is not None
    assert none_likely.tokens == logprobs.tokens
    assert {len(top) for top in none_likely.top_logprobs or ()} == {1}  # the token itself
    streamed = list(of_rill.completions.create(**asked, logprobs=2, stream=True))
    offsets = [
        offset
        for chunk in streamed
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset or ()
    ]
    assert offsets == logprobs.text_offset


def test_logprobs_end_where_a_stop_string_cuts_the_text(of_rill: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 12, "temperature": 0}
    whole = of_rill.completions.create(**asked).choices[0].text
    answer = of_rill.completions.create(**asked, logprobs=0, stop=whole[7:9]).choices[0]
    assert answer.text == whole[:7]
    assert answer.logprobs is not None
    tokens = answer.logprobs.tokens or []
    assert "".join(tokens).startswith(answer.text)
    assert len("".join(tokens[:-1])) < len(answer.text)


def test_text_held_back_for_a_stop_string_does_not_shift_the_offsets(
    of_rill: openai.OpenAI,
) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 12, "temperature": 0}
    plain = of_rill.completions.create(**asked, logprobs=0).choices[0].logprobs
    assert plain is not None
    # Each of these begins inside a token and never ends.
    stops = [token[-2:] + "\x01" for token in plain.tokens or () if len(token) > 2][:4]
    for number in (1, 2):
        more: Any = {**asked, "n": number, "logprobs": 0, "stop": stops}
        whole = of_rill.completions.create(**more).choices
        for choice in whole:
            assert choice.logprobs is not None
            assert choice.logprobs.tokens == plain.tokens
            assert choice.logprobs.text_offset == plain.text_offset
        streamed: dict[int, list[int]] = {}
        for chunk in of_rill.completions.create(**more, stream=True):
            choice = chunk.choices[0]
            if choice.logprobs is not None:
                streamed.setdefault(choice.index, []).extend(choice.logprobs.text_offset or ())
        assert len(streamed) == len(whole)
        assert all(offsets == plain.text_offset for offsets in streamed.values())


def test_a_bias_makes_a_token_certain_or_impossible(of_rill: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "prompt": STORY, "max_tokens": 6, "temperature": 0}
    forced = of_rill.completions.create(**asked, logit_bias={"466": 100}).choices[0].text
    assert forced == " time" * 6
    plain = of_rill.completions.create(**asked, logprobs=0).choices[0]
    banned = of_rill.completions.create(**asked, logit_bias={"16": -100}).choices[0].text
    assert plain.text.startswith(",")
    assert "," not in banned


def test_penalties_drive_the_model_from_what_it_has_said_and_rewards_to_it(
    of_rill: openai.OpenAI,
) -> None:
    def times(**penalty: Any) -> int:
        asked: Any = {"prompt": "The king", "max_tokens": 40, "temperature": 0, **penalty}
        answer = of_rill.completions.create(model="rill", logit_bias={"466": 10}, **asked)
        text: str = answer.choices[0].text
        return text.count(" time")

    assert times(presence_penalty=2) < times() < times(presence_penalty=-2)
    assert times(frequency_penalty=2) < times() < times(frequency_penalty=-2)
    # Only the frequency penalty grows with each repetition.
    assert times(presence_penalty=-2) < times(frequency_penalty=-2)


def test_an_answer_keeps_to_a_schema(of_rill: openai.OpenAI) -> None:
    for seed in range(4):
        answer = of_rill.chat.completions.create(
            model="rill",
            messages=HELLO,
            seed=seed,
            max_tokens=60,
            response_format=schema(PERSON, strict=True, description="Somebody"),
        ).choices[0]
        assert answer.finish_reason == "stop"
        value = json.loads(answer.message.content or "")
        assert set(value) == {"name", "age"}
        assert len(value["name"]) <= 12
        assert value["age"] in (7, 8)


def test_any_json_object_may_be_asked_for_and_plain_text(of_rill: openai.OpenAI) -> None:
    answers = [
        of_rill.chat.completions.create(
            model="rill",
            messages=HELLO,
            seed=seed,
            max_completion_tokens=200,
            logit_bias={"97": 8},  # prefer the token "}", so that the small model comes to an end
            response_format={"type": "json_object"},
        ).choices[0]
        for seed in range(4)
    ]
    assert all((answer.message.content or "").startswith("{") for answer in answers)
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(answer.message.content or ""), dict) for answer in ended)
    plain = of_rill.chat.completions.create(
        model="rill", messages=HELLO, seed=1, max_tokens=5, response_format={"type": "text"}
    )
    assert not (plain.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    "value",
    [
        {"type": 5},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "(?<=x)*"},
        {"type": "string", "pattern": "^" + "(" * 60_000 + ")" * 60_000 + "$"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "#"},
        {"$ref": "#/definitions/nowhere"},
        {"not": {"type": "string"}},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"enum": [f"{n:040}" for n in range(2_000)]},  # 88 KB
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(
    of_rill: openai.OpenAI, value: dict[str, Any]
) -> None:
    """llama.cpp itself would ignore the schema and answer with free text."""
    response_format = schema(value, strict=True)
    with pytest.raises(openai.BadRequestError) as refused:
        of_rill.chat.completions.create(
            model="rill",
            messages=HELLO,
            response_format=response_format,
            max_tokens=5,
            stream=True,
        )
    assert refused.value.code == "invalid_schema"
    assert (refused.value.param or "").startswith("response_format")
    assert len(refused.value.message) < 600
    assert "127.0.0.1" not in refused.value.message


def test_costly_patterns_cost_little(of_rill: openai.OpenAI) -> None:
    for pattern in ("^(a+)+$", "^((x{1,1000}){1,1000})$"):
        answer = of_rill.chat.completions.create(
            model="rill",
            messages=HELLO,
            max_tokens=20,
            response_format=schema({"type": "string", "pattern": pattern}),
            timeout=30,
        )
        content = answer.choices[0].message.content or ""
        assert set(content) <= set('"ax')


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    client: openai.OpenAI,
) -> None:
    model = name_of(client)
    context = client.models.retrieve(model).to_dict()["context_length"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt="word " * 1500, stream=True)
    assert refused.value.code == "context_length_exceeded"
    sentence = f"This model's maximum context length is {context} tokens. However, your prompt has"
    assert sentence in refused.value.message


def test_a_strict_server_refuses_a_limit_beyond_the_context_with_both_numbers() -> None:
    with serve("--strict", engine="mock") as server, client_of(server) as client:
        context = client.models.retrieve("mock").to_dict()["context_length"]
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="mock", messages=HELLO, max_tokens=100_000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "max_tokens")
    assert "100000" in refused.value.message
    assert f"maximum context length is {context} tokens" in refused.value.message


def test_an_answer_without_a_limit_ends_with_the_context(of_mock: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "word " * 190}]
    answer = of_mock.chat.completions.create(model="mock", messages=messages)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 200


def test_a_conversation_goes_on_with_what_was_answered(client: openai.OpenAI) -> None:
    """Clients send the message back as they got it, with its empty fields."""
    model = name_of(client)
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=5)
    for back in (answer.choices[0].message, answer.choices[0].message.model_dump()):
        messages: Any = [
            {"role": "developer", "content": "Be brief."},
            *HELLO,
            back,
            {
                "role": "user",
                "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}],
            },
        ]
        again = client.chat.completions.create(model=model, messages=messages, max_tokens=5)
        assert again.choices[0].message.content


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": -0.5}),
        ("logit_bias", {"logit_bias": {"5": 1}}),
        ("logprobs", {"logprobs": True}),
        ("response_format", {"response_format": {"type": "json_object"}}),
    ],
    ids=str,
)
def test_fields_that_the_engine_does_not_support_are_refused_by_name(
    of_mock: openai.OpenAI, field: str, fields: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        of_mock.chat.completions.create(model="mock", messages=HELLO, **fields)
    assert (refused.value.code, refused.value.param) == ("unsupported_field", field)
    assert "mock" in refused.value.message


def test_unsupported_fields_with_neutral_values_are_accepted(of_mock: openai.OpenAI) -> None:
    asked: Any = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": None,  # some clients send it
        "store": False,
        "modalities": ["text"],
        "service_tier": "auto",
        "metadata": {"a": "b"},
        "safety_identifier": "c",
        "prompt_cache_key": "d",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {},
    }
    answer = of_mock.chat.completions.create(model="mock", messages=HELLO, **asked)
    assert answer.choices[0].finish_reason == "stop"


def test_the_streaming_helper_of_the_client_reads_a_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=name_of(client), messages=HELLO, max_tokens=150, seed=1
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content


def test_the_streaming_helper_reads_choices_that_begin_in_any_order(of_rill: openai.OpenAI) -> None:
    """Regression: choices began in the order of their first tokens. The SDK takes that order for
    their indexes and raised IndexError. Now all choices begin before any has a token."""
    for seed in range(4):
        with of_rill.chat.completions.stream(
            model="rill", messages=HELLO, n=4, seed=seed, stop=["."]
        ) as stream:
            choices = stream.get_final_completion().choices
        assert [choice.index for choice in choices] == [0, 1, 2, 3]
        assert all(choice.message.content for choice in choices)


def test_a_failure_within_the_stream_is_an_error_and_not_an_end() -> None:
    with (
        serve(engine="mock", mock_interval=0, engine_arg=["fail_at=3"]) as server,
        client_of(server) as client,
    ):
        chunks: list[Completion] = []
        with pytest.raises(openai.APIError) as failed:
            chunks.extend(client.completions.create(model="mock", prompt="a", stream=True))
        assert text_of_completion(chunks) == " Water comes down"
        assert ends_of(chunks) == {}
        assert failed.value.code == "mock_failure"
        with pytest.raises(openai.InternalServerError) as failed:
            client.completions.create(model="mock", prompt="a")
        assert failed.value.code == "mock_failure"
        assert failed.value.type == "server_error"
