import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.openai.frames import ChatForm, ChunkForm, ChunkFrames, CompletionForm
from penstock.events import PromptLogprobs, RankedToken, TokenLogprob
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from tests.support.scripted import ScriptedEngine, opened

DONE = "[DONE]"


def form(**fields: Any) -> ChunkForm:
    shape = ChatForm if fields.pop("is_chat", True) else CompletionForm
    return shape(**{"id": "x", "created": 5, "model": "m", **fields})


def streams(number: int = 1, **fields: Any) -> list[Stream]:
    """Return streams that are accepted with a prompt of two tokens."""
    registry = Streams([ScriptedEngine()])
    request = {"max_tokens": 9, "prompt": "x", **fields}
    made = [opened(registry, Request(id=f"{n}", **request), resumable=True) for n in range(number)]
    for stream in made:
        stream.accepted((1, 2))
    return made


def data_of(frames: bytes) -> list[Any]:
    """Return the data of each frame as JSON values, and `[DONE]` as text."""
    lines = [frame.rpartition("\n")[2] for frame in frames.decode().split("\n\n") if frame]
    texts = [line.removeprefix("data: ") for line in lines]
    return [text if text == DONE else json.loads(text) for text in texts]


def all_events(made: list[Stream]) -> list[Any]:
    return [(n, [event]) for n, stream in enumerate(made) for event in stream.log.after(0)]


@given(
    st.lists(st.text(min_size=1), max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 8),
)
async def test_any_text_survives_framing_in_any_batches(
    texts: list[str], is_chat: bool, usage: bool, continuous: bool, cut: int
) -> None:
    made = streams()
    for text in texts:
        made[0].delta(text, 1, ())
    made[0].finish("stop", len(texts))
    events = all_events(made)
    shape = form(is_chat=is_chat, include_usage=usage, continuous_usage=usage and continuous)
    frames = ChunkFrames(shape, made)
    *chunks, done = data_of(frames.frame(events[:cut]) + frames.frame(events[cut:]))
    assert done == DONE
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    pieces = [c["delta"].get("content", "") if is_chat else c["text"] for c in choices]
    assert pieces == [*texts, ""]
    assert [c["finish_reason"] for c in choices] == [None] * len(texts) + ["stop"]
    assert len(chunks) - len(choices) == usage


async def test_one_of_several_choices_is_named_in_each_frame_and_done_comes_after_all() -> None:
    made = streams(2)
    shape = form(echoes=("", ""), num_per_prompt=2, include_usage=True)
    frames = ChunkFrames(shape, made)
    made[1].delta("b", 1, ())
    made[1].finish("length", 1)
    first = data_of(frames.frame([(1, made[1].log.after(0))]))
    # The choices begin in order, though the second one has text first.
    assert [chunk["choices"][0]["index"] for chunk in first] == [0, 1, 1, 1]
    for chunk in first[:2]:
        assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert first[2]["choices"][0]["delta"] == {"content": "b"}
    made[0].finish("stop", 0)
    last, usage, done = data_of(frames.frame([(0, made[0].log.after(0))]))
    assert last["choices"][0]["delta"] == {"content": ""}
    counts = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    assert usage["usage"] == counts | {
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert done == DONE


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("cursor", [0, 2])
async def test_tokens_of_reasoning_are_counted_apart(continuous: bool, cursor: int) -> None:
    made = streams()
    made[0].delta("", 1, ())  # the mark that begins the reasoning
    made[0].reasoning("Is", 1, ())
    made[0].reasoning(" it?", 2, ())
    made[0].delta("Yes", 1, ())
    made[0].finish("stop", 5)
    shape = form(is_chat=True, include_usage=True, continuous_usage=continuous)
    events = all_events(made)[cursor:]
    *chunks, done = data_of(ChunkFrames(shape, made, cursor).frame(events))
    assert done == DONE
    usages = [chunk["usage"] for chunk in chunks if chunk["usage"] is not None]
    counts = [usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages]
    expected = [2, 4, 4, 4, 4][cursor:] if continuous else [4]
    assert counts == expected
    assert shape.whole(made)["usage"] == usages[-1]


async def test_after_a_failure_nothing_more_is_said() -> None:
    made = streams(2)
    made[0].fail("engine_error", "It gave up.")
    made[1].cancel()
    error, done = data_of(ChunkFrames(form(echoes=("", "")), made).frame(all_events(made)))
    assert error["error"]["code"] == "engine_error"
    assert done == DONE


async def test_after_a_failure_no_choice_has_another_delta() -> None:
    """Once, if both choices ended before the reader's turn, the second one's deltas followed
    `[DONE]`. Now a failure ends the response, also for deltas."""
    made = streams(2)
    made[0].delta("a", 1, ())
    made[0].fail("engine_error", "It gave up.")
    made[1].delta("b", 1, ())
    made[1].finish("stop", 1)
    frames = ChunkFrames(form(echoes=("", ""), num_per_prompt=2), made)
    *opening, text, error, done = data_of(frames.frame(all_events(made)))
    assert [chunk["choices"][0]["index"] for chunk in opening] == [0, 1]
    assert text["choices"][0]["delta"]["content"] == "a"
    assert error["error"]["code"] == "engine_error"
    assert done == DONE


async def test_the_log_probabilities_go_with_their_text() -> None:
    for is_chat in (True, False):
        made = streams(top_logprobs=1)
        made[0].delta("ab", 1, (1,), (TokenLogprob(b"ab", -0.5, ((b"ab", -0.5), (b"c", -2.0))),))
        made[0].delta("é", 2, (), (TokenLogprob("é".encode(), -1.5),))
        made[0].finish("stop", 3)
        shape = form(is_chat=is_chat, has_logprobs=True, echoes=("" if is_chat else "echo",))
        first, second, _, _ = data_of(ChunkFrames(shape, made).frame(all_events(made)))
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in (first, second)]
        if is_chat:
            assert logprobs[0]["content"] == [
                {
                    "token": "ab",
                    "logprob": -0.5,
                    "bytes": [97, 98],
                    "top_logprobs": [
                        {"token": "ab", "logprob": -0.5, "bytes": [97, 98]},
                        {"token": "c", "logprob": -2.0, "bytes": [99]},
                    ],
                }
            ]
            assert logprobs[1]["content"][0]["bytes"] == [195, 169]
        else:
            assert first["choices"][0]["text"] == "echoab"
            assert [each["text_offset"] for each in logprobs] == [[4], [6]]
            assert logprobs[0]["top_logprobs"] == [{"ab": -0.5, "c": -2.0}]
            assert logprobs[1]["token_logprobs"] == [-1.5]


async def test_a_token_s_offset_counts_the_tokens_before_it_not_the_text_held_back() -> None:
    made = streams(stop=("bcd!", "!"), top_logprobs=0, max_tokens=9)
    for token in ("ab", "c", "x", "é", "b", "!"):
        made[0].delta(token, 1, (), (TokenLogprob(token.encode(), -0.5),))
    shape = form(is_chat=False, has_logprobs=True, echoes=("echo",))
    whole = shape.whole(made)["choices"][0]
    assert whole["text"] == "echoabcxéb"
    assert whole["logprobs"]["tokens"] == ["ab", "c", "x", "é", "b"]
    assert whole["logprobs"]["text_offset"] == [4, 6, 7, 8, 9]
    for start in range(shape.num_events(made[0])):
        cursor, frames = shape.resume(made[0], start)
        chunks = data_of(frames.frame([(0, made[0].log.after(cursor))]))[:-1]
        offsets = [
            n for c in chunks for n in (c["choices"][0]["logprobs"] or {}).get("text_offset", [])
        ]
        assert offsets == [4, 6, 7, 8, 9][-len(offsets) :] if offsets else start > 2


async def test_no_likely_token_is_lost_from_a_completion() -> None:
    made = streams(top_logprobs=4)
    top = ((b"\xf0\x9f", -1.0), (b"\xf0", -2.0), (b"a", -3.0), (b"a", -4.0), (b"<|end|>", -5.0))
    made[0].delta("\ufffd", 1, (), (TokenLogprob(b"\xf0", -2.0, top),))
    made[0].finish("stop", 1)
    shape = form(is_chat=False, has_logprobs=True)
    logprobs = shape.whole(made)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [
        {
            "bytes:\\xf0\\x9f": -1.0,
            "bytes:\\xf0": -2.0,
            "a": -3.0,
            "bytes:\\x61": -4.0,
            "<|end|>": -5.0,
        }
    ]
    assert logprobs["tokens"] == ["bytes:\\xf0"]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", ["text", "nothing", "reasoning", "call", "both"])
async def test_content_is_null_without_text_streamed_and_whole(kind: str, number: int) -> None:
    made = streams(number)
    for stream in made:
        if kind in ("reasoning", "both"):
            stream.reasoning("Hm", 1, ())
        if kind == "call":
            stream.tool_call(0, "c1", "get", "{}", 1)
        if kind in ("text", "both"):
            stream.delta("Yes", 1, ())
        stream.finish("stop", 2)
    shape = form(echoes=("",) * number, num_per_prompt=number)
    for choice in shape.whole(made)["choices"]:
        contents = [
            chunk["choices"][0]["delta"]["content"]
            for chunk in data_of(ChunkFrames(shape, made).frame(all_events(made)))[:-1]
            if chunk["choices"][0]["index"] == choice["index"]
            and chunk["choices"][0]["delta"].get("content") is not None
        ]
        joined = "".join(contents) if contents else None
        assert choice["message"]["content"] == joined
        assert joined == {"text": "Yes", "both": "Yes", "nothing": ""}.get(kind)


@given(st.integers(0, 3), st.booleans(), st.booleans())
async def test_reading_on_gives_the_same_bytes_from_any_frame_on(
    num_deltas: int, is_chat: bool, fails: bool
) -> None:
    (stream,) = streams()
    shape = form(
        is_chat=is_chat,
        include_usage=True,
        continuous_usage=True,
        echoes=("" if is_chat else "echo",),
    )
    first = ChunkFrames(shape, [stream], with_ids=True)
    for n in range(num_deltas):
        stream.delta(f"{n}", n, ())
    if fails:
        stream.fail("engine_error", "It gave up.")
    else:
        stream.finish("stop", num_deltas)
    whole = first.frame(all_events([stream])).split(b"\n\n")[:-1]
    assert len(whole) == shape.num_events(stream) == num_deltas + (2 if fails else 3)
    ids = [frame.partition(b"\n")[0] for frame in whole]
    assert ids == [f"id: {stream.id}.{number}".encode() for number in range(len(whole))]
    for start in range(len(whole)):
        cursor, frames = shape.resume(stream, start)
        reader = Reader(stream, cursor=cursor)
        rest = b""
        while not reader.is_done:
            rest += frames.frame(reader.take())
        reader.close()
        assert rest.split(b"\n\n")[:-1] == whole[start:]


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completion"])
async def test_token_ids_stand_where_vllm_puts_them(is_chat: bool) -> None:
    (stream,) = made = streams(return_token_ids=True)
    stream.delta("a", 1, (5,))
    stream.delta("", 1, (6,))  # it has no text of its own
    stream.delta("b", 1, (7,))
    stream.delta("", 1, (0,))
    stream.finish("stop", 4)
    shape = form(is_chat=is_chat, has_token_ids=True)
    *chunks, _ = data_of(ChunkFrames(shape, made).frame(all_events(made)))
    whole = shape.whole(made)
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[5], [6, 7], [0]]
    assert whole["choices"][0]["token_ids"] == [5, 6, 7, 0]
    for each in (chunks[0], whole):
        assert (each if is_chat else each["choices"][0])["prompt_token_ids"] == (
            [1, 2] if each is chunks[0] else (1, 2)
        )
    assert "prompt_token_ids" not in str(chunks[1])


async def test_token_ids_that_the_engine_does_not_name_are_null() -> None:
    (stream,) = made = streams(return_token_ids=True)
    stream.delta("a", 1, (5,))
    stream.delta("é", 2, (6,))
    stream.finish("stop", 3)
    shape = form(has_token_ids=True)
    *chunks, _ = data_of(ChunkFrames(shape, made).frame(all_events(made)))
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[5], None, []]
    assert shape.whole(made)["choices"][0]["token_ids"] is None


async def test_without_the_wish_for_ids_no_event_holds_them() -> None:
    (stream,) = made = streams(stop=("zz",))
    stream.delta("az", 1, (5,))
    stream.reasoning("b", 1, (6,))
    stream.finish("stop", 2)
    assert {event.token_ids for event in stream.log.after(0)} == {()}  # type: ignore[union-attr] # no failure
    assert "token_ids" not in str(form().whole(made))


async def test_hidden_reasoning_is_counted_but_has_no_frame() -> None:
    (stream,) = made = streams(return_token_ids=True)
    stream.reasoning("Hm", 1, (5,))
    stream.delta("Yes", 1, (6,))
    stream.finish("stop", 2)
    shape = form(hides_reasoning=True, has_token_ids=True, include_usage=True)
    frames = ChunkFrames(shape, made, with_ids=True).frame(all_events(made))
    first, last, usage, _ = data_of(frames)
    assert frames.startswith(f"id: {stream.id}.1\n".encode())  # the id is still the event's index
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "Yes"}
    assert first["choices"][0]["token_ids"] == [5, 6]
    assert last["choices"][0]["token_ids"] == []
    assert usage["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    message = shape.whole(made)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes", "refusal": None}


PLACES: PromptLogprobs = (
    (RankedToken(5, "One"),),
    (RankedToken(6, " day", -2.0, 3), RankedToken(7, " of", -0.5, 1), RankedToken(8, ",", -1.0, 2)),
)


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completion"])
async def test_a_prompt_s_log_probabilities_stand_where_vllm_puts_them(is_chat: bool) -> None:
    (stream,) = made = streams(prompt_logprobs=2)
    stream.prompt_logprobs(PLACES)
    stream.finish("stop", 0)
    whole = form(is_chat=is_chat, has_prompt_logprobs=True).whole(made)
    assert (whole if is_chat else whole["choices"][0])["prompt_logprobs"] == [
        None,
        {
            "6": {"logprob": -2.0, "rank": 3, "decoded_token": " day"},
            "7": {"logprob": -0.5, "rank": 1, "decoded_token": " of"},
            "8": {"logprob": -1.0, "rank": 2, "decoded_token": ","},
        },
    ]


async def test_an_echo_with_logprobs_has_the_prompt_s_tokens_before_the_answer_s() -> None:
    (stream,) = made = streams(top_logprobs=1)
    stream.prompt_logprobs(PLACES)
    stream.delta(" I", 1, (9,), (TokenLogprob(b" I", -0.25, ((b" I", -0.25),)),))
    stream.finish("length", 1)
    shape = form(is_chat=False, has_logprobs=True, num_echoed_top=1)
    (choice,) = shape.whole(made)["choices"]
    assert choice["text"] == "One day I"
    assert choice["logprobs"] == {
        "tokens": ["One", " day", " I"],
        "token_logprobs": [None, -2.0, -0.25],
        "top_logprobs": [None, {" day": -2.0, " of": -0.5}, {" I": -0.25}],
        "text_offset": [0, 3, 7],
    }
    assert stream.continuation().prompt_logprobs is None
