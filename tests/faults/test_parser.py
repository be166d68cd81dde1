"""The event-stream parser of the fault tests follows the standard."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.parser import EventParser, ServerSent

STREAM = (
    b"\xef\xbb\xbf: ping\nid: 0\ndata: one\n\n"
    b"retry: 250\r\nid:1\r\ndata:two\r\ndata: lines\r\n\r\n"
    b"event: named\rdata\r\r"
    b"id: 3\n\n"
    b"data:  a space\nDATA: not a field\nunknown: x\n\n"
    b"id: \0\nretry: 1s\ndata: same id\n\n"
    b"id\ndata: \xc3\xa9\xe2\x80\xa8\n\n"
    b"data: cut off"
)
EVENTS = [
    ServerSent(b"one", "0", "message"),
    ServerSent(b"two\nlines", "1", "message"),
    ServerSent(b"", "1", "named"),
    ServerSent(b" a space", "3", "message"),
    ServerSent(b"same id", "3", "message"),
    ServerSent("é\u2028".encode(), "", "message"),
]


def parsed(*pieces: bytes) -> tuple[EventParser, list[ServerSent]]:
    parser = EventParser()
    return parser, [event for piece in pieces for event in parser.feed(piece)]


def test_events_are_read_as_the_standard_says() -> None:
    parser, events = parsed(STREAM)
    assert events == EVENTS
    assert parser.retry_ms == 250
    assert parser.num_comments == 1


@pytest.mark.parametrize("size", range(1, 8))
def test_cutting_the_bytes_into_equal_pieces_changes_nothing(size: int) -> None:
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert parsed(*pieces)[1] == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cuts_change_nothing(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    assert parsed(*pieces)[1] == EVENTS


def test_an_event_without_its_blank_line_has_not_come() -> None:
    assert parsed(b"id: 5\ndata: x\n")[1] == []
    assert parsed(b"id: 5\ndata: x\n", b"\n")[1] == [ServerSent(b"x", "5", "message")]
