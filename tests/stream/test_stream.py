import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.events import Delta, Failure, Finish
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream


class Ends:
    """Remembers how often and how streams ended."""

    def __init__(self) -> None:
        self.engine_done: list[bool] = []

    def __call__(self, stream: Stream, engine_done: bool) -> None:
        self.engine_done.append(engine_done)


def stream_of(**fields: Any) -> tuple[Stream, Ends]:
    ends = Ends()
    return Stream(Request(id="s", max_tokens=100, prompt="x", **fields), ends), ends


async def test_the_engine_s_deltas_and_finish_are_logged() -> None:
    stream, ends = stream_of()
    stream.accepted(3)
    stream.started()
    stream.delta("one", 1, (5,))
    stream.delta(" two", 1, (6,))
    stream.finish("stop", 3)
    assert [e.text for e in stream.log.after(0) if isinstance(e, Delta)] == ["one", " two"]
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.ended.usage.prompt_tokens == 3
    assert stream.ended.usage.completion_tokens == 3  # the end token counts
    assert ends.engine_done == [True]


async def test_nothing_follows_the_terminal_event() -> None:
    stream, ends = stream_of()
    stream.cancel()
    stream.delta("late", 1, ())
    stream.finish("stop", 1)
    stream.fail("engine_died", "late")
    stream.cancel()
    assert len(stream.log) == 1
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "cancelled"
    assert ends.engine_done == [False]


async def test_a_stop_string_ends_the_stream_and_tells_the_engine() -> None:
    stream, ends = stream_of(stop=("END",))
    stream.delta("text E", 2, (1, 2))
    assert stream.log.text() == "text "
    stream.delta("ND more", 2, (3, 4))
    assert stream.log.text() == "text "
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"
    assert stream.ended.usage.completion_tokens == 4
    assert ends.engine_done == [False]


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
    assert delta == Delta("é", 2, (0xC3, 0xA9))


async def test_a_failure_is_a_terminal_event_that_says_whether_to_retry() -> None:
    stream, ends = stream_of()
    stream.accepted(1)
    stream.fail("engine_died", "It stopped.")
    assert isinstance(stream.ended, Failure)
    assert (stream.ended.code, stream.ended.retry_safe) == ("engine_died", True)
    assert ends.engine_done == [True]


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
    assert len(await reader.take()) == 5
    assert reader.lag == 0


async def test_a_waiting_reader_wakes_with_the_first_delta() -> None:
    stream, _ = stream_of()
    take = asyncio.create_task(Reader(stream).take())
    await asyncio.sleep(0)  # let it begin to wait
    assert not take.done()
    stream.delta("x", 1, ())
    async with asyncio.timeout(1):
        assert await take == [Delta("x", 1)]


async def test_every_reader_gets_every_event_and_then_nothing() -> None:
    stream, _ = stream_of()

    async def read() -> list[object]:
        reader, events = Reader(stream), []
        while taken := await reader.take():
            events += taken
        return list(events)

    readers = [asyncio.create_task(read()) for _ in range(20)]
    for n in range(50):
        stream.delta(str(n), 1, ())
        if n % 7 == 0:
            await asyncio.sleep(0)
    stream.finish("stop", 50)
    async with asyncio.timeout(5):
        histories = await asyncio.gather(*readers)
    assert all(history == stream.log.after(0) for history in histories)


async def test_a_reader_that_stops_waiting_leaves_nothing_behind() -> None:
    stream, _ = stream_of()
    take = asyncio.create_task(Reader(stream).take())
    await asyncio.sleep(0)
    take.cancel()
    await asyncio.gather(take, return_exceptions=True)
    assert stream._waiting == []


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
