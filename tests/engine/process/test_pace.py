"""The pacer holds back what an engine pushes, in order, and forgets what was cancelled."""

import asyncio

import pytest

from penstock.engine.process.pace import Pacer
from penstock.engine.protocol import Sink
from tests.support.recording import RecordingSink


def push(sink: Sink, num_tokens: int) -> None:
    """Push a whole answer at once, as a fast engine does."""
    sink.accepted((1,))
    sink.started()
    for number in range(num_tokens):
        sink.delta(f"{number} ", 1, (number,))
    sink.finish("stop", num_tokens)


async def test_a_dropped_request_gets_nothing_more_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pacer = Pacer(200)
    dropped, kept = RecordingSink(), RecordingSink()
    loop = asyncio.get_running_loop()
    now = loop.time()
    with monkeypatch.context() as stopped:
        stopped.setattr(loop, "time", lambda: now)  # 5 ms later the second token would be due
        paced = pacer.paced("dropped", dropped)
        push(paced, 5)
        pacer.drop("dropped")
    paced.delta("late", 1, (9,))  # the step that the engine was working on
    paced.finish("stop", 6)
    push(pacer.paced("kept", kept), 10)
    await kept.end()  # all of the dropped request would have been due before
    assert kept.calls == ["accepted", "started", *["delta"] * 10, "finish"]
    assert dropped.calls == ["accepted", "started", "delta"]


async def test_without_a_pace_the_engine_gets_the_sink_itself() -> None:
    sink = RecordingSink()
    assert Pacer(0).paced("a", sink) is sink
