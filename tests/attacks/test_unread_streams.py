"""The log of resumable streams that nobody reads to their end (fault D19)."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.honest import STEADY, honest_client
from tests.support.hurried import ENGINE, Hurry
from tests.support.raw import cancel_stream, generate, open_stream, resume
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

LONG = 1_000_000
UNHURRIED = {"engine": ENGINE, "engine_arg": ["interval=0.05", "length=1000"]}
"""The flags of a server whose answers last a minute, or until a test is in a hurry."""


def lines_of(server: RunningServer, stream_id: str) -> list[str]:
    return [line for line in list(server.output) if f"stream_id={stream_id}" in line]


def ends_of(server: RunningServer, stream_id: str) -> list[str]:
    """Return the finish reasons that the log has of a stream."""
    found = [re.search(r"finish_reason=(\w+)", line) for line in lines_of(server, stream_id)]
    return [each[1] for each in found if each is not None and each[1] != "null"]


@pytest.mark.parametrize(
    ("flags", "fields", "reason"),
    [
        (UNHURRIED, {"max_tokens": 2000}, "stop"),
        (UNHURRIED, {"max_tokens": 700}, "length"),
        ({**STEADY, "linger": 0.2}, {"max_tokens": LONG}, "cancelled"),
        (STEADY, {"max_tokens": LONG, "timeout": 5}, "deadline"),
    ],
)
def test_a_stream_that_ends_unread_has_one_line(
    tmp_path: Path, flags: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    hurry = Hurry(tmp_path / "hurry")
    if flags is UNHURRIED:
        flags = {**flags, "engine_arg": [hurry.argument, *flags["engine_arg"]]}
    with serve(**flags) as server:
        connection, stream_id = open_stream(server.port, generate(resumable=True, **fields))
        connection.chunk()
        connection.reset()
        scrape_until(server, lambda scrape: scrape("penstock_readers") == 0)
        hurry.now()
        assert eventually(lambda: ends_of(server, stream_id) == [reason])
        (line,) = [each for each in lines_of(server, stream_id) if "ended unread" in each]
        assert re.search(r"completion_tokens=\d+", line)


def test_each_of_many_streams_has_one_line_that_says_how_it_ended() -> None:
    with serve(**STEADY) as server, honest_client(server):
        read, first = open_stream(server.port, generate(resumable=True, max_tokens=5))
        with read:
            read.rest()
        left, second = open_stream(server.port, generate(resumable=True, max_tokens=20))
        left.reset()
        gone, third = open_stream(server.port, generate(max_tokens=LONG))
        gone.reset()
        ended, fourth = open_stream(server.port, generate(resumable=True, max_tokens=LONG))
        ended.reset()
        cancel_stream(server.port, fourth)
        assert eventually(lambda: ends_of(server, first) == ["length"])
        assert eventually(lambda: ends_of(server, second) == ["length"])
        assert eventually(lambda: ends_of(server, third) == ["cancelled"])
        assert resume(server.port, second).status == 200  # a later reader has a line of its own
        assert eventually(lambda: ends_of(server, second) == ["length", "length"])
        assert eventually(lambda: "cancelled" in ends_of(server, fourth))
