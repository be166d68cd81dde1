"""Schemas, grammars and log probabilities over upstreams: each is asked as it can be asked."""

import json
from typing import Any

import pytest

from penstock.engine.remote.bonds import gbnf_of
from penstock.engine.remote.profile import Kind
from penstock.request import Grammar, Message, Sampling
from tests.engine.remote.cuts import after
from tests.support.fake_upstream import BOUND, END, LOGPROB, Exchange, FakeUpstream, event, fakes
from tests.support.recording import RecordingSink
from tests.support.remote import FIRST, ask, remote, text_from

SCHEMA = {"type": "object", "properties": {"lake": {"type": "integer"}}, "required": ["lake"]}
SCHEMA_TEXT = json.dumps(SCHEMA)
ANY = '{"type": "object"}'
GBNF = 'root ::= "{" [a-z0-9":]+ "}"'
LARK = 'start: "{" /[a-z0-9":]+/ "}"'
LARK_LIKE_GBNF = '%llguidance {}\nstart: "::="'
REGEX = r'\{"lake":[0-9]\}'
TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SCHEMA}}
CHAT: dict[str, Any] = {"prompt": None, "messages": (Message("user", "one two three"),)}
WHOLE = "".join(BOUND)
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}])


def schema_format(*, strict: bool) -> dict[str, Any]:
    schema = {"name": "answer", "schema": SCHEMA, "strict": strict}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


SCHEMA_BOND: dict[str, Any] = {"json_schema": SCHEMA_TEXT}
LAX_BOND: dict[str, Any] = {"json_schema": SCHEMA_TEXT, "lax_schema": True}
ANY_BOND: dict[str, Any] = {"json_schema": ANY}


def grammar(kind: str, text: str) -> dict[str, Any]:
    return {"grammar": Grammar(kind, text)}  # type: ignore[arg-type] # one of its kinds


CHOICE = grammar("choice", json.dumps([WHOLE, 'no "é"']))
EBNF_OF_CHOICE = r'root ::= "{\"lake\":5}" | "no \"é\""'


TAG_BOND = grammar("structural_tag", json.dumps(TAG))
FORMS: dict[Kind, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "vllm": [
        (SCHEMA_BOND, {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}),
        (grammar("regex", REGEX), {"structured_outputs": {"regex": REGEX}}),
        (grammar("grammar", LARK), {"structured_outputs": {"grammar": LARK}}),
        (CHOICE, {"structured_outputs": {"choice": [WHOLE, 'no "é"']}}),
        (TAG_BOND, {"structured_outputs": {"structural_tag": json.dumps(TAG)}}),
    ],
    "sglang": [
        (SCHEMA_BOND, schema_format(strict=True)),
        (ANY_BOND, {"response_format": {"type": "json_object"}}),
        (grammar("regex", REGEX), {"regex": REGEX}),
        (grammar("grammar", GBNF), {"ebnf": GBNF}),
        (CHOICE, {"ebnf": EBNF_OF_CHOICE}),
        (TAG_BOND, {"response_format": TAG}),
    ],
}


@pytest.mark.parametrize("kind", FORMS)
async def test_a_server_is_asked_in_its_own_form_for_prompts_and_chats(kind: Kind) -> None:
    one = FakeUpstream(kind)
    async with fakes(one), remote(one) as engine:
        for bond, asked in FORMS[kind]:
            for prompt in ({}, CHAT):
                sink = await ask(engine, "a", 20, **bond, **prompt).end()
                assert (sink.failure, sink.text(), sink.reason) == (None, WHOLE, "stop")
                assert asked.items() <= one.asked[-1].body.items()


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_any_server_is_asked_for_a_schema_as_openai_is(kind: Kind) -> None:
    one = FakeUpstream(kind)
    async with fakes(one), remote(one) as engine:
        for bond, asked in (
            (SCHEMA_BOND, schema_format(strict=True)),
            (LAX_BOND, schema_format(strict=False)),
            (ANY_BOND, {"response_format": {"type": "json_object"}}),
        ):
            sink = await ask(engine, f"{asked}", 20, **bond, **CHAT).end()
            assert (sink.failure, sink.text()) == (None, WHOLE)
            assert asked.items() <= one.asked[-1].body.items()


REFUSED: dict[Kind, list[tuple[dict[str, Any], str]]] = {
    "openai": [
        (SCHEMA_BOND, "unsupported_field"),  # OpenAI binds only chats
        ({"top_logprobs": 6}, "unsupported_field"),
        ({**CHAT, **CHOICE}, "unsupported_field"),
    ],
    "ollama": [
        (SCHEMA_BOND, "unsupported_field"),
        ({**CHAT, **grammar("regex", REGEX)}, "unsupported_field"),
        ({**CHAT, "tools": TOOLS, "tool_call_required": True}, "unsupported_field"),
        ({**CHAT, "tools": TOOLS, **SCHEMA_BOND}, "unsupported_field"),
    ],
    "sglang": [
        ({**CHAT, "tools": TOOLS, **SCHEMA_BOND}, "unsupported_field"),
        (grammar("grammar", LARK), "unsupported_field"),
        (grammar("grammar", LARK_LIKE_GBNF), "unsupported_field"),
    ],
    "vllm": [
        ({"json_schema": '{"type": 5}'}, "invalid_schema"),
        (grammar("regex", "((secret"), "invalid_grammar"),
        (grammar("structural_tag", "[secret"), "invalid_grammar"),
    ],
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_a_server_cannot_do_is_refused_before_it_is_asked(kind: Kind) -> None:
    one = FakeUpstream(kind)
    async with fakes(one), remote(one) as engine:
        assert [each.kind for each in engine.info.upstreams] == [kind]
        for fields, code in REFUSED[kind]:
            sink = await ask(engine, "a", 20, **fields).end()
            assert sink.calls == ["fail"]
            assert sink.failure is not None
            assert sink.failure[0] == code
            assert "secret" not in sink.failure[1]
    assert one.asked == []


async def test_a_model_has_a_feature_that_all_of_its_upstreams_have() -> None:
    sglang, openai = FakeUpstream("sglang"), FakeUpstream("openai")
    async with fakes(sglang, openai):
        async with remote(sglang) as engine:
            assert {"json_schema", "grammar", "top_logprobs"} <= set(engine.info.supports)
        async with remote(sglang, openai) as engine:
            assert {"json_schema", "top_logprobs"} <= set(engine.info.supports)
            assert "grammar" not in engine.info.supports


async def test_only_an_upstream_that_can_bind_an_answer_gets_it() -> None:
    able, other = FakeUpstream("sglang"), FakeUpstream("openai")
    other.weight = FIRST
    async with fakes(able, other), remote(able, other) as engine:
        free = await ask(engine, "free", 3).end()
        for n in range(3):
            sink = await ask(engine, f"{n}", 20, prompt=f"w{n} two three", **SCHEMA_BOND).end()
            assert sink.text() == WHOLE
    assert free.text() == text_from(3, 3)
    assert (len(able.asked), len(other.asked)) == (3, 1)


async def test_what_cannot_be_bound_is_left_out_of_a_lax_schema_and_noted() -> None:
    one = FakeUpstream()
    schema = json.dumps({**SCHEMA, "contains": {"type": "null"}})
    async with fakes(one), remote(one) as engine:
        sink = await ask(engine, "a", 20, json_schema=schema, lax_schema=True).end()
    assert sink.notes == ("response_format (relaxed)",)
    assert one.asked[0].body["structured_outputs"]["json"] == SCHEMA


async def test_an_answer_that_the_server_did_not_bind_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = FakeUpstream()
    one.binds = False

    async def end(exchange: Exchange) -> None:
        await exchange.tokens(2)
        ending = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
        await exchange.send(event(ending), END)

    async with fakes(one), remote(one) as engine:
        for bond in (SCHEMA_BOND, grammar("regex", REGEX), grammar("grammar", GBNF)):
            one.faults = [end]
            ended = await ask(engine, "ended", 5, **bond).end()
            limited = await ask(engine, "limited", 5, **bond).end()
            assert ended.failure is not None
            assert ended.failure[0] == "schema_lost"
            assert (limited.failure, limited.reason) == (None, "length")
    assert caplog.text.count(f"the upstream {one.url} did not keep to") == 3


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_bound_answer_begins_again_before_its_text_and_never_goes_on_after_it(
    kind: Kind,
) -> None:
    one, two = FakeUpstream(kind), FakeUpstream(kind)
    async with fakes(one, two), remote(one, two) as engine:
        for fields in ({}, CHAT):
            one.asked, two.asked = [], []
            one.faults = two.faults = [after(0, "reset")]
            before = await ask(engine, "before", 20, **fields, **SCHEMA_BOND).end()
            assert (before.failure, before.text()) == (None, WHOLE)
            assert len(one.asked + two.asked) == 2
            one.faults = two.faults = [after(2, "reset")]
            within = await ask(engine, "within", 20, **fields, **SCHEMA_BOND).end()
            assert within.text() == "".join(BOUND[:2])
            assert within.failure is not None
            assert within.failure[0] == "engine_died"
            assert len(one.asked + two.asked) == 3


def check_logprobs(sink: RecordingSink, num_top: int) -> None:
    """Check that each token of a text has its log probability, and `num_top` likely tokens."""
    assert b"".join(each.token for each in sink.logprobs).decode() == sink.text()
    for each in sink.logprobs:
        assert each.logprob == LOGPROB
        ranked = ((each.token, LOGPROB), (b"<1>", LOGPROB - 1), (b"<2>", LOGPROB - 2))
        assert each.top == ranked[:num_top]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_log_probabilities_come_with_every_token_also_after_a_failure(kind: Kind) -> None:
    one, two = FakeUpstream(kind), FakeUpstream(kind)
    async with fakes(one, two), remote(one, two) as engine:
        for fields in ({"prompt": "one two three "}, CHAT):
            for num_top in (0, 2):
                one.faults = two.faults = [after(4, "reset")]
                sink = await ask(engine, "a", 10, top_logprobs=num_top, **fields).end()
                assert (sink.failure, sink.text()) == (None, text_from(3, 10))
                assert (sink.completion_tokens, len(sink.logprobs)) == (10, 10)
                check_logprobs(sink, num_top)
        asked = len(one.asked + two.asked)
        plain = await ask(engine, "plain", 10).end()
    assert plain.logprobs == []
    assert sum("logprobs" in each.body for each in one.asked + two.asked) == asked


async def test_a_server_that_reports_no_log_probabilities_is_not_blamed() -> None:
    one = FakeUpstream("openai")
    one.reports_logprobs = False
    async with fakes(one), remote(one) as engine:
        sink = await ask(engine, "a", 10, top_logprobs=2, **CHAT).end()
        assert sink.failure is not None
        assert sink.failure[0] == "unsupported_field"
        assert sink.text() == ""
        free = await ask(engine, "b", 10, **CHAT).end()
    assert (free.failure, free.text()) == (None, text_from(3, 10))
    assert len(one.asked) == 2


async def test_the_fields_of_servers_with_ids_reach_their_chats_with_tools() -> None:
    one = FakeUpstream()
    sampling = Sampling(temperature=0.5, top_k=7, min_p=0.1, repetition_penalty=1.5)
    fields = {**CHAT, "tools": TOOLS, "sampling": sampling, "ignore_eos": True, "min_tokens": 4}
    async with fakes(one), remote(one) as engine:
        assert (await ask(engine, "a", 10, **fields).end()).failure is None
    asked = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "ignore_eos": True}
    assert {**asked, "min_tokens": 4}.items() <= one.asked[0].body.items()


def test_no_grammar_in_larks_form_reaches_llamacpps_server() -> None:
    # It dies of one that begins with %llguidance, if it was built without llguidance.
    for text in (LARK, LARK_LIKE_GBNF, f"# ::=\n{LARK}"):
        assert gbnf_of(Grammar("grammar", text)) is None
    assert gbnf_of(Grammar("grammar", GBNF)) == GBNF
