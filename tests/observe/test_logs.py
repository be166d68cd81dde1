"""Every log record becomes exactly one bounded line, whatever its text is."""

import contextlib
import io
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.observe import logs
from penstock.observe.logs import (
    MAX_LINE_BYTES,
    MAX_LINES_WAITING,
    JsonFormatter,
    LineWriter,
    TextFormatter,
    logging_to,
    unbuffered,
)

HOSTILE = [
    "a\r\nINFO penstock.request: forged",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "nul\x00nul",
    "line\u2028paragraph\u2029next\x85end",
    "\u202egnp.exe",
    "half \ud800 of a pair",
    '"},{"level":"error',
    "x" * 1_000_000,
    "\U0001f600" * 1_000_000,
    "\x00" * 1_000_000,
]


def record_of(text: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("penstock.test", logging.INFO, "", 0, "%s", (text,), None)
    record.fields = {"field": text, **fields}
    return record


@settings(deadline=None)  # a busy machine may be slow
@given(st.text(st.characters()))
def test_any_text_in_json_is_one_bounded_line_that_reads_back(text: str) -> None:
    line = JsonFormatter().format(record_of(text))
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert entry["message"] == entry["field"] == text
    assert entry["level"] == "info"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_in_json_is_one_line_of_8_kib_at_most(text: str) -> None:
    line = JsonFormatter().format(record_of(text, another=text, numbers=list(range(100_000))))
    assert len(line) < MAX_LINE_BYTES
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert entry["message"][:5] == text[:5]
    assert {*entry} == {"time", "level", "logger", "message", "field", "another", "numbers"}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_for_people_is_one_printable_line_of_8_kib_at_most(text: str) -> None:
    line = TextFormatter().format(record_of(text))
    assert line.startswith("INFO penstock.test: ")
    assert len(line.encode()) < MAX_LINE_BYTES
    assert line.isprintable()


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_told_by_kind_and_place_and_never_by_its_words(
    formatter: logging.Formatter,
) -> None:
    def fails(prompt: str) -> None:
        raise KeyError(prompt)

    record = record_of("it failed")
    try:
        fails("my secret prompt")
    except KeyError as error:
        record.exc_info = (KeyError, error, error.__traceback__)
    text = formatter.format(record)
    assert "KeyError" in text
    assert "test_logs.py" in text
    assert "fails" in text
    assert "secret" not in text


def test_what_is_logged_is_written_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT_S", 60.0)  # a busy machine may need more than two
    stream = io.BytesIO()
    with logging_to(stream, "json"):
        for number in range(1000):
            logging.getLogger("penstock.test").info("%d", number)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [str(number) for number in range(1000)]


def test_after_a_log_its_process_shows_the_same_records_as_before() -> None:
    """Otherwise a test that looks at its own log would find more in it after another test."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), warnings.showwarning)
    with logging_to(io.BytesIO(), "text"):
        assert (root.level, warnings.showwarning) != (before[0], before[2])
    assert (root.level, list(root.handlers), warnings.showwarning) == before


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[BinaryIO, int]]:
    """Yield a stream whose other end nobody reads yet, and the descriptor of that end."""
    reading, writing = os.pipe()
    yield unbuffered(writing), reading
    os.close(writing)
    os.close(reading)


def test_a_log_that_nobody_reads_holds_nobody_up_and_says_what_was_lost() -> None:
    with full_pipe() as (stream, reading):
        writer = LineWriter(stream)
        writer.setFormatter(JsonFormatter())
        num_lines = MAX_LINES_WAITING + 5_000
        for _ in range(num_lines):
            writer.emit(record_of("x" * 100))
        text = b""
        reader = threading.Thread(target=writer.stop)
        reader.start()
        while b"were lost" not in text:
            text += os.read(reading, 65536)
        reader.join()
    lines = [json.loads(line) for line in text.splitlines()]
    told = next(line["message"] for line in lines if "were lost" in line["message"])
    assert int(told.split()[0]) + len(lines) - 1 == num_lines


def test_a_log_that_has_ended_is_flushed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each server would wait for nothing at its exit."""
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT_S", 60.0)
    writer = LineWriter(io.BytesIO())
    writer.stop()
    began = time.monotonic()
    writer.flush()
    assert time.monotonic() - began < 30


def test_a_log_on_a_full_disk_stops_nobody() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:  # noqa: PTH123 - a device
        writer = LineWriter(stream)
        writer.setFormatter(TextFormatter())
        for _ in range(10):
            writer.emit(record_of("x"))
        writer.stop()
