"""The conformance test: every engine must pass it, across the process boundary.

Add an engine with one line in CASES. vLLM needs another environment and starts slowly, so
tests/vllm imports these tests instead.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import pytest

from penstock.engine.catalog import ENGINES
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.process.supervisor import SupervisedEngine
from penstock.engine.protocol import EngineFinish, Feature
from penstock.errors import EngineUnavailable, StartError
from penstock.request import Grammar, Message, Request, Sampling, UnnamedTokens
from tests.support.recording import RecordingSink
from tests.support.upstreams import shared_upstream

GREEDY = Sampling(temperature=0.0)
PROMPT = "A big storm"
"""The built-in model never wavers within 60 tokens: the best two logits differ by 0.08 at least."""

PACE = 20.0
"""Tokens per second, at which the 200 tokens of an answer take ten seconds."""

NEWS = {"cached", "working"}
"""Calls that an engine may make at any time before the first delta."""


@dataclass(frozen=True)
class Case:
    """An engine to test; `options` returns its constructor's arguments for a number of slots."""

    name: str
    options: Callable[[int], dict[str, Any]]
    has_template: bool = True
    restart_limit_s: float = 60.0

    @contextlib.asynccontextmanager
    async def running(self, slots: int = 4, pace: float = 0.0) -> AsyncIterator[SupervisedEngine]:
        """Start the engine, and stop it when the context ends."""
        engine = SupervisedEngine(ENGINES[self.name].target, self.options(slots), pace=pace)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


CASES = [
    Case("mock", lambda slots: {"interval": 0.002, "slots": slots, "length": 600}),
    Case(
        "llamacpp",
        lambda slots: {"model": str(find_model("rill")), "name": "rill", "slots": slots},
    ),
    Case("remote", lambda slots: {"urls": [shared_upstream()], "slots": slots}),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


def ask(id: str, max_tokens: int = 20, **fields: Any) -> Request:  # noqa: A002 - the field's name
    values: dict[str, Any] = {"prompt": PROMPT, "sampling": GREEDY, **fields}
    return Request(id=id, max_tokens=max_tokens, **values)


def submit(engine: SupervisedEngine, request: Request) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(request, sink)
    return sink


async def test_start_returns_the_model_s_information(case: Case) -> None:
    async with case.running(slots=3) as engine:
        assert engine.info is not None
        assert engine.info.engine == case.name
        assert engine.info.slots == 3
        assert engine.info.context_length >= 1024


async def test_a_request_is_accepted_started_streamed_and_finished_once(case: Case) -> None:
    async with case.running() as engine:
        sink = await submit(engine, ask("a", 20)).end()
    assert sink.calls[:2] == ["accepted", "started"]
    assert sink.calls[-1] == "finish"
    assert set(sink.calls[2:-1]) - NEWS == {"delta"}
    assert sink.reason == "length"


async def test_deltas_come_token_by_token_with_exact_counts(case: Case) -> None:
    async with case.running() as engine:
        sink = await submit(engine, ask("a", 40)).end()
    assert sink.completion_tokens == sink.num_tokens == 40
    assert sink.calls.count("delta") >= 36  # a character may take several tokens
    assert len(sink.token_ids) <= 40


async def test_deltas_are_pushed_while_the_engine_goes_on(case: Case) -> None:
    async with case.running() as engine:

        async def seconds(seed: int) -> float:
            """Return the time from the first delta to the last one."""
            moments: list[float] = []
            sink = RecordingSink(on_delta=lambda: moments.append(time.monotonic()))
            engine.submit(ask(str(seed), 500, sampling=Sampling(seed=seed)), sink)
            await sink.end()
            return moments[-1] - moments[0]

        # A machine that is busy for a moment may deliver one answer in one piece, but not all.
        assert max([await seconds(seed) for seed in range(1, 6)]) > 0.02


async def test_text_is_whole_characters(case: Case) -> None:
    async with case.running() as engine:
        sink = await submit(engine, ask("a", 60)).end()
    assert sink.text()
    assert "\ufffd" not in sink.text()


async def test_the_prompt_is_counted(case: Case) -> None:
    async with case.running() as engine:
        short = await submit(engine, ask("a", 1, prompt="One")).end()
        long = await submit(engine, ask("b", 1, prompt="One two three four five six")).end()
    assert 0 < short.prompt_tokens < long.prompt_tokens


async def test_a_request_for_no_tokens_counts_its_prompt_without_a_slot(case: Case) -> None:
    async with case.running() as engine:
        whole = await submit(engine, ask("a", 1, prompt="One two three")).end()
        counted = await submit(engine, ask("b", 0, prompt="One two three")).end()
    assert counted.calls == ["accepted", "finish"]
    assert (counted.prompt_tokens, counted.completion_tokens) == (whole.prompt_tokens, 0)


async def test_messages_are_rendered_and_answered(case: Case) -> None:
    messages = (Message("user", "Hello!"),)
    async with case.running() as engine:
        sink = await submit(engine, ask("a", 50, prompt=None, messages=messages)).end()
    if case.has_template:
        assert sink.failure is None
        assert sink.text()
    else:
        assert sink.calls == ["fail"]
        assert sink.failure is not None
        assert sink.failure[0] == "no_chat_template"


async def test_an_empty_prompt_is_valid(case: Case) -> None:
    async with case.running() as engine:
        sink = await submit(engine, ask("a", 5, prompt="")).end()
    assert sink.completion_tokens > 0


async def test_greedy_text_is_the_same_each_time_and_in_company(case: Case) -> None:
    async with case.running() as engine:
        alone = await submit(engine, ask("a", 50)).end()
        others = [submit(engine, ask(f"o{n}", 50, prompt=f"The {n}")) for n in range(3)]
        again = await submit(engine, ask("b", 50)).end()
        for other in others:
            await other.end()
    assert alone.text() == again.text()


async def test_the_same_seed_samples_the_same_text(case: Case) -> None:
    hot = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=7)
    async with case.running() as engine:
        first = await submit(engine, ask("a", 40, sampling=hot)).end()
        second = await submit(engine, ask("b", 40, sampling=hot)).end()
    assert first.text() == second.text()


async def test_a_continuation_says_what_the_uninterrupted_request_would_have_said(
    case: Case,
) -> None:
    async with case.running() as engine:
        whole = await submit(engine, ask("a", 40)).end()
        assert len(whole.token_ids) == 40, "every token of this answer has an id"
        for at in (1, 13, 39):
            rest = await submit(
                engine,
                ask(
                    f"at {at}",
                    40 - at,
                    prompt_ids=whole.prompt_ids,
                    generated=tuple(whole.token_ids[:at]),
                ),
            ).end()
            assert rest.prompt_ids == whole.prompt_ids
            # Compare token ids: a busy engine may send two tokens in one piece.
            assert rest.token_ids == whole.token_ids[at:]
            assert whole.text().endswith(rest.text())
            assert (rest.reason, rest.completion_tokens) == (whole.reason, 40 - at)


async def test_a_continuation_reads_text_where_token_ids_are_unknown(case: Case) -> None:
    if case.name == "vllm":
        pytest.skip("vLLM reports the id of every token")
    async with case.running() as engine:
        whole = await submit(engine, ask("a", 40)).end()
        ids, texts = whole.token_ids, [str(piece) for piece in whole.pieces]
        generated = (*ids[:5], UnnamedTokens(texts[5], 1), *ids[6:20])
        again = ask("b", 20, prompt_ids=whole.prompt_ids, generated=generated)
        rest = await submit(engine, again).end()
    assert rest.pieces == whole.pieces[20:]


async def test_a_continuation_that_fills_the_context_is_at_its_end(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        whole = await submit(engine, ask("a", 1)).end()
        room = engine.info.context_length - whole.prompt_tokens
        full = (whole.token_ids[0],) * room
        again = ask("b", 5, prompt_ids=whole.prompt_ids, generated=full)
        rest = await submit(engine, again).end()
    assert rest.pieces == []
    assert rest.completion_tokens == 0


async def test_a_prompt_longer_than_the_context_is_refused_before_a_slot(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        prompt = "word " * (engine.info.context_length + 10)
        sink = await submit(engine, ask("a", 5, prompt=prompt)).end()
    assert sink.calls == ["fail"]
    assert sink.failure is not None
    code, message = sink.failure
    assert code == "prompt_too_long"
    assert str(engine.info.context_length) in message


async def test_an_answer_ends_with_the_context(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        room = 12
        low, high = 1, engine.info.context_length  # find how many words leave this room
        while low < high:
            words = (low + high + 1) // 2
            probe = submit(engine, ask(f"p{words}", 1, prompt="a " * words))
            await probe.end()
            fits = probe.failure is None and probe.prompt_tokens <= (
                engine.info.context_length - room
            )
            low, high = (words, high) if fits else (low, words - 1)
        sink = await submit(engine, ask("a", 1000, prompt="a " * low)).end()
        assert sink.failure is None
        assert sink.prompt_tokens + sink.completion_tokens <= engine.info.context_length


async def test_several_run_at_once(case: Case) -> None:
    order: list[str] = []

    class Ordered(RecordingSink):
        def started(self) -> None:
            order.append("started")
            super().started()

        def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
            order.append("finish")
            super().finish(reason, completion_tokens)

    async with case.running(slots=4) as engine:
        sinks = [Ordered() for _ in range(4)]
        for n, sink in enumerate(sinks):
            engine.submit(ask(f"{n}", 400, prompt=f"The {n}th day", ignore_eos=True), sink)
        for sink in sinks:
            await sink.end()
    assert order[:4] == ["started"] * 4


async def test_requests_beyond_the_slots_wait_in_order(case: Case) -> None:
    order: list[str] = []

    class Ordered(RecordingSink):
        name = ""

        def started(self) -> None:
            order.append(self.name)
            super().started()

    async with case.running(slots=2) as engine:
        sinks = []
        for n in range(12):
            sink = Ordered()
            sink.name = f"{n}"
            engine.submit(ask(f"{n}", 5), sink)
            await sink.until("accepted")
            sinks.append(sink)
        for sink in sinks:
            await sink.end()
    assert order == [f"{n}" for n in range(12)]


async def test_a_thousand_may_wait(case: Case) -> None:
    async with case.running(slots=2) as engine:
        sinks = [submit(engine, ask(f"{n}", 1)) for n in range(1030)]
        for sink in sinks:
            await sink.end(100)
    assert {sink.failure for sink in sinks} == {None}


async def test_cancel_frees_the_slot_at_once(case: Case) -> None:
    async with case.running(slots=1) as engine:
        # Cancel from inside the first delta: the engine may be far ahead of a task that waits.
        first = RecordingSink(on_delta=lambda: engine.cancel("first"))
        engine.submit(ask("first", 500), first)
        await first.until("accepted")  # otherwise the second may be queued before it
        second = submit(engine, ask("second", 3))
        await second.end()
        assert [call for call in first.calls if call not in NEWS] == [
            "accepted",
            "started",
            "delta",
        ]
        assert second.completion_tokens == 3


async def test_cancel_leaves_the_queue(case: Case) -> None:
    async with case.running(slots=1) as engine:
        # Together they have the slot for seconds: the other comes and is cancelled meanwhile.
        before = [submit(engine, ask(f"{n}", 900, ignore_eos=True)) for n in range(10)]
        await before[0].until("started")
        waiting = submit(engine, ask("waiting", 900))
        await waiting.until("accepted")
        assert "started" not in waiting.calls
        engine.cancel("waiting")
        async with asyncio.timeout(60):
            while engine.num_stopping:  # noqa: ASYNC110 - there is no event for it alone
                await asyncio.sleep(0.01)
        assert not before[-1].ended, "it left before its turn"
        last = submit(engine, ask("last", 3))
        for n in range(1, 10):
            engine.cancel(f"{n}")
        await last.end()
        assert before[0].ended


async def test_cancel_ignores_unknown_and_ended_requests(case: Case) -> None:
    async with case.running() as engine:
        engine.cancel("never")
        sink = await submit(engine, ask("a", 3)).end()
        engine.cancel("a")
        engine.cancel("a")
        again = await submit(engine, ask("b", 3)).end()
    assert sink.calls.count("finish") == again.calls.count("finish") == 1


async def test_a_cancel_that_comes_with_the_request_leaves_nothing(case: Case) -> None:
    async with case.running(slots=1) as engine:
        for n in range(50):
            submit(engine, ask(f"{n}", 500))
            engine.cancel(f"{n}")
        assert engine.num_requests == 0
        last = await submit(engine, ask("last", 2)).end()
    assert last.completion_tokens == 2


async def test_stop_leaves_no_process(case: Case) -> None:
    async with case.running() as engine:
        pid = engine.pid
        submit(engine, ask("a", 500))
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_killed_engine_loses_each_request_once_and_comes_back(case: Case) -> None:
    # A fast engine is done in a tenth of a second, but a busy machine kills it later: it is paced.
    async with case.running(slots=1, pace=PACE) as engine:
        pid = engine.pid
        assert pid is not None
        # Kill from inside the first delta: the engine may be far ahead of a task that waits.
        running = RecordingSink(on_delta=functools.partial(kill, pid))
        engine.submit(ask("running", 900, sampling=Sampling(temperature=1.5, seed=1)), running)
        await running.until("accepted")
        waiting = submit(engine, ask("waiting", 500))
        for sink in (running, waiting):
            await sink.end()
            assert sink.calls.count("lost") == 1
            assert sink.calls[-1] == "lost"
        sink = await resubmit(engine, ask("again", 3), case.restart_limit_s)
        assert engine.pid != pid
    assert sink.completion_tokens == 3


def kill(pid: int) -> None:
    """Send SIGKILL to a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def resubmit(engine: SupervisedEngine, request: Request, limit_s: float) -> RecordingSink:
    """Submit a request as soon as the engine is back, and wait for its end."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                return await submit(engine, request).end()
            except EngineUnavailable:
                await asyncio.sleep(0.01)  # there is no event for the engine's return


async def test_a_prompt_that_leaves_too_little_room_is_refused_where_the_answer_must_fit(
    case: Case,
) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        context = engine.info.context_length
        sink = await submit(engine, ask("a", context, must_fit=True)).end()
        assert sink.calls == ["fail"]
        assert sink.failure is not None
        code, message = sink.failure
        assert code == "answer_too_long"
        room = int(message.split()[-4])
        assert f"This model's maximum context length is {context} tokens. However," in message
        for max_tokens, call in ((room, "accepted"), (room + 1, "fail")):
            sink = submit(engine, ask(f"{max_tokens}", max_tokens, must_fit=True))
            await sink.until(call)
            assert sink.calls[0] == call
            engine.cancel(f"{max_tokens}")


async def test_log_probabilities_come_with_the_tokens_where_they_are_asked_for(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        if "top_logprobs" not in engine.info.supports:
            pytest.skip("the engine does not support this, and says so")
        plain = await submit(engine, ask("a", 20)).end()
        sink = await submit(engine, ask("b", 20, top_logprobs=2)).end()
        alone = await submit(engine, ask("c", 20, top_logprobs=0)).end()
    assert plain.logprobs == []
    assert b"".join(each.token for each in sink.logprobs).decode() == sink.text() == plain.text()
    for each in sink.logprobs:
        assert len(each.top) == 2
        assert each.top[0] == (each.token, each.logprob)  # it is greedy
        assert each.top[1][1] <= each.logprob <= 0
    assert {each.top for each in alone.logprobs} == {()}


async def test_a_biased_token_is_certain_or_impossible(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        if "logit_bias" not in engine.info.supports:
            pytest.skip("the engine does not support this, and says so")
        plain = await submit(engine, ask("a", 5)).end()
        first = plain.token_ids[0]
        never = Sampling(temperature=0.0, logit_bias=((first, -100.0),))
        always = Sampling(temperature=0.0, logit_bias=((first, 100.0),))
        without = await submit(engine, ask("b", 5, sampling=never)).end()
        only = await submit(engine, ask("c", 5, sampling=always)).end()
    assert first not in without.token_ids
    assert set(only.token_ids) == {first}


async def test_an_answer_under_a_schema_is_json_that_keeps_to_it(case: Case) -> None:
    async with case.running() as engine:
        assert engine.info is not None
        if "json_schema" not in engine.info.supports:
            pytest.skip("the engine does not support this, and says so")
        schema = json.dumps({"enum": [{"lake": 5}, {"sea": True}]})
        sink = await submit(engine, ask("a", 30, json_schema=schema)).end()
        bad = await submit(engine, ask("b", 30, json_schema='{"type": 5}')).end()
    assert sink.reason == "stop"
    assert json.loads(sink.text()) in ({"lake": 5}, {"sea": True})
    assert bad.calls == ["fail"]


def need(engine: SupervisedEngine, *features: Feature) -> None:
    """Skip the test if the engine says that it does not support these features."""
    assert engine.info is not None
    if not set(features) <= set(engine.info.supports):
        pytest.skip("the engine does not support this, and says so")


HOT = Sampling(temperature=2.0, top_p=1.0, top_k=0, seed=5)


async def test_min_p_leaves_only_the_likely_tokens(case: Case) -> None:
    async with case.running() as engine:
        need(engine, "min_p")
        greedy = await submit(engine, ask("a", 20)).end()
        only = msgspec.structs.replace(HOT, min_p=1.0)
        narrow = await submit(engine, ask("b", 20, sampling=only)).end()
        wide = await submit(engine, ask("c", 20, sampling=HOT)).end()
    assert narrow.token_ids == greedy.token_ids != wide.token_ids


async def test_a_repetition_penalty_counts_the_prompt_and_the_answer_also_when_continued(
    case: Case,
) -> None:
    penalty = Sampling(temperature=0.0, repetition_penalty=100.0)
    async with case.running() as engine:
        need(engine, "repetition_penalty")
        need(engine, "ignore_eos")
        told = {"prompt": "Near the sea", "sampling": penalty, "ignore_eos": True}
        never = await submit(engine, ask("a", 40, **told)).end()
        known = {*never.prompt_ids, *never.token_ids}
        rest = await submit(
            engine,
            ask(
                "c",
                20,
                sampling=penalty,
                ignore_eos=True,
                prompt_ids=never.prompt_ids,
                generated=tuple(never.token_ids[:20]),
            ),
        ).end()
    assert len(known) == len(set(never.prompt_ids)) + len(never.token_ids)
    assert rest.token_ids == never.token_ids[20:]


async def ended_early(engine: SupervisedEngine) -> tuple[Request, RecordingSink]:
    """Return a request whose answer the model itself ends, and that answer."""
    request = ask("early", 800, prompt="On a hill")
    sink = await submit(engine, request).end()
    if sink.reason != "stop":
        pytest.skip("the model ends no answer")
    return request, sink


async def test_the_answer_goes_on_after_its_end_if_the_end_is_ignored(case: Case) -> None:
    async with case.running() as engine:
        need(engine, "ignore_eos")
        request, early = await ended_early(engine)
        num_tokens = early.completion_tokens + 20
        longer = msgspec.structs.replace(
            request, id="longer", max_tokens=num_tokens, ignore_eos=True
        )
        sink = await submit(engine, longer).end()
    assert (sink.reason, sink.completion_tokens) == ("length", num_tokens)
    assert sink.text().startswith(early.text())


async def test_nothing_ends_an_answer_before_its_least_length_also_when_continued(
    case: Case,
) -> None:
    async with case.running() as engine:
        need(engine, "min_tokens")
        request, early = await ended_early(engine)
        least = early.completion_tokens + 7
        longer = msgspec.structs.replace(
            request, id="longer", max_tokens=least + 100, min_tokens=least
        )
        sink = await submit(engine, longer).end()
        assert sink.failure is None
        assert sink.completion_tokens == sink.num_tokens >= least
        assert sink.text().startswith(early.text())
        ids = sink.token_ids[: early.completion_tokens - 3]
        rest = await submit(
            engine,
            msgspec.structs.replace(
                longer,
                id="rest",
                max_tokens=longer.max_tokens - len(ids),
                min_tokens=least - len(ids),
                prompt_ids=sink.prompt_ids,
                prompt=None,
                generated=tuple(ids),
            ),
        ).end()
    assert sink.text().endswith(rest.text())
    assert rest.completion_tokens + len(ids) == sink.completion_tokens


async def test_a_stop_token_ends_the_answer_and_is_counted_but_not_shown(case: Case) -> None:
    async with case.running() as engine:
        need(engine, "stop_token_ids")
        plain = await submit(engine, ask("a", 20)).end()
        at = plain.token_ids.index(plain.token_ids[11])
        stop = (plain.token_ids[11],)
        sink = await submit(engine, ask("b", 20, stop_token_ids=stop)).end()
        late = await submit(engine, ask("c", 20, stop_token_ids=stop, min_tokens=15)).end()
    assert (sink.reason, sink.completion_tokens) == ("stop", at + 1)
    assert sink.token_ids == plain.token_ids[: at + 1]
    assert plain.text().startswith(sink.text())
    assert "".join(str(piece) for piece in plain.pieces[:at]) == sink.text()
    assert late.completion_tokens >= 15


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "[0-9]{3}/x", "[0-9]{3}/x"),
        ("choice", '["yes", "no \\"é\\""]', 'yes|no "é"'),
        ("grammar", 'root ::= "a" ("," [bc])+ "."', r"a(,[bc])+\."),
    ],
)
async def test_an_answer_under_a_grammar_belongs_to_its_language(
    case: Case, kind: str, text: str, pattern: str
) -> None:
    async with case.running() as engine:
        need(engine, "grammar")
        for n, sampling in enumerate((GREEDY, Sampling(temperature=1.0, seed=3))):
            grammar = Grammar(kind, text)  # type: ignore[arg-type] # one of its kinds
            sink = await submit(engine, ask(f"{n}", 60, sampling=sampling, grammar=grammar)).end()
            assert sink.failure is None
            if sink.reason == "stop":
                assert re.fullmatch(pattern, sink.text())
            else:
                assert kind == "grammar"  # it has no longest answer


@pytest.mark.parametrize("kind", ["regex", "grammar"])
async def test_a_grammar_that_cannot_be_enforced_is_refused(case: Case, kind: str) -> None:
    async with case.running() as engine:
        need(engine, "grammar")
        grammar = Grammar(kind, "((zqxj")  # type: ignore[arg-type] # one of its kinds
        sink = await submit(engine, ask("a", 5, grammar=grammar)).end()
    assert sink.calls == ["fail"]
    assert sink.failure is not None
    assert sink.failure[0] == "invalid_grammar"
    assert "zqxj" not in sink.failure[1]


async def test_the_last_message_is_continued_or_left_without_an_answer(case: Case) -> None:
    turns = (Message("user", "Hello!"), Message("assistant", "Once upon a"))
    async with case.running() as engine:
        need(engine, "last_message")
        if not case.has_template:
            pytest.skip("the model has no template")
        plain = ask("a", 5, prompt=None, messages=turns[:1])
        opened = await submit(engine, plain).end()
        left = await submit(engine, msgspec.structs.replace(plain, id="b", open_answer=False)).end()
        continued = await submit(
            engine, ask("c", 5, prompt=None, messages=turns, continue_last_message=True)
        ).end()
    assert opened.prompt_ids[: len(left.prompt_ids)] == left.prompt_ids
    assert len(left.prompt_ids) < len(opened.prompt_ids)
    assert continued.prompt_ids[: len(opened.prompt_ids)] == opened.prompt_ids
    assert continued.failure is None


async def test_an_answer_without_the_cache_is_the_same(case: Case) -> None:
    async with case.running() as engine:
        need(engine, "use_cache")
        cached = await submit(engine, ask("a", 10)).end()
        anew = await submit(engine, ask("b", 10, use_cache=False)).end()
    assert anew.token_ids == cached.token_ids


async def test_an_engine_that_cannot_start_says_why() -> None:
    engine = SupervisedEngine("penstock.engine.mock:Mock", {"text": ""})
    with pytest.raises(StartError, match="text is empty"):
        await engine.start()
    assert engine.pid is None


async def test_a_parameter_that_an_engine_does_not_have_is_named() -> None:
    engine = SupervisedEngine("penstock.engine.mock:Mock", {"intervall": 1})
    with pytest.raises(StartError, match="intervall"):
        await engine.start()


@pytest.mark.parametrize(
    ("name", "value"), [("length", "x"), ("interval", -1), ("context_length", 0), ("numbered", 1)]
)
async def test_a_value_that_an_engine_does_not_take_is_named(name: str, value: object) -> None:
    engine = SupervisedEngine("penstock.engine.mock:Mock", {name: value})
    with pytest.raises(StartError, match=f"value for '{name}'"):
        await engine.start()


async def test_an_engine_that_is_not_there_says_so() -> None:
    engine = SupervisedEngine("penstock.engine.nothing:Nothing", {})
    with pytest.raises(StartError, match="cannot be imported"):
        await engine.start()
