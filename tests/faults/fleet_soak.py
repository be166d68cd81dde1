"""Kill, stop and replace servers, engines and the store at random, then judge every stream.

    python -m tests.faults.fleet_soak --minutes 10
    python -m tests.faults.fleet_soak --minutes 3 --store folder --seed 7

Three servers run over one store. Clients open streams of numbered tokens at any of them, read them
through, read together, leave and come back, and cancel, always at another server. Meanwhile servers
are killed, stopped for longer than their lease, or replaced as by a deploy; engines are killed; and
Redis is stopped, or killed and started again. Each stream is judged when it has ended. At the end,
no server may hold anything. The exit status is 1 if an invariant was broken.
"""

import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from tests.faults.checker import Breach, Verdict, judge_stream
from tests.faults.history import History, numbered
from tests.faults.processes import held_by, signal_engine, until_readiness
from tests.faults.reading import Reader, RefusedError, ask_how_it_ended, cancel, fresh_word
from tests.faults.replicas import PLACES, FolderPlace, RedisPlace, Replicas, adds_up
from tests.faults.soaking import (
    SILENCE_S,
    Did,
    arguments,
    closed_or_silent,
    report,
    run_all,
    soak,
)
from tests.support.servers import RunningServer

NUM_REPLICAS = 3
MAX_TOKENS = 240
STREAM_PATIENCE_S = 120.0
LINGER_S = 30.0
RETRY_S = 0.1
# Longer than a lease in Redis, and shorter than --log-timeout.
STOP_S = 5.0
SPARE_DESCRIPTORS = 8
SURVIVABLE = (404, 502, 503)
"""What a request for a stream may get while its replica or the store is away. A 404 is judged: the
reader must find its stream in the end."""


class Client:
    """Uses the servers in every way, one stream after the other."""

    def __init__(self, replicas: Replicas, seed: int, verdict: Verdict, did: Did) -> None:
        self._replicas = replicas
        self._chance = random.Random(seed)
        self._verdict, self._did = verdict, did
        self._history = History()

    async def run_until(self, deadline: float) -> None:
        """Use the servers until `deadline`, on the monotonic clock."""
        ways: list[Callable[[Reader], Awaitable[None]]] = [
            self._read,
            self._read,
            self.read_together,
            self.come_and_go,
            self.cancel,
        ]
        while time.monotonic() < deadline:
            way = self._chance.choice(ways)
            reader = await self._open()
            async with asyncio.timeout(STREAM_PATIENCE_S):
                await self._use(reader, way)
            self._verdict.add(judge_stream(self._history.take(reader.stream)))
            self._did[way.__name__.strip("_").replace("_", " ")] += 1

    async def _use(self, reader: Reader, way: Callable[[Reader], Awaitable[None]]) -> None:
        await way(reader)
        await self._read(reader)
        await self._persist(lambda: ask_how_it_ended(self._any(), self._history, reader.stream))

    async def read_together(self, reader: Reader) -> None:
        """Let other readers read the stream from its beginning, at other servers."""
        others = [Reader(self._any(), self._history) for _ in range(self._chance.randrange(1, 4))]
        for other in others:
            other.stream = reader.stream
        await asyncio.gather(*map(self._read, [reader, *others]))

    async def come_and_go(self, reader: Reader) -> None:
        """Leave and come back a few times."""
        for _ in range(self._chance.randrange(1, 4)):
            if reader.has_response and not reader.is_over:
                reader.leave(self._chance.choice(("FIN", "RST")))
            await asyncio.sleep(self._chance.random())
            await self._attach(reader)

    async def cancel(self, reader: Reader) -> None:
        """Cancel the stream twice."""
        await asyncio.sleep(self._chance.random())
        for _ in range(2):
            await self._persist(lambda: cancel(self._any(), self._history, reader.stream))

    def _any(self) -> tuple[str, int]:
        return self._chance.choice(self._replicas.addresses)

    async def _open(self) -> Reader:
        max_tokens = self._chance.randrange(1, MAX_TOKENS)
        while True:
            truth = numbered(fresh_word(), length=1_000_000, max_tokens=max_tokens)
            reader = Reader(self._any(), self._history)
            try:
                async with asyncio.timeout(SILENCE_S):
                    await reader.open(truth, max_tokens=max_tokens)
            except (OSError, TimeoutError, RefusedError) as error:
                if isinstance(error, RefusedError) and error.status != 503:
                    raise
                reader.forget()
                self._did["opened anew"] += 1
                await asyncio.sleep(RETRY_S)
            else:
                return reader

    async def _persist(self, work: Callable[[], Awaitable[object]]) -> None:
        """Repeat `work` at other servers until one answers."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    await work()
                    return
            except (OSError, TimeoutError):
                self._did["asked anew"] += 1
            except RefusedError as refused:
                if refused.status not in SURVIVABLE:
                    raise
                self._did[f"got {refused.status} {refused.code}"] += 1
            await asyncio.sleep(RETRY_S)

    async def _attach(self, reader: Reader) -> None:
        if reader.has_response or reader.ended is not None:
            return
        reader.address = self._any()
        try:
            async with asyncio.timeout(SILENCE_S):
                await reader.attach()
        except (OSError, TimeoutError):
            reader.forget()
        except RefusedError as refused:
            if refused.status not in SURVIVABLE:
                raise
            self._did[f"got {refused.status} {refused.code}"] += 1

    async def _read(self, reader: Reader) -> None:
        """Read to the terminal event; leave silent connections and resume at another server."""
        while reader.ended is None:
            if not reader.has_response:
                await self._attach(reader)
            if reader.has_response:
                if not await closed_or_silent(reader):
                    self._did["left a silent server"] += 1
            else:
                await asyncio.sleep(RETRY_S)


class Chaos:
    """Breaks one thing after the other, and mends it again."""

    def __init__(
        self,
        replicas: Replicas,
        place: FolderPlace | RedisPlace,
        chance: random.Random,
        did: Did,
    ) -> None:
        self._replicas, self._place = replicas, place
        self._chance, self._did = chance, did

    async def run_until(self, deadline: float) -> None:
        """Break things until shortly before `deadline`."""
        ways: list[Callable[[], Awaitable[None]]] = [
            self.kill_a_server,
            self.kill_a_server,
            self.replace_a_server,
            self.stop_a_server,
            self.kill_an_engine,
        ]
        if isinstance(self._place, RedisPlace):
            ways += [self.stop_redis, self.kill_redis]
        while time.monotonic() < deadline - 2 * STOP_S:
            await asyncio.sleep(self._chance.uniform(0.5, 4))
            way = self._chance.choice(ways)
            await way()
            self._did[way.__name__.replace("_", " ")] += 1

    def _victim(self) -> RunningServer:
        return self._chance.choice(self._replicas.running)

    async def kill_a_server(self) -> None:
        await asyncio.to_thread(self._replicas.kill, self._victim())
        await asyncio.to_thread(self._replicas.start)

    async def replace_a_server(self) -> None:
        """Replace a server as a deploy does: the new one first."""
        victim = self._victim()
        await asyncio.to_thread(self._replicas.start)
        victim.signal(signal.SIGTERM)
        await asyncio.to_thread(self._replicas.died, victim)

    async def stop_a_server(self) -> None:
        victim = self._victim()
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(STOP_S)
        victim.signal(signal.SIGCONT)

    async def kill_an_engine(self) -> None:
        signal_engine(self._victim(), signal.SIGKILL)

    async def stop_redis(self) -> None:
        assert isinstance(self._place, RedisPlace)
        self._place.server.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.1, STOP_S))
        self._place.server.signal(signal.SIGCONT)

    async def kill_redis(self) -> None:
        assert isinstance(self._place, RedisPlace)
        await asyncio.to_thread(self._place.server.kill)
        await asyncio.sleep(self._chance.uniform(0, 2))
        await asyncio.to_thread(self._place.server.start)


async def run(
    minutes: float, num_clients: int, seed: int, store: Literal["folder", "redis"]
) -> bool:
    """Run the soak. Returns True if every invariant held."""
    verdict, did = Verdict(), Did()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = PLACES[store](folder)
        stack.callback(place.close)
        replicas = stack.enter_context(
            Replicas(place.log, folder, linger=LINGER_S, drain_timeout=10)
        )
        await asyncio.to_thread(replicas.start, NUM_REPLICAS)
        deadline = time.monotonic() + minutes * 60
        clients = [
            Client(replicas, seed + each, verdict, did) for each in range(1, num_clients + 1)
        ]
        chaos = Chaos(replicas, place, random.Random(seed), did)
        jobs = [*(each.run_until(deadline) for each in clients), chaos.run_until(deadline)]
        await run_all(jobs, minutes, lambda: _figures(verdict, did))
        try:
            for address in replicas.addresses:
                await until_readiness(address, 200)
        except TimeoutError:
            verdict.breaches.append(Breach("I8", "", "a server does not become ready again"))
            for server in replicas.running:
                print("".join(server.output[-30:]), file=sys.stderr)
        verdict.breaches += await asyncio.to_thread(_held_too_long, replicas)
    return report(did, verdict)


def _held_too_long(replicas: Replicas) -> list[Breach]:
    """Return what idle servers hold that a new one does not."""
    replicas.are_idle()
    fresh = replicas.start()
    few = held_by(fresh)["descriptors of the server"] + SPARE_DESCRIPTORS
    breaches = []
    for server, scrape in zip(replicas.running, replicas.are_idle(), strict=True):
        num_stored = scrape("penstock_streams_stored")
        if num_stored:
            breaches.append(Breach("I8", "", f"{num_stored:g} stored streams after the load"))
        if not adds_up(scrape):
            breaches.append(Breach("I8", "", "streams started and ended do not add up"))
        num = held_by(server)["descriptors of the server"]
        if num > few:
            breaches.append(Breach("I8", "", f"{num:g} descriptors; a new server has {few:g}"))
    return breaches


def _figures(verdict: Verdict, did: Did) -> str:
    faults = sum(n for what, n in did.items() if what.startswith(("kill", "stop", "replace")))
    return (
        f"{faults} faults, {verdict.counts['streams']} streams,"
        f" {verdict.counts['resumed']} resumes, {len(verdict.breaches)} breaches"
    )


def main() -> None:
    parser = arguments(__doc__, minutes=10)
    parser.add_argument("--store", choices=[*PLACES], default="redis")
    given = parser.parse_args()
    soak(given.seed, lambda: run(given.minutes, given.clients, given.seed, given.store))


if __name__ == "__main__":
    main()
