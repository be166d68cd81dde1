"""The parser follows the WHATWG specification, wherever the network cuts the bytes."""

import itertools
import json
import sys

import pytest
import sseclient
from hypothesis import given
from hypothesis import strategies as st

from penstock.sse import OversizeEventError, Parser, ServerSentEvent


def parse(*pieces: bytes) -> list[ServerSentEvent]:
    parser = Parser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    parser.close()
    return events


def feed_each(parser: Parser, pieces: list[bytes]) -> None:
    for piece in pieces:
        parser.feed(piece)


def data(*pieces: bytes) -> list[str]:
    return [event.data for event in parse(*pieces)]


E = ServerSentEvent

# The examples of the specification, in its order, with the events that its text names.
EXAMPLES = {
    "untyped": (
        b"data: This is the first message.\n\n"
        b"data: This is the second message, it\ndata: has two lines.\n\n"
        b"data: This is the third message.\n\n",
        [
            E("This is the first message."),
            E("This is the second message, it\nhas two lines."),
            E("This is the third message."),
        ],
    ),
    "typed": (
        b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
        [E("73857293", "add"), E("2153", "remove"), E("113411", "add")],
    ),
    "stock": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [E("YHOO\n+2\n10")]),
    "four blocks": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
        b"data:  third event\n\n",
        [E("first event", id="1"), E("second event"), E(" third event")],
    ),
    "four blocks, the last one open": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
        b"data:  third event\n",
        [E("first event", id="1"), E("second event")],
    ),
    "data without value": (b"data\n\ndata\ndata\n\ndata:", [E(""), E("\n")]),
    "one space": (b"data:test\n\ndata: test\n\n", [E("test"), E("test")]),
}


@pytest.mark.parametrize(("body", "events"), EXAMPLES.values(), ids=EXAMPLES.keys())
@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_an_example_of_the_specification_cut_anywhere(
    body: bytes, events: list[ServerSentEvent], newline: bytes
) -> None:
    body = body.replace(b"\n", newline)
    assert parse(body) == events
    assert parse(*(body[n : n + 1] for n in range(len(body)))) == events
    for n in range(len(body) + 1):
        assert parse(body[:n], body[n:]) == events, n


@pytest.mark.parametrize(
    "body", [b"data: a\r\n\r\ndata: b\n\rdata: c\r\r", "data: é€😀\n\n".encode()]
)
def test_a_small_body_in_every_two_cuts(body: bytes) -> None:
    expected = parse(body)
    for a, b in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        assert parse(body[:a], body[a:b], b"", body[b:]) == expected


# --- lines


def test_line_ends_may_be_mixed() -> None:
    assert data(b"data: a\n\ndata: b\r\rdata: c\r\n\r\ndata: d\r\ndata: e\n\r\n") == [
        *("a", "b", "c"),
        "d\ne",
    ]


def test_an_event_ended_by_cr_does_not_wait_for_a_line_feed() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\r\r") == [E("a")]
    assert parser.feed(b"\ndata: b\r\n\r") == [E("b")]


def test_only_cr_and_lf_end_a_line() -> None:
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\0h"
    assert data(f"data: {text}\n\n".encode()) == [text]


def test_one_byte_order_mark_at_the_very_start_is_ignored() -> None:
    bom = b"\xef\xbb\xbf"
    for n in range(4):
        body = bom + b"data: a\n\n" + bom + b"data: b\n\ndata: " + bom + b"c\n\n"
        assert data(body[:n], body[n:]) == ["a", "\ufeffc"]
    assert data(bom + bom + b"data: a\n\n") == []
    assert data(bom + b"\n\ndata: a\n\n") == ["a"]


def test_invalid_utf8_becomes_u_fffd() -> None:
    assert data(b"data: a\xffb\xe2\x82\n\n") == ["a\ufffdb\ufffd"]


def test_a_character_may_be_cut() -> None:
    body = "data: 👩‍👩‍👧é\n\n".encode()
    assert data(*(body[n : n + 1] for n in range(len(body)))) == ["👩‍👩‍👧é"]


# --- fields


def test_a_comment_is_nothing_wherever_it_stands() -> None:
    body = b":\n: ping\n\n:data: no\ndata: a\n:\ndata: b\n: \n\n: ping\n\n"
    assert parse(body) == [E("a\nb")]


def test_a_block_without_data_fires_nothing_even_after_an_id() -> None:
    """httpx-sse 0.4.3 and the OpenAI SDK emit an empty event for each keep-alive here.

    After any id, they dispatch an event at each blank line. The specification requires data.
    """
    assert parse(b"id: 1\ndata: a\n\n: ping\n\n: ping\n\n") == [E("a", id="1")]
    assert parse(b"event: x\n\nid: 2\n\nretry: 5\n\ndata: a\n\n") == [E("a", id="2")]


def test_field_names_are_exact() -> None:
    body = b"Data: a\n data: b\ndata : c\ndatax: d\n\xef\xbb\xbfdata: e\nunknown\ndata: f\n\n"
    assert data(body) == ["f"]


def test_one_leading_space_of_a_value_is_dropped_and_no_more() -> None:
    assert data(b"data:\ta\n\n", b"data:  b \n\n", b"data: : c:d\n\n") == ["\ta", " b ", ": c:d"]


def test_the_type_holds_for_one_event_and_an_empty_one_is_message() -> None:
    assert parse(b"event: a\nevent: b\ndata: 1\n\ndata: 2\n\nevent: x\nevent:\ndata: 3\n\n") == [
        E("1", "b"),
        E("2"),
        E("3"),
    ]


def test_an_id_holds_until_another_one_comes() -> None:
    assert [e.id for e in parse(b"id: 1\ndata\n\ndata\n\nid: 2\ndata\n\nid:\ndata\n\n")] == [
        *("1", "1"),
        *("2", ""),
    ]


def test_an_id_with_a_nul_is_ignored() -> None:
    assert [e.id for e in parse(b"id: 1\nid: 2\0\ndata\n\nid: \0\ndata\n\n")] == ["1", "1"]


def test_the_last_event_id_is_that_of_a_complete_block() -> None:
    parser = Parser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\nid: 3\n\n")
    assert parser.last_event_id == "3"
    parser.feed(b"id: 4\n")
    parser.close()
    assert parser.feed(b"data: c\n\n") == [E("c", id="3")]


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [
        (b"1500", 1500),
        (b"0", 0),
        (b"007", 7),
        (b"", None),
        (b"-1", None),
        (b"1.5", None),
        (b"1e3", None),
        (b" 12", None),
        (b"12x", None),
        (b"1_000", None),
        ("١٢".encode(), None),
        (b"9" * 5000, None),
    ],
)
def test_retry_takes_ascii_digits_only(value: bytes, retry_ms: int | None) -> None:
    parser = Parser()
    parser.feed(b"retry: " + value + b"\n\n")
    assert parser.retry_ms == retry_ms


# --- the end and the limits


@pytest.mark.parametrize("end", [b"", b"data: b", b"data: b\n", b"id: 1\nevent: x\ndata: b\n"])
def test_an_event_without_a_blank_line_is_dropped(end: bytes) -> None:
    assert parse(b"data: a\n\n" + end) == [E("a")]


def test_a_line_of_the_limit_is_taken_and_a_longer_one_refused() -> None:
    assert [e.data for e in Parser(10).feed(b"data: 6789\n\n")] == ["6789"]
    for body in (b"data: 67890\n\n", b":" + b"x" * 10, b"y" * 11):
        with pytest.raises(OversizeEventError, match="more than 10 bytes"):
            Parser(10).feed(body)
        with pytest.raises(OversizeEventError, match="more than 10 bytes"):
            feed_each(Parser(10), [body[n : n + 1] for n in range(len(body))])


def test_an_event_of_many_lines_is_bounded_too() -> None:
    with pytest.raises(OversizeEventError):
        feed_each(Parser(100), [b"data: x\n"] * 1000)


def test_a_line_may_be_as_long_as_a_mebibyte_by_default() -> None:
    line = b"data: " + b"x" * (1024 * 1024 - 6)
    assert len(parse(line + b"\n\n")[0].data) == 1024 * 1024 - 6
    with pytest.raises(OversizeEventError):
        parse(line + b"x\n\n")


# --- other parsers, and random input

scalars = st.characters(exclude_categories=["Cs"])


@st.composite
def json_streams(draw: st.DrawFn) -> tuple[list[str], list[bytes]]:
    """Draw texts, and a stream cut anywhere that holds each text in one data line of JSON."""
    texts = draw(st.lists(st.text(scalars, max_size=20), max_size=5))
    keep = b": ping\n\n" if draw(st.booleans()) else b""
    ascii_only = draw(st.booleans())
    body = b"".join(
        keep + b"data: " + json.dumps(text, ensure_ascii=ascii_only).encode() + b"\n\n"
        for text in texts
    )
    cuts: list[int] = draw(st.lists(st.integers(0, len(body)), max_size=8))
    return texts, [body[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(body)])]


@given(json_streams())
def test_any_text_in_a_line_of_json_comes_back_equal(case: tuple[list[str], list[bytes]]) -> None:
    texts, pieces = case
    assert [json.loads(each) for each in data(*pieces)] == texts


lines = st.sampled_from(
    [
        *(b"data: a", b"data:b", b"data:  c", "data: é€😀".encode(), b"data: x:y"),
        *(
            b"data",
            b"data:",
            b": comment",
            b":",
            b"event: add",
            b"id: 7",
            b"unknown: x",
            b"",
            b"",
            b"",
        ),
    ]
)


@given(st.lists(lines, max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_sseclient_py_sees_the_same_events(body_lines: list[bytes], newline: bytes) -> None:
    """Compare data and type. sseclient-py forgets ids and emits an incomplete last event."""
    body = b"".join(line + newline for line in [*body_lines, b"", b""])
    theirs = [(event.data, event.event) for event in sseclient.SSEClient(iter([body])).events()]
    assert [(event.data, event.event) for event in parse(body)] == theirs


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_any_bytes_at_all_give_the_same_events_in_one_piece(pieces: list[bytes]) -> None:
    assert parse(*pieces) == parse(b"".join(pieces))


markup = st.sampled_from([b"data", b":", b" ", b"id", b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b"a"])


@given(st.lists(markup, max_size=30))
def test_any_markup_gives_the_same_events_in_one_piece(pieces: list[bytes]) -> None:
    assert parse(*pieces) == parse(b"".join(pieces))


def test_a_long_line_in_single_bytes_costs_no_more_than_its_length() -> None:
    parser = Parser(sys.maxsize)
    parser.feed(b"data: ")
    for _ in range(200_000):
        parser.feed(b"x")
    assert len(parser.feed(b"\n\n")[0].data) == 200_000
