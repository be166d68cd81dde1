"""vLLM passes the conformance test with both models; then tests of vLLM's own behaviour.

Each start takes half a minute, so the tests share their engines and the last tests end them: the
engine with the OPT model is killed and comes back, the other engine is stopped.
"""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tokenizers import Tokenizer

from penstock.request import Grammar, Message, Sampling
from tests.engine import test_conformance as conformance
from tests.engine.test_conformance import (  # noqa: F401 - collected here
    ask,
    submit,
    test_a_biased_token_is_certain_or_impossible,
    test_a_cancel_that_comes_with_the_request_leaves_nothing,
    test_a_continuation_says_what_the_uninterrupted_request_would_have_said,
    test_a_continuation_that_fills_the_context_is_at_its_end,
    test_a_grammar_that_cannot_be_enforced_is_refused,
    test_a_prompt_longer_than_the_context_is_refused_before_a_slot,
    test_a_prompt_that_leaves_too_little_room_is_refused_where_the_answer_must_fit,
    test_a_repetition_penalty_counts_the_prompt_and_the_answer_also_when_continued,
    test_a_request_is_accepted_started_streamed_and_finished_once,
    test_a_stop_token_ends_the_answer_and_is_counted_but_not_shown,
    test_a_thousand_may_wait,
    test_an_answer_ends_with_the_context,
    test_an_answer_under_a_grammar_belongs_to_its_language,
    test_an_answer_under_a_schema_is_json_that_keeps_to_it,
    test_an_answer_without_the_cache_is_the_same,
    test_an_empty_prompt_is_valid,
    test_cancel_frees_the_slot_at_once,
    test_cancel_ignores_unknown_and_ended_requests,
    test_cancel_leaves_the_queue,
    test_deltas_are_pushed_while_the_engine_goes_on,
    test_greedy_text_is_the_same_each_time_and_in_company,
    test_log_probabilities_come_with_the_tokens_where_they_are_asked_for,
    test_messages_are_rendered_and_answered,
    test_min_p_leaves_only_the_likely_tokens,
    test_nothing_ends_an_answer_before_its_least_length_also_when_continued,
    test_requests_beyond_the_slots_wait_in_order,
    test_several_run_at_once,
    test_the_answer_goes_on_after_its_end_if_the_end_is_ignored,
    test_the_last_message_is_continued_or_left_without_an_answer,
    test_the_prompt_is_counted,
    test_the_same_seed_samples_the_same_text,
)
from tests.support.calling import BOTH, ZONES
from tests.vllm.engines import SLOTS, SharedCase, core_of, end_of, group_of
from tests.vllm.models import OPT_SAMPLING

CORE_LIMIT_S = 5.0  # it takes milliseconds; a machine may be busy
NUM_TRIES = 20


async def test_start_returns_the_model_s_information(case: SharedCase) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        assert (engine.info.engine, engine.info.slots) == ("vllm", SLOTS)
        assert engine.info.context_length >= 1024
        assert engine.info.cache_tokens >= engine.info.context_length
        expected = Sampling(temperature=1.0, top_p=1.0, top_k=0)  # vLLM's own
        if engine.info.id == "opt":  # its generation_config.json
            expected = msgspec.structs.replace(expected, **OPT_SAMPLING)
        assert engine.info.sampling == expected


async def test_every_token_has_its_id_and_its_delta(case: SharedCase) -> None:
    """vLLM merges tokens that our process takes too late, as it may on a busy machine."""
    async with case.running() as engine:
        for n in range(NUM_TRIES):
            sink = await end_of(engine, ask(f"{n}", 40))
            assert sink.num_tokens == sink.completion_tokens == len(sink.token_ids) == 40
            if sink.calls.count("delta") == 40:
                return
    raise AssertionError(f"tokens were merged in each of {NUM_TRIES} answers")


async def test_top_p_0_is_greedy(case: SharedCase) -> None:
    async with case.running() as engine:
        greedy = await end_of(engine, ask("a", 20))
        narrow = Sampling(temperature=1.5, top_p=0.0, top_k=0, seed=3)
        sampled = await end_of(engine, ask("b", 20, sampling=narrow))
    assert sampled.token_ids == greedy.token_ids


async def test_requests_without_a_seed_differ(case: SharedCase) -> None:
    hot = Sampling(temperature=1.5, top_p=1.0, top_k=0)
    async with case.running() as engine:
        sinks = [await end_of(engine, ask(f"{n}", 30, sampling=hot)) for n in range(3)]
    assert len({tuple(sink.token_ids) for sink in sinks}) == 3


async def test_any_seed_is_taken(case: SharedCase) -> None:
    async with case.running() as engine:
        for seed in (0, 2**31, 2**63 - 1, -1):
            sink = await end_of(engine, ask("a", 2, sampling=Sampling(seed=seed)))
            assert sink.failure is None


async def test_the_prompt_s_tokens_have_log_probabilities(case: SharedCase) -> None:
    async with case.running() as engine:
        sink = await end_of(engine, ask("a", 3, prompt_logprobs=2))
        plain = await end_of(engine, ask("b", 3))
    assert sink.prompt is not None
    assert tuple(place[0].id for place in sink.prompt) == sink.prompt_ids
    assert [place[0].logprob is None for place in sink.prompt] == [True] + [False] * (
        len(sink.prompt) - 1
    )
    for place in sink.prompt[1:]:
        assert sorted(each.rank for each in place)[:2] == [1, 2]
        assert all(each.logprob is not None and each.logprob <= 0 for each in place)
    assert "".join(place[0].text for place in sink.prompt).endswith(conformance.PROMPT)
    assert plain.prompt is None
    assert plain.token_ids == sink.token_ids


async def test_special_tokens_are_shown_where_they_are_asked_for(case: SharedCase) -> None:
    special = Sampling(temperature=0.0, logit_bias=((1, 100.0),))  # a turn's mark
    async with case.running() as engine:
        hidden = await end_of(engine, ask("a", 3, sampling=special))
        shown = await end_of(engine, ask("b", 3, sampling=special, show_special_tokens=True))
    assert hidden.token_ids == shown.token_ids == [1, 1, 1]
    assert hidden.text() == ""
    assert shown.text() == "<|system|>" * 3


async def test_structural_tags_bind_an_answer(case: SharedCase) -> None:
    tag = {"type": "structural_tag", "format": {"type": "const_string", "value": "hill"}}
    async with case.running() as engine:
        grammar = Grammar("structural_tag", json.dumps(tag))
        sink = await end_of(engine, ask("a", 20, grammar=grammar))
        bad = await end_of(engine, ask("b", 20, grammar=Grammar("structural_tag", "{}")))
    assert sink.text() == "hill"
    assert bad.calls == ["fail"]


async def test_cancel_ends_the_request_in_vllm_and_frees_its_blocks(case: SharedCase) -> None:
    async with case.running() as engine:
        for attempt in range(NUM_TRIES):  # they take a second, and a machine may stand still
            names = [f"{attempt}.{n}" for n in range(SLOTS)]
            for sink in [submit(engine, ask(name, 900, prompt=f"The {name}")) for name in names]:
                await sink.until("delta")
            if await case.tell("busy") == "True":
                break
        else:
            raise AssertionError(f"vLLM was never busy, {NUM_TRIES} times")
        for name in names:
            engine.cancel(name)
        async with asyncio.timeout(CORE_LIMIT_S):
            while await case.tell("busy") == "True":
                pass
        assert await case.tell("free") == "True"


async def test_cancels_at_every_moment_leave_nothing_in_vllm(case: SharedCase) -> None:
    async with case.running() as engine:
        for n in range(40):
            submit(engine, ask(f"{n}", 900, prompt=f"The {n}"))
            await asyncio.sleep(n / 4000)  # tokenising, adding, prefilling, generating
            engine.cancel(f"{n}")
        async with asyncio.timeout(CORE_LIMIT_S):
            while await case.tell("busy") == "True":
                pass
        assert await case.tell("free") == "True"


async def test_the_text_is_that_of_the_tokens(case: SharedCase, models: Path) -> None:
    """A random model also combines parts of characters that form no character.

    If an answer ends within a character, vLLM holds the last part back.
    """
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=1)
    async with case.running() as engine:
        sinks = [await end_of(engine, ask(f"{n}", 200, sampling=sampling)) for n in range(3)]
        assert engine.info is not None
        tokenizer = models / engine.info.id / "tokenizer.json"
    said = Tokenizer.from_file(str(tokenizer))
    for sink in sinks:
        assert sink.text().rstrip("\ufffd") == said.decode(sink.token_ids).rstrip("\ufffd")


only_opt = pytest.mark.parametrize("case", ["opt"], indirect=True, scope="session")
only_rill = pytest.mark.parametrize("case", ["rill"], indirect=True, scope="session")


TOOLS = json.dumps(BOTH[1:])


@only_rill
async def test_an_answer_that_called_nothing_yet_continues_with_a_call(
    case: SharedCase, models: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(models / "rill" / "tokenizer.json"))
    fields: dict[str, Any] = {"prompt": None, "tools": TOOLS, "parallel_calls": False}
    fields["messages"] = (Message("user", "What time is it?"),)
    async with case.running() as engine:
        whole = await end_of(engine, ask("a", 1, **fields))
        fields["prompt_ids"] = whole.prompt_ids
        for text, must_call in (
            ("", True),
            ("Let me see.", False),
            ("Let me see.<tool_call>", False),
        ):
            generated = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
            continued = {**fields, "generated": generated, "tool_call_required": must_call}
            rest = await end_of(engine, ask("b", 60, **continued))
            assert rest.failure is None
            assert rest.prompt_ids == whole.prompt_ids
            called = "".join(part[3] for part in rest.tool_parts)
            if must_call or text.endswith("<tool_call>"):
                assert json.loads(called)["zone"] in ZONES
                assert not rest.text()
            else:
                assert rest.text()
        within = tuple(tokenizer.encode('<tool_call>\n{"na', add_special_tokens=False).ids)
        rest = await end_of(engine, ask("c", 60, **{**fields, "generated": within}))
        assert rest.failure is not None
        assert rest.failure[0] == "engine_died"


@only_opt
async def test_a_killed_engine_loses_each_request_once_and_comes_back(case: SharedCase) -> None:
    await conformance.test_a_killed_engine_loses_each_request_once_and_comes_back(case)


@only_opt
async def test_a_core_that_dies_idle_is_noticed(case: SharedCase) -> None:
    """This is the last test with its model: the engine does not start again."""
    engine = case.engine
    assert engine is not None
    pid = engine.pid
    assert pid is not None
    os.kill(core_of(pid).pid, signal.SIGKILL)
    async with asyncio.timeout(CORE_LIMIT_S):
        # There is no event for an engine's death.
        while engine.state == "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    group = group_of(pid)
    await engine.stop()
    _, left = await asyncio.to_thread(psutil.wait_procs, group, CORE_LIMIT_S)
    assert left == []


@only_rill
async def test_stop_leaves_no_process(case: SharedCase) -> None:
    """This is the last test with its model: the engine does not start again."""
    assert case.engine is not None
    pid = case.engine.pid
    assert pid is not None
    group = group_of(pid)
    assert len(group) >= 3
    await case.engine.stop()
    # They are killed, but the kernel needs a moment to free half a gigabyte of each.
    _, left = await asyncio.to_thread(psutil.wait_procs, group, CORE_LIMIT_S)
    assert left == []
    assert group_of(pid) == []
    assert not psutil.pid_exists(pid)
