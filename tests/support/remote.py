"""The remote engine in the test's own process, in front of upstreams of a test."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from penstock.engine.remote.engine import Remote
from penstock.request import Request, Sampling
from tests.support.fake_upstream import FakeUpstream
from tests.support.recording import RecordingSink


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
