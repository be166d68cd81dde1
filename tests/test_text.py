"""For every chunking, UTF-8 split and stop string, the deltas equal the whole answer."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text import Text

T = TypeVar("T", str, bytes)


def whole(answer: str, stop: Sequence[str]) -> str:
    """Return the whole answer up to the first stop string: the rule that the deltas must match."""
    places = [answer.find(each) for each in stop if each in answer]
    return answer[: min(places)] if places else answer


def beginning(text: str, stop: Sequence[str]) -> str:
    """Return the longest suffix of the text that is a proper prefix of a stop string."""
    beginnings = [each[:n] for each in stop for n in range(len(each))]
    return max((each for each in beginnings if text.endswith(each)), key=len, default="")


def stream(pieces: Iterable[str | bytes], stop: Sequence[str] = ()) -> str:
    text = Text(stop)
    return "".join([*map(text.push, pieces), text.flush()])


def every_split(answer: T) -> Iterator[list[T]]:
    """Yield every way to cut the answer into pieces that are not empty."""
    here: tuple[bool, ...]
    for here in itertools.product((False, True), repeat=max(len(answer) - 1, 0)):
        places = [0, *(n for n, is_cut in enumerate(here, 1) if is_cut), len(answer)]
        yield [answer[a:b] for a, b in itertools.pairwise(places)]


# Few letters, so that stop strings overlap, repeat and contain each other; characters of one to
# four bytes; a combining accent; a family of emoji joined by U+200D.
letters = st.sampled_from(
    [*"aaabbc", "\n", "é", "e\u0301", "\u0301", "€", "😀", "👩‍👩‍👧", "\u200d"]
)
answers = st.lists(letters, max_size=30).map("".join)
stops = st.lists(st.lists(letters, min_size=1, max_size=5).map("".join), max_size=4)


@st.composite
def cut(draw: st.DrawFn, source: st.SearchStrategy[T]) -> list[T]:
    """Draw something, and cut it into pieces, some of them empty."""
    answer = draw(source)
    cuts: list[int] = draw(st.lists(st.integers(0, len(answer)), max_size=len(answer) + 2))
    return [answer[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(answer)])]


# --- stop strings


@given(cut(answers), stops)
@example(["a", "b", "c"], ["abcd", "b"])
@example(["abcabcabd"], ["abcabd"])
def test_deltas_equal_the_whole_answer_for_every_chunking(
    pieces: list[str], stop: list[str]
) -> None:
    text = Text(stop)
    deltas = [text.push(piece) for piece in pieces]
    deltas.append(text.flush())
    answer = "".join(pieces)
    assert "".join(deltas) == whole(answer, stop)
    assert text.stopped == any(each in answer for each in stop)
    assert text.held == ""


@given(cut(answers), stops)
def test_nothing_is_held_but_the_longest_beginning_of_a_stop_string(
    pieces: list[str], stop: list[str]
) -> None:
    text = Text(stop)
    seen = sent = ""
    for piece in pieces:
        seen += piece
        sent += text.push(piece)
        if text.stopped:
            assert sent == whole(seen, stop)
            assert text.held == ""
        else:
            assert sent + text.held == seen
            assert text.held == beginning(seen, stop)


@given(answers, stops)
def test_the_answer_stops_as_soon_as_its_end_is_certain(answer: str, stop: list[str]) -> None:
    text = Text(stop)
    for n, char in enumerate(answer, 1):
        text.push(char)
        seen = answer[:n]
        end = len(whole(seen, stop))
        can_still_move = n - len(beginning(seen, stop)) < end
        assert text.stopped == (end < n and any(s in seen for s in stop) and not can_still_move)
        if text.stopped:
            break


@pytest.mark.parametrize(
    ("answer", "stop"),
    [
        ("one\n\ntwo", ["\n\n"]),
        ("one\n\n\ntwo", ["\n\n"]),
        ("aabaabaac", ["aabaac"]),
        ("abcx", ["abcd", "b"]),
        ("abcd", ["abcd", "b"]),
        ("abcabcd", ["abcd", "bca", "ca"]),
        ("abab", ["ab", "abab", "b"]),
        ("xaaab", ["aab", "aaaa"]),
        ("a.b", ["."]),
        ("ab", ["a"]),
        ("ab", ["b"]),
        ("ab", ["abc"]),
        ("né\u0301e\u0301", ["e\u0301"]),
        ("ok 👩‍👩‍👧 end", ["👩‍👧"]),
        ("😀😁", ["😁"]),
        ("User: hi", ["User:", "us", "hi"]),
        ("", ["a"]),
    ],
)
def test_every_split_of_an_example_gives_the_same_answer(answer: str, stop: list[str]) -> None:
    expected = whole(answer, stop)
    for pieces in every_split(answer):
        assert stream(pieces, stop) == expected, pieces
    for bytes_pieces in every_split(answer.encode()) if len(answer.encode()) < 13 else ():
        assert stream(bytes_pieces, stop) == expected, bytes_pieces


def test_a_stop_that_may_still_begin_earlier_is_waited_for() -> None:
    text = Text(["abcd", "b"])
    assert [text.push(char) for char in "abc"] == ["", "", ""]
    assert (text.held, text.stopped) == ("abc", False)
    assert text.push("d") == ""
    assert text.stopped

    text = Text(["abcd", "b"])
    assert [text.push(char) for char in "abcx"] == ["", "", "", "a"]
    assert text.stopped

    text = Text(["abcd", "b"])
    text.push("abc")
    assert text.flush() == "a"
    assert text.stopped


def test_of_two_stops_at_the_same_place_the_shorter_decides_at_once() -> None:
    text = Text(["\n\nUser", "\n\n"])
    assert text.push("Yes.\n") == "Yes."
    assert not text.stopped
    assert text.push("\n") == ""
    assert text.stopped


def test_nothing_comes_after_a_stop() -> None:
    text = Text(["."])
    assert text.push("End. More.") == "End"
    assert text.stopped
    assert text.push("More") == ""
    assert text.push(b"More") == ""
    assert text.flush() == ""


def test_flush_releases_held_text_once() -> None:
    text = Text(["<end>"])
    assert text.push("half <en") == "half "
    assert text.held == "<en"
    assert text.flush() == "<en"
    assert text.flush() == ""
    assert not text.stopped


def test_without_stop_strings_a_piece_is_passed_on_itself() -> None:
    text = Text()
    piece = "some token"
    assert text.push(piece) is piece
    assert text.flush() == ""
    assert not text.stopped


def test_a_piece_in_which_no_stop_string_begins_is_passed_on_itself() -> None:
    piece = "some token"
    assert Text(["\n\n", "###"]).push(piece) is piece


@pytest.mark.parametrize("stop", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stop: list[str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Text(stop)


def test_one_string_is_not_taken_for_a_sequence_of_letters() -> None:
    with pytest.raises(TypeError, match="not one string"):
        Text("stop")


# --- bytes

unruly_bytes = st.lists(
    st.one_of(
        st.sampled_from([*"aé€😀", "\ufffd", "\ufeff"]).map(str.encode),
        # Bytes where the rules of UTF-8 change: overlong forms, surrogates, beyond U+10FFFF, tails.
        st.sampled_from(
            [bytes([b]) for b in b"\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xe0\xed\xf0\xf4\xff"]
        ),
        st.binary(max_size=3),
    ),
    max_size=12,
).map(b"".join)


@given(cut(unruly_bytes))
def test_bytes_cut_anywhere_decode_as_the_whole_does(pieces: list[bytes]) -> None:
    assert stream(pieces) == b"".join(pieces).decode("utf-8", "replace")


@given(cut(unruly_bytes), stops)
def test_bytes_and_stop_strings_together_equal_the_whole_answer(
    pieces: list[bytes], stop: list[str]
) -> None:
    answer = b"".join(pieces).decode("utf-8", "replace")
    assert stream(pieces, stop) == whole(answer, stop)


@given(cut(answers.map(str.encode)))
def test_nothing_is_held_of_bytes_but_one_incomplete_character(pieces: list[bytes]) -> None:
    text = Text()
    seen, sent = b"", ""
    for piece in pieces:
        seen += piece
        sent += text.push(piece)
        assert sent.encode() + text.incomplete == seen
        assert len(text.incomplete) <= 3


@pytest.mark.parametrize("answer", ["é€😀", "a\u0301👩‍👧"])
def test_a_delta_never_splits_a_character(answer: str) -> None:
    for pieces in every_split(answer.encode()):
        text = Text()
        deltas = [text.push(piece) for piece in pieces]
        assert "\ufffd" not in "".join(deltas)
        assert "".join(deltas) == answer


def test_an_incomplete_character_at_the_end_becomes_one_replacement() -> None:
    text = Text()
    assert text.push(b"5 \xe2\x82") == "5 "
    assert text.incomplete == b"\xe2\x82"
    assert text.flush() == "\ufffd"
    assert text.incomplete == b""


def test_a_replacement_made_by_flush_can_complete_a_stop_string() -> None:
    text = Text(["b\ufffd"])
    assert text.push(b"ab\xf0\x9f") == "a"
    assert text.flush() == ""
    assert text.stopped


@given(st.lists(st.one_of(answers, unruly_bytes), max_size=8), stops)
@example([b"\xc2", "", b"\x80"], [])  # a token without text, in the middle of a character
def test_text_may_come_as_str_and_bytes_in_turn(pieces: list[str | bytes], stop: list[str]) -> None:
    as_bytes = b"".join(p.encode() if isinstance(p, str) else p for p in pieces)
    assert stream(pieces, stop) == whole(as_bytes.decode("utf-8", "replace"), stop)


# --- cost


def seconds(work: Callable[[], object]) -> float:
    """Return the shortest of three runs, because noise only adds time."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("char", "stop"),
    [
        ("a", ["a" * 500 + "b", "a" * 400 + "c", "a" * 300 + "d", "a" * 200 + "e"]),
        ("ab", ["ab" * 300 + "c", "ba" * 300 + "c"]),
        ("\n", ["\n" * 1000]),
    ],
    ids=["repeats", "alternates", "newlines"],
)
def test_work_grows_linearly_with_an_answer_made_to_hurt(char: str, stop: list[str]) -> None:
    def run(count: int) -> None:
        text = Text(stop)
        for _ in range(count):
            text.push(char)

    assert seconds(lambda: run(20_000)) < 10 * seconds(lambda: run(5_000)) + 0.02


@given(cut(answers), stops)
def test_the_stop_string_that_ended_the_answer_is_known(pieces: list[str], stop: list[str]) -> None:
    text = Text(stop)
    said = "".join([*map(text.push, pieces), text.flush()])
    assert (text.stopped_by is not None) == text.stopped
    if text.stopped_by is not None:
        rest = "".join(pieces)[len(said) :]
        assert text.stopped_by == min((each for each in stop if rest.startswith(each)), key=len)
