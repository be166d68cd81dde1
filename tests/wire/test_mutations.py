"""Damaged requests: whatever the bytes are, the answers are whole and the connection ends.

The requests are those of the tables, each with a few random changes. A number is the whole of a
test's randomness, so a failure can be run again.
"""

import asyncio
import random

import pytest

from tests.wire.case import CONCURRENT, MARKER, answers_in, get
from tests.wire.ends import End
from tests.wire.test_cases import CASES

NUM_MUTANTS = 600
NUM_AT_ONCE = 200
# A longer head would only test the limit of its size.
BASES = [each.sent for each in CASES.values() if len(each.sent) < 2000 and b"HEAD" not in each.sent]
SPECIAL = [b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"-", b"\xff", b"%"]
WORDS = [
    *(b"\r\n\r\n", b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
    *(b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"GET /inner HTTP/1.1\r\n", b"ffffffff\r\n"),
]


def changed(sent: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one change."""
    start = chance.randrange(len(sent) + 1)
    end = min(len(sent), start + chance.randint(1, 20))
    ways = [
        sent[:start] + bytes([chance.randrange(256)]) + sent[start + 1 :],
        sent[:start] + chance.choice(SPECIAL) + sent[start:],
        sent[:start] + chance.choice(SPECIAL) + sent[start + 1 :],
        sent[:start] + chance.choice(WORDS) + sent[start:],
        sent[:start] + sent[end:],
        sent[:end] + sent[start:],
        sent[:start] + chance.choice(BASES)[start:],
        sent[:start],
    ]
    return chance.choice(ways)


def mutant(number: int) -> bytes:
    chance = random.Random(number)
    sent = chance.choice(BASES)
    for _ in range(chance.randint(1, 3)):
        sent = changed(sent, chance)
    return sent


async def wrong_about(number: int, end: End, free: asyncio.Semaphore) -> str:
    """Send a damaged request; return what was wrong about the answers, if anything."""
    async with free, end.connect() as wire:
        try:
            await wire.send(mutant(number) + MARKER).until_closed()
            statuses = [answer.status for answer in answers_in(wire.received)]
        except (AssertionError, OSError) as error:  # TimeoutError is an OSError
            return f"{number}: {type(error).__name__}: {error}"
    return f"{number}: {statuses}" if {500, 502, 503, 504} & set(statuses) else ""


# Different numbers at each end and in each part, so that more of them are tried.
@pytest.mark.parametrize("part", range(NUM_MUTANTS // NUM_AT_ONCE))
async def test_a_damaged_request_gets_whole_answers_and_an_end(end: End, part: int) -> None:
    first = part * NUM_AT_ONCE + (0 if end.is_own else NUM_MUTANTS)
    free = asyncio.Semaphore(4 * CONCURRENT)
    numbers = range(first, first + NUM_AT_ONCE)
    wrong = await asyncio.gather(*(wrong_about(number, end, free) for number in numbers))
    if not end.is_own:  # it may keep a connection whose body is not whole (faults.md, C1)
        wrong = [each for each in wrong if "TimeoutError" not in each]
    assert [each for each in wrong if each] == []
    async with end.connect() as wire:
        assert (await wire.send(get()).answer()).status == 200
