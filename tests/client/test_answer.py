"""A client reads the same answer from the bytes of a stream, wherever they are cut."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.client import (
    CutStreamError,
    FailedStreamError,
    InvalidField,
    PenstockError,
    UnexpectedAnswerError,
)
from penstock.client.answer import Completion, StreamedAnswer, decode_json, refusal, request_body
from penstock.events import Timings, Usage

FINISH = {
    "token": "",
    "index": 2,
    "finished": True,
    "finish_reason": "stop",
    "usage": {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "total_tokens": 6,
        "cached_tokens": 0,
    },
    "timings": {
        "queue_time": 0.1,
        "time_to_first_token": 0.2,
        "total_time": 0.5,
        "tokens_per_second": 40.5,
    },
}


def frame(**event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def delta(index: int, token: str) -> bytes:
    return frame(token=token, index=index, finished=False)


TWO = delta(0, "Hé") + delta(1, "llo 👋")
WHOLE = TWO + frame(**FINISH)


def read(*pieces: bytes, answer: StreamedAnswer | None = None) -> list[str]:
    """Feed all pieces, then take all texts."""
    answer = answer or StreamedAnswer()
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    return list(iter(answer.take, None))


def read_until_error(*pieces: bytes) -> tuple[list[str], PenstockError]:
    answer = StreamedAnswer()
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    texts = []
    try:
        for text in iter(answer.take, None):
            texts.append(text)  # noqa: PERF402 - keep the texts before an error
    except PenstockError as error:
        return texts, error
    raise AssertionError(f"ended quietly after {texts}")


def test_an_answer_is_its_texts_and_then_its_figures() -> None:
    answer = StreamedAnswer()
    answer.feed(delta(0, "Hé"))
    assert answer.text == ""
    assert answer.take() == "Hé"
    assert answer.text == "Hé"
    answer.feed(delta(1, "llo 👋") + frame(**FINISH))
    assert answer.take() == "llo 👋"
    assert answer.take() is None
    assert answer.text == "Héllo 👋"
    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(4, 2)
    assert answer.usage.total_tokens == 6
    assert answer.timings == Timings(0.1, 0.2, 0.5, 40.5)


def test_an_answer_waits_for_bytes_only_while_it_has_nothing_to_give() -> None:
    answer = StreamedAnswer()
    waiting = [answer.is_waiting]
    answer.feed(delta(0, "a")[:-1])
    waiting.append(answer.is_waiting)
    answer.feed(b"\n")
    waiting.append(answer.is_waiting)
    answer.take()
    waiting.append(answer.is_waiting)
    answer.end()
    waiting.append(answer.is_waiting)
    assert waiting == [True, True, False, True, False]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_answer_cut_anywhere_is_the_same(newline: bytes) -> None:
    stream = WHOLE.replace(b"\n", newline)
    expected = ["Hé", "llo 👋"]
    assert read(*(stream[n : n + 1] for n in range(len(stream)))) == expected
    for n in range(len(stream)):
        assert read(stream[:n], stream[n:]) == expected


def test_an_answer_cut_short_anywhere_raises_and_keeps_its_text() -> None:
    for n in range(len(WHOLE) - 1):
        texts, error = read_until_error(WHOLE[:n])
        assert isinstance(error, CutStreamError)
        assert error.text == "".join(texts)
        assert error.num_deltas == len(texts)
        assert texts == ["Hé", "llo 👋"][: len(texts)]


def test_comments_and_named_events_may_come_anywhere() -> None:
    noise = b": ping\n\n:\n\nevent: queue\ndata: {}\n\nretry: 5\n\nid: 3\n\n"
    frames = [delta(0, "a"), delta(1, "b"), frame(**FINISH)]
    assert read(noise, *(each + noise for each in frames)) == ["a", "b"]


def test_fields_of_a_later_server_are_tolerated() -> None:
    odd = {**FINISH, "id": "x", "usage": {**FINISH["usage"], "cached": 1}}  # type: ignore[dict-item]
    stream = frame(token="a", index=0, finished=False, ids=[1, 2], logprobs=None)
    odd["finish_reason"] = "deadline"
    odd["index"] = 1
    answer = StreamedAnswer()
    assert read(stream + frame(**odd), answer=answer) == ["a"]
    assert answer.finish_reason == "deadline"


def test_a_terminal_event_without_figures_is_an_end() -> None:
    answer = StreamedAnswer()
    assert read(delta(0, "a") + frame(token="", index=1, finished=True), answer=answer) == ["a"]
    assert (answer.finish_reason, answer.usage, answer.timings) == (None, None, None)


def test_figures_may_be_unknown() -> None:
    timings = {"queue_time": 0, "time_to_first_token": None, "total_time": 1}
    answer = StreamedAnswer()
    end = {**FINISH, "index": 0, "timings": {**timings, "tokens_per_second": None}}
    assert read(frame(**end), answer=answer) == []
    assert answer.timings == Timings(0.0, None, 1.0, None)


def test_a_lost_event_raises_after_the_texts_before_it() -> None:
    texts, error = read_until_error(delta(0, "a") + delta(2, "c") + frame(**FINISH))
    assert texts == ["a"]
    assert isinstance(error, CutStreamError)
    assert "event 2 arrived instead of event 1" in str(error)
    assert (error.text, error.num_deltas) == ("a", 1)


@pytest.mark.parametrize("index", [1, 3])
def test_a_terminal_event_that_counts_otherwise_raises(index: int) -> None:
    texts, error = read_until_error(TWO + frame(**{**FINISH, "index": index}))
    assert len(texts) == 2
    assert isinstance(error, CutStreamError)


def test_an_error_of_the_server_raises_with_all_it_said() -> None:
    problem = {"code": "engine_died", "message": "The engine stopped.", "retry_safe": True}
    end = {**FINISH, "finish_reason": "error", "error": problem}
    texts, error = read_until_error(TWO + frame(**end))
    assert texts == ["Hé", "llo 👋"]
    assert isinstance(error, FailedStreamError)
    assert (error.code, error.message, error.retry_safe) == tuple(problem.values())
    assert str(error) == "The engine stopped."
    assert (error.text, error.num_deltas) == ("Héllo 👋", 2)
    assert error.usage == Usage(4, 2)


def test_an_error_without_words_is_still_an_error() -> None:
    _, error = read_until_error(frame(finished=True, finish_reason="error"))
    assert isinstance(error, FailedStreamError)
    assert not error.retry_safe


@pytest.mark.parametrize(
    "data",
    [
        b"[DONE]",
        b"{}",
        b"null",
        b'{"finished":1}',
        b'{"token":3,"finished":false}',
        b'{"finished":true,"usage":{}}',
        b"\xff",
    ],
)
def test_an_event_of_another_form_raises(data: bytes) -> None:
    texts, error = read_until_error(delta(0, "a") + b"data: " + data + b"\n\n" + delta(1, "b"))
    assert texts == ["a"]
    assert isinstance(error, UnexpectedAnswerError)


def test_a_line_without_end_is_refused() -> None:
    _, error = read_until_error(b"data: " + b"x" * 2_000_000)
    assert isinstance(error, UnexpectedAnswerError)
    assert "more than 1048576 bytes" in str(error)


def test_nothing_after_the_terminal_event_counts() -> None:
    answer = StreamedAnswer()
    assert read(WHOLE + delta(7, "more") + b"data: nonsense\n\n", answer=answer) == ["Hé", "llo 👋"]
    assert answer.finish_reason == "stop"


def test_an_error_is_raised_again_and_an_end_stays_an_end() -> None:
    answer = StreamedAnswer()
    answer.end()
    for _ in range(2):
        with pytest.raises(CutStreamError):
            answer.take()
    answer = StreamedAnswer()
    answer.feed(WHOLE)
    assert list(iter(answer.take, None)) == ["Hé", "llo 👋"]
    assert answer.take() is None


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8), st.data()
)
def test_any_texts_cut_anywhere_come_back_equal(texts: list[str], data: st.DataObject) -> None:
    frames = [delta(n, text) for n, text in enumerate(texts)]
    stream = b"".join([*frames, frame(**{**FINISH, "index": len(texts)})])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=9))
    places = [0, *sorted(cuts), len(stream)]
    assert read(*(stream[a:b] for a, b in itertools.pairwise(places))) == texts


# --- requests


def test_a_request_contains_the_given_options_and_nothing_else() -> None:
    assert json.loads(request_body("Hi", {}, stream=True)) == {"prompt": "Hi", "stream": True}
    assert json.loads(request_body("", {"seed": None, "top_k": 0}, stream=False)) == {
        "prompt": "",
        "top_k": 0,
        "stream": False,
    }
    messages = [{"role": "user", "content": "Hé"}]
    assert json.loads(
        request_body(None, {"messages": messages, "stop": ("a", "b")}, stream=True)
    ) == {
        "messages": messages,
        "stop": ["a", "b"],
        "stream": True,
    }


def test_one_stop_string_is_a_list_of_one() -> None:
    assert json.loads(request_body("Hi", {"stop": "\n\n"}, stream=True))["stop"] == ["\n\n"]


def test_a_prompt_or_messages_are_needed_and_not_both() -> None:
    for prompt, messages in ((None, None), ("Hi", [{"role": "user", "content": "Hi"}])):
        with pytest.raises(TypeError, match="give either a prompt or messages"):
            request_body(prompt, {"messages": messages}, stream=True)


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(TypeError, match="unknown option 'max_token'; did you mean 'max_tokens'"):
        request_body("Hi", {"max_token": 3}, stream=True)  # type: ignore[typeddict-unknown-key]


def test_half_a_character_cannot_be_sent() -> None:
    with pytest.raises(
        ValueError, match="the text contains a lone surrogate, which is half a character"
    ):
        request_body("\ud83d", {}, stream=True)


# --- refusals


def test_problem_details_become_an_error_with_all_their_fields() -> None:
    problem = {
        "type": "about:blank",
        "title": "Invalid field",
        "status": 422,
        "detail": "max_tokens must be at least 1.",
        "code": "out_of_range",
        "errors": [{"field": "max_tokens", "message": "must be at least 1", "code": "low"}],
    }
    error = refusal(422, "Unprocessable Content", json.dumps(problem).encode())
    assert (error.status, error.code) == (422, "out_of_range")
    assert str(error) == error.detail == "max_tokens must be at least 1."
    assert error.errors == (InvalidField("max_tokens", "must be at least 1"),)


@pytest.mark.parametrize(
    "content",
    [b"<h1>Bad Gateway</h1>", b"", b"\xff\xfe", b"[]", b'"no"', b'{"errors":3}', b"{}"],
)
def test_an_error_page_of_anybody_is_a_refusal_too(content: bytes) -> None:
    error = refusal(502, "Bad Gateway", content)
    assert (error.status, error.code, error.errors) == (502, None, ())
    assert str(error) == "the server answered 502 Bad Gateway"


def test_a_whole_answer_must_be_json_of_the_right_shape() -> None:
    good = b'{"text":"a","usage":{"prompt_tokens":1,"completion_tokens":2},"request_time":0.5}'
    assert decode_json("application/json; charset=utf-8", good, Completion).usage == Usage(1, 2)
    for content_type, content in (
        ("text/html", good),
        ("", good),
        ("application/json", b"<html>"),
        ("application/json", b'{"text":"a"}'),
    ):
        with pytest.raises(UnexpectedAnswerError):
            decode_json(content_type, content, Completion)
