import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.events import Delta, Failure, Finish, Reasoning, TokenLogprob, ToolCall
from penstock.request import Request, Sampling, UnnamedTokens
from penstock.stream.reader import MAX_EVENTS_AT_ONCE, Reader
from penstock.stream.record import StreamRecord
from penstock.stream.stream import Stream
from tests.support.scripted import taken, taken_choices


class Observer:
    """Remembers what streams reported."""

    def __init__(self) -> None:
        self.engine_done: list[bool] = []
        self.said: list[str] = []

    def stream_accepted(self, stream: Stream) -> None:
        pass

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        self.engine_done.append(engine_done)

    def stream_lost(self, stream: Stream) -> None:
        self.said.append("lost")

    def stream_read(self, stream: Stream) -> None:
        self.said.append("read")

    def stream_unread(self, stream: Stream) -> None:
        self.said.append("unread")


def stream_of(**fields: Any) -> tuple[Stream, Observer]:
    observer = Observer()
    request = Request(**{"id": "s", "max_tokens": 100, "prompt": "x", **fields})
    return Stream(StreamRecord(request), observer), observer


async def test_the_engine_s_deltas_and_finish_are_logged() -> None:
    stream, observer = stream_of()
    stream.accepted((1, 2, 3))
    stream.started()
    stream.delta("one", 1, (5,))
    stream.delta(" two", 1, (6,))
    stream.finish("stop", 3)
    assert [e.text for e in stream.log.after(0) if isinstance(e, Delta)] == ["one", " two"]
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.ended.usage.prompt_tokens == 3
    assert stream.ended.usage.completion_tokens == 3  # the end token counts
    assert observer.engine_done == [True]


async def test_nothing_follows_the_terminal_event() -> None:
    stream, observer = stream_of()
    stream.cancel()
    stream.delta("late", 1, ())
    stream.finish("stop", 1)
    stream.fail("engine_died", "late")
    stream.cancel()
    assert len(stream.log) == 1
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "cancelled"
    assert observer.engine_done == [False]


async def test_a_stop_string_ends_the_stream_and_tells_the_engine() -> None:
    stream, observer = stream_of(stop=("END",))
    stream.delta("text E", 2, (1, 2))
    assert stream.log.text() == "text "
    stream.delta("ND more", 2, (3, 4))
    assert stream.log.text() == "text "
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.ended.usage.completion_tokens == 4
    assert observer.engine_done == [False]


async def test_text_that_was_held_back_comes_with_the_end() -> None:
    stream, _ = stream_of(stop=("END",))
    stream.delta("an EN", 1, (1,))
    stream.finish("length", 1)
    assert stream.log.text() == "an EN"


async def test_tokens_of_held_text_go_with_the_next_delta() -> None:
    stream, _ = stream_of()
    for byte in "é".encode():
        stream.delta(bytes([byte]), 1, (byte,))
    (delta,) = stream.log.after(0)
    assert delta == Delta("é", 2)


async def test_a_failure_is_a_terminal_event_that_says_whether_to_retry() -> None:
    stream, observer = stream_of()
    stream.accepted((1,))
    stream.fail("engine_died", "It stopped.")
    assert isinstance(stream.ended, Failure)
    assert (stream.ended.code, stream.ended.retry_safe) == ("engine_died", True)
    assert observer.engine_done == [True]


async def test_a_refusal_resolves_acceptance_with_the_problem() -> None:
    stream, _ = stream_of()
    stream.fail("prompt_too_long", "Too long.")
    problem = await stream.was_accepted
    assert problem is not None
    assert (problem.code, problem.status, problem.retry_safe) == ("prompt_too_long", 422, False)


async def test_a_cancelled_stream_does_not_leave_acceptance_open() -> None:
    stream, _ = stream_of()
    stream.cancel()
    assert await stream.was_accepted is None


async def test_a_reader_that_falls_behind_takes_everything_at_once() -> None:
    stream, _ = stream_of()
    reader = Reader(stream)
    for n in range(5):
        stream.delta(str(n), 1, ())
    assert reader.lag == 5
    assert len(await taken(reader)) == 5
    assert reader.lag == 0


async def test_a_waiting_reader_wakes_with_the_first_delta() -> None:
    stream, _ = stream_of()
    take = asyncio.create_task(taken(Reader(stream)))
    await asyncio.sleep(0)  # let it start to wait
    assert not take.done()
    stream.delta("x", 1, ())
    async with asyncio.timeout(20):
        assert await take == [Delta("x", 1)]


async def test_every_reader_gets_every_event_and_then_nothing() -> None:
    stream, _ = stream_of()

    async def read() -> list[object]:
        reader, events = Reader(stream), []
        while not reader.is_done:
            events += await taken(reader)
        return list(events)

    readers = [asyncio.create_task(read()) for _ in range(20)]
    for n in range(50):
        stream.delta(str(n), 1, ())
        if n % 7 == 0:
            await asyncio.sleep(0)
    stream.finish("stop", 50)
    async with asyncio.timeout(20):
        histories = await asyncio.gather(*readers)
    assert all(history == stream.log.after(0) for history in histories)


async def test_a_closed_reader_leaves_nothing_behind_and_waits_no_more() -> None:
    stream, observer = stream_of()
    reader = Reader(stream)
    take = asyncio.create_task(taken(reader))
    await asyncio.sleep(0)
    reader.close()
    reader.close()
    async with asyncio.timeout(20):
        assert await take == []
    assert reader.is_done
    assert stream.num_readers == 0
    assert observer.said == ["read", "unread"]


async def test_a_woken_reader_has_nothing_to_take_and_goes_on() -> None:
    stream, _ = stream_of()
    reader = Reader(stream)
    take = asyncio.create_task(taken(reader))
    await asyncio.sleep(0)
    reader.wake()
    assert await take == []
    assert not reader.is_done
    stream.delta("x", 1, ())
    assert await taken(reader) == [Delta("x", 1)]


async def test_a_reader_far_behind_takes_a_bounded_number_of_events() -> None:
    stream, _ = stream_of()
    reader = Reader(stream)
    for _ in range(MAX_EVENTS_AT_ONCE + 1):
        stream.delta("x", 1, ())
    stream.finish("stop", MAX_EVENTS_AT_ONCE + 1)
    assert len(await taken(reader)) == MAX_EVENTS_AT_ONCE
    assert not reader.is_done
    assert len(await taken(reader)) == 2
    assert reader.is_done


async def test_a_continuation_begins_with_what_was_generated() -> None:
    stream, observer = stream_of()
    stream.accepted((1, 2))
    stream.started()
    stream.delta("one", 1, (5,))
    stream.delta("\N{WATER WAVE}", 3, ())  # its tokens have no ids
    stream.delta(" two", 1, (6,))
    stream.lost()
    assert observer.said == ["lost"]
    again = stream.continuation()
    assert again.prompt_ids == (1, 2)
    assert again.generated == (5, UnnamedTokens("\N{WATER WAVE}", 3), 6)
    assert again.max_tokens == 95
    stream.accepted((1, 2, 5, 6))
    stream.started()
    stream.delta(" three", 1, (7,))
    stream.finish("stop", 2)  # the end token counts
    assert stream.log.text() == "one\N{WATER WAVE} two three"
    assert stream.ended is not None
    assert (stream.ended.usage.prompt_tokens, stream.ended.usage.completion_tokens) == (2, 7)


async def test_tokens_without_text_are_generated_again() -> None:
    stream, _ = stream_of()
    stream.accepted((1,))
    stream.delta("a", 1, (5,))
    stream.delta("", 1, (6,))  # half a character, which the engine holds back
    stream.lost()
    again = stream.continuation()
    assert again.generated == (5,)
    assert again.max_tokens == 99
    stream.delta("", 1, (6,))
    stream.delta("é", 1, (7,))
    stream.lost()
    assert stream.continuation().generated == (5, 6, 7)
    stream.finish("length", 0)
    assert stream.log.after(0)[:2] == [Delta("a", 1), Delta("é", 2)]
    assert stream.ended is not None
    assert stream.ended.usage.completion_tokens == 3


async def test_text_held_back_for_a_stop_string_survives_the_engine() -> None:
    stream, _ = stream_of(stop=("END",))
    stream.accepted((1,))
    stream.delta("a E", 1, (5,))
    stream.lost()
    assert stream.continuation().generated == (5,)
    stream.delta("N", 1, (6,))
    stream.lost()
    stream.continuation()
    stream.delta("D more", 1, (7,))
    assert stream.log.text() == "a "
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.ended.usage.completion_tokens == 3


async def test_a_request_that_broke_off_before_its_prompt_was_read_is_simply_sent_again() -> None:
    stream, _ = stream_of()
    stream.lost()
    assert stream.continuation() is stream.record.request


@pytest.mark.parametrize(
    ("sampling", "texts", "reproducible"),
    [
        (Sampling(seed=1, temperature=0.7), ["a"], False),
        (Sampling(seed=1, temperature=0.7), [], True),  # no token was sampled before
        (Sampling(seed=1, temperature=0.0), ["a"], True),
        (Sampling(seed=None, temperature=0.7), ["a"], True),  # it never was reproducible
    ],
)
async def test_a_continued_sample_with_a_seed_is_not_reproducible(
    sampling: Sampling, texts: list[str], reproducible: bool
) -> None:
    stream, _ = stream_of(sampling=sampling)
    stream.accepted((1,))
    for text in texts:
        stream.delta(text, 1, (5,))
    stream.lost()
    stream.continuation()
    stream.finish("stop", 1)
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reproducible is reproducible


@given(
    st.lists(st.tuples(st.binary(max_size=4), st.integers(1, 3)), max_size=20),
    st.lists(st.text(st.sampled_from("ab é"), min_size=1, max_size=3), max_size=4),
)
def test_streamed_deltas_always_equal_the_whole_answer(
    pieces: list[tuple[bytes, int]], stops: list[str]
) -> None:
    async def run() -> None:
        stream, _ = stream_of(stop=tuple(stops))
        for piece, num_tokens in pieces:
            stream.delta(piece, num_tokens, ())
        stream.finish("stop", sum(n for _, n in pieces))
        whole = b"".join(piece for piece, _ in pieces).decode("utf-8", "replace")
        ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
        assert stream.log.text() == whole[: min(ends, default=len(whole))]
        deltas = [e for e in stream.log.after(0) if isinstance(e, Delta)]
        assert all(delta.text for delta in deltas)
        assert stream.ended is not None

    asyncio.run(run())


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token.encode(), -1.0)


async def test_log_probabilities_go_with_the_text_of_their_tokens() -> None:
    stream, _ = stream_of(stop=("END",))
    stream.delta("a", 1, (1,), (logprob("a"),))
    stream.delta(" E", 1, (2,), (logprob(" E"),))
    stream.delta("N", 1, (3,), (logprob("N"),))
    stream.delta("x", 1, (4,), (logprob("x"),))
    stream.finish("stop", 5)
    deltas = [event for event in stream.log.after(0) if isinstance(event, Delta)]
    assert [(delta.text, [each.token for each in delta.logprobs]) for delta in deltas] == [
        ("a", [b"a"]),
        (" ", [b" E"]),
        ("ENx", [b"N", b"x"]),
    ]


async def test_log_probabilities_of_a_stop_string_go_with_it() -> None:
    stream, _ = stream_of(stop=("END",))
    stream.delta("a", 1, (1,), (logprob("a"),))
    stream.delta("b E", 2, (2, 3), (logprob("b"), logprob(" E")))
    stream.delta("ND", 1, (4,), (logprob("ND"),))
    deltas = [event for event in stream.log.after(0) if isinstance(event, Delta)]
    assert [(delta.text, [each.token for each in delta.logprobs]) for delta in deltas] == [
        ("a", [b"a"]),
        ("b ", [b"b", b" E"]),
    ]


async def test_a_token_after_the_end_of_the_text_has_no_log_probability() -> None:
    stream, _ = stream_of(stop=("bcd!", "!"))
    stream.delta("ab", 1, (1,), (logprob("ab"),))
    stream.delta("c", 1, (2,), (logprob("c"),))
    stream.delta("!", 1, (3,), (logprob("!"),))
    deltas = [event for event in stream.log.after(0) if isinstance(event, Delta)]
    assert [(delta.text, [each.token for each in delta.logprobs]) for delta in deltas] == [
        ("a", [b"ab"]),
        ("bc", [b"c"]),
    ]


async def test_log_probabilities_of_tokens_that_are_generated_again_come_once() -> None:
    stream, _ = stream_of()
    stream.accepted((1,))
    stream.delta("a", 1, (5,), (logprob("a"),))
    stream.delta("", 1, (6,), (logprob("?"),))
    stream.lost()
    stream.continuation()
    stream.delta("", 1, (6,), (logprob("?"),))
    stream.delta("é", 1, (7,), (logprob("!"),))
    stream.finish("stop", 2)
    _, second, _ = stream.log.after(0)
    assert isinstance(second, Delta)
    assert [each.token for each in second.logprobs] == [b"?", b"!"]


async def test_several_streams_are_read_as_one_and_in_one_piece() -> None:
    streams = [stream_of()[0] for _ in range(3)]
    reader = Reader(*streams)
    take = asyncio.create_task(taken_choices(reader))
    await asyncio.sleep(0)
    assert not take.done()
    for number in (2, 0, 2):
        streams[number].delta(f"{number}", 1, ())
    async with asyncio.timeout(20):
        assert await take == [(0, Delta("0", 1)), (2, Delta("2", 1)), (2, Delta("2", 1))]
    for stream in streams:
        stream.finish("stop", 1)
    assert not reader.is_done
    assert len(await taken_choices(reader)) == 3
    assert reader.is_done


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_if_a_choice_is_cancelled_or_fails_the_others_end(end: str) -> None:
    streams = [stream_of()[0] for _ in range(3)]
    reader = Reader(*streams)
    if end == "cancel":
        streams[1].cancel()
    else:
        streams[1].fail("engine_error", "It gave up.")
    ends = await taken_choices(reader)
    ends += await taken_choices(reader) if not reader.is_done else []
    assert sorted(number for number, _ in ends) == [0, 1, 2]
    assert reader.is_done
    assert all(stream.ended is not None for stream in streams)


async def test_closing_leaves_every_stream() -> None:
    pairs = [stream_of() for _ in range(3)]
    reader = Reader(*(stream for stream, _ in pairs))
    take = asyncio.create_task(taken(reader))
    await asyncio.sleep(0)
    reader.close()
    reader.close()
    async with asyncio.timeout(20):
        assert await take == []
    assert reader.is_done
    assert all(observer.said == ["read", "unread"] for _, observer in pairs)


async def test_text_that_was_held_back_comes_before_a_call() -> None:
    stream, _ = stream_of(stop=("abc",), tools="[]")
    stream.delta("x ab", 2, ())
    stream.tool_call(0, "c1", "f", "{", 3)
    stream.tool_call(0, "", "", "}", 1)
    stream.delta("abcd", 1, ())
    assert stream.log.after(0)[:-1] == [
        Delta("x ", 2),
        Delta("ab", 0),
        ToolCall("{", 3, (), 0, "c1", "f"),
        ToolCall("}", 1),
    ]
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.usage.completion_tokens == 7
    assert stream.log.text() == "x ab"


async def test_a_stop_string_that_is_there_ends_the_answer_before_a_call() -> None:
    stream, _ = stream_of(stop=("ab", "abcd"), tools="[]")
    stream.delta("x abc", 2, ())
    stream.tool_call(0, "c1", "f", "", 3)
    assert stream.log.text() == "x "
    assert not any(isinstance(event, ToolCall) for event in stream.log.after(0))
    assert isinstance(stream.ended, Finish)


async def test_reasoning_is_part_of_a_continuation_but_not_of_the_answer() -> None:
    stream, _ = stream_of(stop=("stop",), separate_reasoning=True)
    stream.accepted((1,))
    stream.reasoning("stop", 1, (5,))
    stream.delta("", 1, (6,))  # the mark that ends the reasoning
    stream.delta("Yeah", 1, (7,))
    assert stream.can_continue
    assert stream.continuation().generated == (5, 6, 7)
    assert stream.log.after(0) == [Reasoning("stop", 1), Delta("Yeah", 2)]
    assert stream.log.text() == "Yeah"


async def test_an_answer_that_may_call_tools_continues_until_a_call_is_shown() -> None:
    stream, _ = stream_of(tools="[]")
    stream.accepted((1,))
    stream.delta("a", 1, (5,))
    stream.delta("", 1, (6,))  # the mark that opens a call
    assert stream.can_continue
    assert stream.continuation().generated == (5,)
    stream.tool_call(0, "c", "f", "", 2)
    assert not stream.can_continue
