"""Sends ten times as many requests as the server has capacity for: goodput, refusals, memory.

The mock engine's answers take a known time (20 tokens of 20 ms, 8 slots), so its capacity is known.
It is also measured, with exactly as many clients as slots. Then requests come at a fixed rate, each
on its own connection, however fast the server answers.
"""

import asyncio
import time

import psutil

from benchmarks.admission.asking import TimedResponse, ask
from benchmarks.report import Figures, spread_ms
from tests.support.servers import RunningServer, serve

NUM_SLOTS = 8
NUM_TOKENS = 20
TOKEN_S = 0.02
MAX_QUEUE = 128
CAPACITY_S = 10.0


async def measure(times: float, seconds: float) -> Figures:
    """Send requests at `times` the capacity, for `seconds`."""
    with serve(
        engine="mock",
        mock_interval=TOKEN_S,
        slots=NUM_SLOTS,
        max_queue=MAX_QUEUE,
        engine_arg=["length=100000"],
    ) as server:
        capacity = await _capacity(server)
        rate = times * capacity
        sizes: list[float] = []
        memory = asyncio.create_task(_sample_memory(server, sizes))
        began = time.monotonic()
        running: set[asyncio.Task[TimedResponse]] = set()
        answers: list[tuple[float, TimedResponse]] = []

        def note(task: "asyncio.Task[TimedResponse]") -> None:
            running.discard(task)
            if not task.cancelled():
                answers.append((time.monotonic() - began, task.result()))

        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            task = asyncio.create_task(ask(server.port, max_tokens=NUM_TOKENS))
            running.add(task)
            task.add_done_callback(note)
        late = time.monotonic() - began - seconds
        memory.cancel()
        waiting = len(running)
        await asyncio.gather(*running)
    settled = [answer for at, answer in answers if 0.2 * seconds <= at <= seconds]
    done = [answer for answer in settled if answer.status == 200]
    refused = [answer for answer in settled if answer.status == 429]
    told = [int(answer.headers["retry-after"]) for answer in refused]
    goodput = len(done) / (0.8 * seconds)
    return {
        "capacity, answers/s": round(capacity, 1),
        "offered, requests/s": round(rate, 1),
        "sender behind its schedule, s": round(max(0.0, late), 2),
        "goodput, answers/s": round(goodput, 1),
        "goodput, share of capacity": round(goodput / capacity, 3),
        "refused": len(refused),
        "answered neither with 200 nor with 429": sum(
            answer.status not in (200, 429) for answer in settled
        ),
        "refusal": spread_ms([answer.seconds for answer in refused]),
        "Retry-After, s": [min(told, default=0), max(told, default=0)],
        "wait in line": spread_ms([answer.end["timings"]["queue_time"] for answer in done]),
        "in line at the end (at most)": waiting - NUM_SLOTS,
        "server's memory at a quarter, half, end, MiB": [
            sizes[len(sizes) // 4],
            sizes[len(sizes) // 2],
            sizes[-1],
        ],
    }


async def _sample_memory(server: RunningServer, sizes: list[float]) -> None:
    """Append the server's resident memory in MiB to `sizes`, once per second."""
    process = psutil.Process(server.pid)
    while True:
        sizes.append(round(process.memory_info().rss / 2**20, 1))
        await asyncio.sleep(1)


async def _capacity(server: RunningServer) -> float:
    """Measure the answers per second with as many clients as slots."""
    until = time.monotonic() + CAPACITY_S
    num_answers = 0

    async def client() -> None:
        nonlocal num_answers
        while time.monotonic() < until:
            assert (await ask(server.port, max_tokens=NUM_TOKENS)).status == 200
            num_answers += 1

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(NUM_SLOTS)))
    return num_answers / (time.monotonic() - began)
