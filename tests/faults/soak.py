"""Run every kind of client and fault at once, then judge the run.

    python -m tests.faults.soak --minutes 5

Clients stream through the fault proxy (cuts, resets, slices, delays, black holes), read together,
read slowly, stall, cancel, disconnect and come back. Meanwhile the engine is killed or stopped.
Each stream is judged as soon as it has ended. At the end the server must hold no more than before,
and leave no process behind. The exit code is 1 if an invariant was broken.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable

from tests.faults.checker import Rules, Verdict, judge_server, judge_stream
from tests.faults.history import Held, History, numbered
from tests.faults.processes import (
    held_by,
    kill_engine,
    processes_of,
    rss_mib,
    settled,
    still_there,
    until_readiness,
)
from tests.faults.proxy import (
    CLOSES,
    Address,
    Fault,
    Faults,
    Proxy,
    bandwidth,
    black_hole,
    cut,
    latency,
    slices,
)
from tests.faults.reading import Reader, RefusedError, ask_how_it_ended, cancel, fresh_word
from tests.faults.soaking import (
    SILENCE_S,
    Did,
    arguments,
    closed_or_silent,
    report,
    run_all,
    soak,
)
from tests.support.servers import RunningServer, serve

LENGTH = 120
INTERVAL_S = 0.01
HEARTBEAT_S = 1.0
STALL_TIMEOUT_S = 2.0
ENGINE_TIMEOUT_S = 2.0
LINGER_S = 20.0
RETAIN_S = 20.0
STREAM_PATIENCE_S = 90.0
FAULTS_OF_THE_ENGINE = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)


def faults_of(chance: random.Random) -> Faults:
    """Choose the faults of a bad network: half of the connections have none."""
    kinds: list[Callable[[], list[Fault]]] = [
        lambda: [cut(chance.randrange(8000), chance.choice(CLOSES))],
        lambda: [slices(chance.randrange(1, 64)), cut(chance.randrange(8000))],
        lambda: [latency(0.01, 0.01, chance)],
        lambda: [bandwidth(chance.randrange(2_000, 20_000))],
        lambda: [black_hole(chance.randrange(4000))],
    ]
    return Faults(down=chance.choice(kinds)()) if chance.random() < 0.5 else Faults()


class Client:
    """A client that uses the server in every way, one stream after another."""

    def __init__(
        self,
        server: Address,
        proxy: Address,
        seed: int,
        verdict: Verdict,
        did: Did,
    ) -> None:
        self._server, self._proxy = server, proxy
        self._chance = random.Random(seed)
        self._verdict, self._did = verdict, did
        self._history = History()

    async def run_until(self, deadline: float) -> None:
        """Use the server until `deadline`, on the monotonic clock."""
        ways: list[Callable[[], Awaitable[None]]] = [
            self.read_through_faults,
            self.read_through_faults,
            self.read_together,
            self.read_slowly,
            self.stall,
            self.cancel,
            self.disconnect,
            self.come_and_go,
        ]
        while time.monotonic() < deadline:
            way = self._chance.choice(ways)
            async with asyncio.timeout(STREAM_PATIENCE_S):
                await way()
            self._did[way.__name__.replace("_", " ")] += 1

    async def read_through_faults(self) -> None:
        """Read a stream that is cut, and resume it."""
        reader = await self._open(self._proxy)
        await self._read_whatever_happens(reader)
        await self._judge(reader)

    async def read_together(self) -> None:
        """Read one stream with many readers, some of them through the proxy."""
        reader = await self._open(self._server)
        others = [
            Reader(self._chance.choice((self._proxy, self._server)), self._history)
            for _ in range(self._chance.randrange(1, 8))
        ]
        for other in others:
            other.stream = reader.stream
        await asyncio.gather(*map(self._read_whatever_happens, [reader, *others]))
        await self._judge(reader)

    async def read_slowly(self) -> None:
        """Pause several times, each time for less than the stall timeout."""
        reader = await self._open(self._server, letters=500)
        for _ in range(4):
            if reader.is_over:
                break
            reader.stop_reading()
            await asyncio.sleep(STALL_TIMEOUT_S / 4)
            if not reader.is_over:
                reader.read_on()
        await self._read_whatever_happens(reader)
        await self._judge(reader)

    async def stall(self) -> None:
        """Stop reading, be dropped, and come back for the rest while another reader reads on."""
        reader = await self._open(self._server, letters=4000, receive_buffer=4096)
        other = Reader(self._server, self._history)
        other.stream = reader.stream
        if not reader.is_over:
            reader.stop_reading()
        await self._read_whatever_happens(other)
        await asyncio.sleep(STALL_TIMEOUT_S + 1.5)
        if not reader.is_over:
            reader.read_on()
        await self._read_whatever_happens(reader)
        await self._judge(reader)

    async def cancel(self) -> None:
        """Cancel a stream twice from another connection."""
        reader = await self._open(self._proxy, resumable=self._chance.random() < 0.5)
        await asyncio.sleep(self._chance.random())
        for _ in range(2):
            await self._persist(lambda: cancel(self._server, self._history, reader.stream))
        if reader.is_resumable:
            await self._read_whatever_happens(reader)
        elif not reader.is_over:
            await self._closed_or_silent(reader)
        await self._judge(reader)

    async def disconnect(self) -> None:
        """Leave a stream that cannot be resumed."""
        reader = await self._open(self._server, resumable=False)
        with contextlib.suppress(ConnectionError):
            await reader.got(self._chance.randrange(LENGTH))
        if not reader.is_over:
            reader.leave(self._chance.choice(CLOSES))
        await self._judge(reader)

    async def come_and_go(self) -> None:
        """Leave a stream and come back to it, a few times."""
        reader = await self._open(self._server)
        for _ in range(self._chance.randrange(1, 5)):
            if reader.ended is not None:
                break
            if not reader.is_over:
                reader.leave(self._chance.choice(CLOSES))
            await asyncio.sleep(self._chance.random() / 2)
            with contextlib.suppress(OSError):
                await reader.attach()
                await reader.got(reader.cursor + 1)
        await self._read_whatever_happens(reader)
        await self._judge(reader)

    async def _open(
        self, address: Address, *, resumable: bool = True, letters: int = 0, receive_buffer: int = 0
    ) -> Reader:
        max_tokens = self._chance.randrange(1, 2 * LENGTH)
        while True:
            reader = Reader(address, self._history)
            reader.receive_buffer = receive_buffer
            truth = numbered(fresh_word(letters), length=LENGTH, max_tokens=max_tokens)
            try:
                async with asyncio.timeout(SILENCE_S):
                    await reader.open(truth, resumable=resumable, max_tokens=max_tokens)
            except (OSError, TimeoutError):
                self._did["opened anew"] += 1
                reader.forget()
            except RefusedError as refused:
                if refused.status != 503:
                    raise
                self._did["put off"] += 1
                await asyncio.sleep(0.1)
            else:
                return reader

    async def _persist(self, work: Callable[[], Awaitable[object]]) -> None:
        """Repeat `work` until no cut interrupts it."""
        while True:
            with contextlib.suppress(OSError):
                await work()
                return
            await asyncio.sleep(0.05)

    async def _read_whatever_happens(self, reader: Reader) -> None:
        """Read to the terminal event; leave silent connections and resume."""
        while reader.ended is None:
            if not reader.is_over:
                await self._closed_or_silent(reader)
                continue
            if reader.has_response:
                await reader.closed()
                continue
            try:
                async with asyncio.timeout(SILENCE_S):
                    await reader.attach()
            except (OSError, TimeoutError):
                reader.forget()
                await asyncio.sleep(0.02)
        if reader.has_response:
            await self._closed_or_silent(reader)

    async def _closed_or_silent(self, reader: Reader) -> None:
        if not await closed_or_silent(reader):
            self._did["left a black hole"] += 1

    async def _judge(self, reader: Reader) -> None:
        """Ask the server how the stream ended, and judge its history."""
        if reader.has_response and reader.is_over:
            await reader.closed()
        await self._persist(lambda: ask_how_it_ended(self._server, self._history, reader.stream))
        self._verdict.add(judge_stream(self._history.take(reader.stream), Rules()))


async def break_the_engine(
    server: RunningServer, chance: random.Random, did: Did, deadline: float
) -> None:
    """Kill or stop the engine every few seconds."""
    while (left := deadline - time.monotonic()) > 10:
        await asyncio.sleep(min(left, chance.uniform(2, 8)))
        number = chance.choice(FAULTS_OF_THE_ENGINE)
        await kill_engine(server, number)
        did[f"engine: {number.name}"] += 1


async def run(minutes: float, num_clients: int, seed: int) -> bool:
    """Run the soak. Returns True if every invariant held."""
    verdict, did = Verdict(), Did()
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        linger=LINGER_S,
        retain=RETAIN_S,
        heartbeat=HEARTBEAT_S,
        stall_timeout=STALL_TIMEOUT_S,
        engine_timeout=ENGINE_TIMEOUT_S,
        engine_arg=["numbered=true", f"length={LENGTH}"],
    ) as server:
        pids = {process.pid for process in processes_of(server)}
        async with Proxy(server.address, faults_of, seed=seed) as proxy:
            await Client(server.address, proxy.address, seed, verdict, did).run_until(
                time.monotonic() + 1  # the first use creates what stays
            )
            before, rss_before = held_by(server), rss_mib(server.pid)
            deadline = time.monotonic() + minutes * 60
            clients = [
                Client(server.address, proxy.address, seed + each, verdict, did)
                for each in range(1, num_clients + 1)
            ]

            def figures() -> str:
                pids.update(process.pid for process in processes_of(server))
                return (
                    f"{verdict.counts['streams']} streams, {verdict.counts['cut']} cut,"
                    f" {len(verdict.breaches)} breaches, {rss_mib(server.pid):.0f} MiB"
                )

            breaking = break_the_engine(server, random.Random(seed), did, deadline)
            jobs = [*(client.run_until(deadline) for client in clients), breaking]
            await run_all(jobs, minutes, figures)
            num_cuts = proxy.num_cuts
        await until_readiness(server.address, 200)
        after = await settled(server, before, within=LINGER_S + RETAIN_S)
        rss_after = rss_mib(server.pid)
    left = still_there(list(pids))
    held = [Held(0, "before", *each) for each in {**before, "processes left": 0.0}.items()]
    held += [Held(0, "after", *each) for each in {**after, "processes left": len(left)}.items()]
    verdict.breaches += judge_server(held)
    return report(
        did,
        verdict,
        f"{num_cuts} connections cut by the proxy",
        *(f"{what}: {number:g} before, {after[what]:g} after" for what, number in before.items()),
        f"resident memory of the server: {rss_before:.1f} MiB before, {rss_after:.1f} MiB after",
        f"processes left behind: {len(left)}",
    )


def main() -> None:
    given = arguments(__doc__, minutes=5).parse_args()
    soak(given.seed, lambda: run(given.minutes, given.clients, given.seed))


if __name__ == "__main__":
    main()
