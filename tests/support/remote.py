"""The remote engine in the test's own process, in front of upstreams of a test."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from penstock.engine.remote.engine import Remote
from penstock.request import Request, Sampling
from tests.support.fake_upstream import FakeUpstream
from tests.support.recording import RecordingSink

FIRST = 1_000_000.0
"""The weight of an upstream that gets a request first: the greatest that there is.

Which upstream is the first for a prompt depends on the ports: it is chance. Beside an upstream of
weight 1, this one is not the first for one prompt in a million. With a weight of 1000 it was one in
a thousand, too often for so many tests.
"""


@contextlib.asynccontextmanager
async def remote(*upstreams: FakeUpstream, **options: Any) -> AsyncIterator[Remote]:
    """Yield the engine in front of these upstreams, which the test has opened."""
    tables = [{"url": each.url, "weight": each.weight} for each in upstreams]
    engine = Remote(upstreams=tables, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def ask(engine: Remote, name: str, max_tokens: int, **fields: Any) -> RecordingSink:
    """Submit a request, of three words unless the test says otherwise."""
    values: dict[str, Any] = {"prompt": "one two three", "sampling": Sampling(0.0), **fields}
    sink = RecordingSink()
    engine.submit(Request(name, max_tokens, **values), sink)
    return sink


def text_from(first: int, number: int) -> str:
    """Return the text of `number` tokens of a fake upstream from the place `first` on."""
    return "".join(f"{place} " for place in range(first, first + number))


@contextlib.contextmanager
def logged(text: str) -> Iterator[asyncio.Event]:
    """Yield an event that is set once the log has a line with this text."""
    event = asyncio.Event()

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                event.set()

    handler = Waiting()
    logger = logging.getLogger("penstock")
    logger.addHandler(handler)
    try:
        yield event
    finally:
        logger.removeHandler(handler)
