"""Nothing that a process does on its way out makes its obituary fail."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from penstock.children import manner_of
from penstock.engine.process.obituary import MAX_LINE_CHARACTERS, LastWords


def test_every_exit_status_has_a_name() -> None:
    names = {status: manner_of(status) for status in range(-256, 256)}
    assert names[0] == "exit code 0"
    assert names[255] == "exit code 255"
    assert names[-9] == "signal SIGKILL"
    assert names[-35] == "signal 35"  # a real-time signal without a name
    assert names[-200] == "signal 200"
    assert len(set(names.values())) == len(names)
    assert manner_of(None)


def words_of(data: bytes, size: int) -> LastWords:
    async def read() -> LastWords:
        words, stderr = LastWords(), asyncio.StreamReader()
        reading = asyncio.create_task(words.read(stderr))
        for at in range(0, len(data), size):
            stderr.feed_data(data[at : at + size])
            await asyncio.sleep(0)
        stderr.feed_eof()
        await reading
        return words

    return asyncio.run(read())


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_can_be_read(data: bytes, size: int) -> None:
    words_of(data, size).first_error()


def test_the_first_error_is_found_among_other_lines() -> None:
    data = b"INFO: fine\nValueError: the first\nRuntimeError: the second"
    assert words_of(data, 7).first_error() == "It says: ValueError: the first"


def test_a_line_without_an_end_is_cut() -> None:
    words = words_of(b"ValueError: " + b"x" * 8_000_000, 65_536)
    assert len(words.first_error()) <= MAX_LINE_CHARACTERS + 20
