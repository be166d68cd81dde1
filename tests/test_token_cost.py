"""The cost of a token, as counts that noise cannot change.

A test that fails here means that the server now does more for each token. If it has to, raise the
bound, and say in docs/performance.md what the cost buys.
"""

import gc
import sys
from types import FrameType
from typing import Any

import pytest
import uvloop

from benchmarks.token_cost import Route, StreamLoad

NUM_STREAMS = 16
NUM_STEPS = 50

# Calls of Python and C functions, from the engine's delta to `send`.
MAX_CALLS = {"native": 34.0, "openai": 38.0}
# Objects that remain: the event and its text.
MAX_OBJECTS = 2.1


def sweep() -> None:
    """Let go of what earlier tests have left, also of what only its end sets free."""
    while gc.collect():
        pass


@pytest.mark.parametrize("route", ["native", "openai"])
def test_a_token_takes_no_more_calls_than_it_did(route: Route) -> None:
    num_calls = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    async def run() -> None:
        load = StreamLoad(NUM_STREAMS, route)
        await load.steps(2)
        sweep()
        sys.setprofile(count)
        await load.steps(NUM_STEPS)
        sys.setprofile(None)
        await load.end()

    uvloop.run(run())
    calls = num_calls / (NUM_STREAMS * NUM_STEPS)
    assert MAX_CALLS[route] / 2 < calls <= MAX_CALLS[route]


@pytest.mark.parametrize("route", ["native", "openai"])
def test_a_token_leaves_no_more_objects_than_its_event(route: Route) -> None:
    async def run() -> int:
        load = StreamLoad(NUM_STREAMS, route)
        await load.steps(2)
        sweep()
        before = sys.getallocatedblocks()
        await load.steps(NUM_STEPS)
        gc.collect()
        left = sys.getallocatedblocks() - before
        await load.end()
        return left

    objects = uvloop.run(run()) / (NUM_STREAMS * NUM_STEPS)
    assert 0.9 < objects <= MAX_OBJECTS
