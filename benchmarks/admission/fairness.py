"""Measures how long a quiet key waits for a slot while another key floods the server.

The quiet client sends two requests per second; the flood keeps 64 requests open. The server has
four slots, and an answer takes 0.2 seconds. There are three runs: the quiet client alone, next to
the flood with its own key, and with the flood's key. The last run shows a queue without fairness.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.admission.asking import ask
from benchmarks.report import Figures, spread_ms
from penstock.web.keys import key_table, new_key
from tests.support.servers import serve

NUM_SLOTS = 4
NUM_TOKENS = 10
TOKEN_S = 0.02
FLOOD = 64
EVERY_S = 0.5


async def measure(seconds: float) -> Figures:
    """Do the three runs, each for `seconds`."""
    quiet, flood = new_key(), new_key()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(key_table("quiet", quiet, is_admin=False) + "\n")
        file.write(key_table("flood", flood, is_admin=False))
        file.flush()
        with serve(
            engine="mock",
            mock_interval=TOKEN_S,
            slots=NUM_SLOTS,
            keys=Path(file.name),
            engine_arg=["length=100000"],
        ) as server:
            alone = await _waits(server.port, quiet, "", seconds)
            next_to_flood = await _waits(server.port, quiet, flood, seconds)
            one_key = await _waits(server.port, flood, flood, seconds)
    return {
        "an answer takes, ms": round(1000 * NUM_TOKENS * TOKEN_S),
        "a slot is freed every, ms": round(1000 * NUM_TOKENS * TOKEN_S / NUM_SLOTS),
        "the quiet key's wait, alone": spread_ms(alone),
        "the quiet key's wait, beside the flood": spread_ms(next_to_flood),
        "the same with one key for both (no fairness)": spread_ms(one_key),
    }


async def _waits(port: int, quiet: str, flood: str, seconds: float) -> list[float]:
    until = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until:
            await ask(port, flood, max_tokens=NUM_TOKENS)

    floods = [asyncio.create_task(client()) for _ in range(FLOOD if flood else 0)]
    await asyncio.sleep(1)  # until the queue has filled
    waits: list[float] = []

    async def once() -> None:
        answer = await ask(port, quiet, max_tokens=NUM_TOKENS)
        assert answer.status == 200
        waits.append(answer.end["timings"]["queue_time"])

    asked = []
    while time.monotonic() < until:
        asked.append(asyncio.create_task(once()))
        await asyncio.sleep(EVERY_S)
    await asyncio.gather(*asked, *floods)
    return waits
