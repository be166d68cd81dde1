"""Requests are sent on time, and latency counts from when they were due, on a simulated clock."""

import asyncio
import itertools
import selectors
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from penstock.bench.answer import TIMEOUT, UNFINISHED, MeasuredAnswer
from penstock.bench.figures import client_figures, percentiles
from penstock.bench.load import Run
from penstock.bench.plan import Load
from tests.support.bench_events import DONE, END, SSE, text

SERVICE_S = 0.005
PAUSE_S = 1.0


class _Skipping(selectors.SelectSelector):
    """A selector that advances a simulated clock and does not wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "every task waits, and no timer is set"
        self.now += timeout
        return super().select(0)


class Timeline(asyncio.SelectorEventLoop):
    """An event loop on a simulated clock, which advances only while the loop waits."""

    def __init__(self) -> None:
        self.selector = _Skipping()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now

    def block(self, seconds: float) -> None:
        """Advance the clock, as if a callback had blocked the loop."""
        self.selector.now += seconds


@pytest.fixture
def timeline() -> Iterator[Timeline]:
    loop = Timeline()
    yield loop
    loop.close()


class SimulatedServer:
    """A server that answers one request at a time, in 5 ms each.

    At the first request at or after `pause_at` seconds it pauses for 1 s, once.
    """

    def __init__(self, timeline: Timeline, pause_at: float = float("inf")) -> None:
        self._timeline = timeline
        self._pause_at = pause_at
        self._turn = asyncio.Lock()

    async def send(self, body: bytes, answer: MeasuredAnswer) -> None:
        async with self._turn:
            if self._timeline.time() >= self._pause_at:
                self._pause_at = float("inf")
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(SERVICE_S)
            now = self._timeline.time()
            answer.head(200, SSE)
            answer.piece(text() + END + DONE, now)
            answer.complete(now)


def play(
    timeline: Timeline,
    load: Load,
    send: Callable[[bytes, MeasuredAnswer], Awaitable[None]],
    timeout_s: float = 60.0,
) -> Run:
    run = Run(send, timeline.time, timeout_s)
    bodies = itertools.repeat(b"{}", load.num_requests or 10**6)
    timeline.run_until_complete(run.play(load, iter(bodies), seed=1))
    return run


def ttfts(run: Run) -> list[float]:
    return [answer.ttft_s for answer in run.answers if answer.ttft_s is not None]


def test_open_loop_counts_from_when_a_request_was_due_so_a_pause_shows(timeline: Timeline) -> None:
    load = Load(rate=100, arrivals="constant", num_requests=300)
    run = play(timeline, load, SimulatedServer(timeline, pause_at=1.0).send)
    found = percentiles(ttfts(run))
    assert found is not None
    # 100 requests were due in the second of the pause, and all of them waited for its end.
    assert found.p99 > 0.9 * PAUSE_S
    assert sum(ttft > PAUSE_S / 2 for ttft in ttfts(run)) >= 50
    assert found.p50 < PAUSE_S / 2


def test_closed_loop_asks_nothing_while_the_server_pauses(timeline: Timeline) -> None:
    """A closed loop hides a pause (coordinated omission); an open loop shows it."""
    load = Load(concurrency=1, num_requests=300)
    run = play(timeline, load, SimulatedServer(timeline, pause_at=1.0).send)
    assert sum(ttft > 2 * SERVICE_S for ttft in ttfts(run)) == 1


def test_a_client_that_was_held_up_is_late_and_says_so(timeline: Timeline) -> None:
    timeline.call_at(1.0, timeline.block, 0.5)
    load = Load(rate=100, arrivals="constant", num_requests=200)
    run = play(timeline, load, SimulatedServer(timeline).send)
    assert max(ttfts(run)) >= 0.5
    client = client_figures(run.answers, [], 0.1, 0.1, is_open=True)
    assert client.late_s is not None
    assert client.late_s.max == pytest.approx(0.5, abs=0.02)
    assert client.was_bottleneck
    # The client skips no requests to catch up.
    assert len(run.answers) == 200


def test_open_loop_does_not_wait_for_answers(timeline: Timeline) -> None:
    load = Load(rate=10, arrivals="constant", duration_s=2.0)
    run = play(timeline, load, SimulatedServer(timeline, pause_at=0.0).send)
    due = sorted(answer.intended - run.began for answer in run.answers)
    assert due == pytest.approx([n / 10 for n in range(20)])
    assert run.max_in_flight == 11  # the requests due in the first second, and one in service


def test_poisson_arrivals_have_the_rate_and_are_not_even(timeline: Timeline) -> None:
    load = Load(rate=50, num_requests=5000)
    times = [next(due) for due in [load.due_times(3)] for _ in range(5000)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.15)  # as of an exponential distribution
    assert times == list(itertools.islice(load.due_times(3), 5000))


def test_closed_loop_keeps_so_many_at_once(timeline: Timeline) -> None:
    async def send(body: bytes, answer: MeasuredAnswer) -> None:
        await SimulatedServer(timeline).send(body, answer)

    run = play(timeline, Load(concurrency=7, num_requests=100), send)
    assert len(run.answers) == 100
    assert run.max_in_flight == 7
    assert run.ended - run.began == pytest.approx(15 * SERVICE_S)  # 100 / 7, rounded up


def test_closed_loop_with_a_duration_waits_for_what_it_has_sent(timeline: Timeline) -> None:
    run = play(timeline, Load(concurrency=2, duration_s=1.0), SimulatedServer(timeline).send)
    assert all(answer.has_finished for answer in run.answers)
    assert run.ended - run.began >= 1.0


def test_a_request_that_takes_too_long_has_failed(timeline: Timeline) -> None:
    async def send(body: bytes, answer: MeasuredAnswer) -> None:
        await asyncio.sleep(1000)

    run = play(timeline, Load(concurrency=1, num_requests=2), send, timeout_s=3.0)
    assert [answer.failure for answer in run.answers] == [TIMEOUT, TIMEOUT]
    assert run.ended - run.began == pytest.approx(6.0)


@pytest.mark.parametrize("load", [Load(concurrency=3), Load(rate=100)])
def test_a_run_that_is_stopped_keeps_what_it_has(timeline: Timeline, load: Load) -> None:
    async def main() -> Run:
        run = Run(SimulatedServer(timeline, pause_at=1.0).send, timeline.time, 60.0)
        playing = asyncio.create_task(run.play(load, itertools.repeat(b"{}"), 1))
        timeline.call_at(1.5, playing.cancel)
        await asyncio.wait([playing])
        assert playing.cancelled()
        return run

    run = timeline.run_until_complete(main())
    finished = [answer for answer in run.answers if answer.has_finished]
    given_up = [answer for answer in run.answers if answer.failure == UNFINISHED]
    assert finished
    assert given_up
    assert len(finished) + len(given_up) == len(run.answers)
    assert not run.in_flight
    assert run.ended - run.began == pytest.approx(1.5)
