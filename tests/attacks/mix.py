"""Mix all attacks with engine kills, and judge every honest client.

    make attack ARGS="--minutes 10"

One server has the built-in model and keys, the other one TLS and steady tokens. Hostile clients run
the attacks of `kinds` against both, at random. Meanwhile honest clients stream: each one's text,
ids and end are compared with those of an idle server. The exit code is 1 if any of them is wrong,
if a health check gets no answer, or if a server ends.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import spread_ms
from penstock.web.keys import key_table, new_key
from tests.attacks.certificates import TlsFiles, good, trusting
from tests.attacks.honest import STEADY, HonestClient
from tests.attacks.kinds import ATTACKS, FAULTS, Attack, Target, break_engine
from tests.faults.checker import Rules, Verdict, judge_stream
from tests.faults.history import History, Truth
from tests.faults.reading import Reader, RefusedError
from tests.support.raw import open_stream, post, request
from tests.support.servers import serve
from tests.support.wire import connected

NUM_HONEST = 4
NUM_ATTACKERS = 6
KILL_EVERY_S = (10.0, 30.0)
PROGRESS_S = 10.0
HEALTH_EVERY_S = 0.25
HEALTH_WITHIN_S = 20.0
"""A health check that takes longer counts as none."""
STREAM_WITHIN_S = 300.0
"""An honest client's stream ends within this time, whatever happens."""
ATTACK_WITHIN_S = 120.0
ENGINE_TIMEOUT_S = 10.0
LAST_STREAMS_S = 120.0
RETRY_S = 0.2
PROMPTS = ("Once upon a time", "The river", "In the morning", "Water", "A small boat", "Hello")
MAX_TOKENS = 60


@dataclass
class Found:
    """What the run found."""

    verdict: Verdict = field(default_factory=Verdict)
    wrong: list[str] = field(default_factory=list)
    did: collections.Counter[str] = field(default_factory=collections.Counter)
    stream_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """True if nothing was wrong and something was judged."""
        return self.verdict.holds and not self.wrong and self.verdict.counts["streams"] > 0


class Honest:
    """A client that streams the built-in model's answers, and knows them beforehand."""

    def __init__(self, target: Target, key: str, truths: dict[str, Truth], found: Found) -> None:
        self._target, self._truths, self._found = target, truths, found
        self._headers = (f"Authorization: Bearer {key}",)
        self._history = History()

    async def run_until(self, stop: asyncio.Event, chance: random.Random) -> None:
        """Stream one answer after another."""
        while not stop.is_set():
            prompt = chance.choice(list(self._truths))
            began = time.monotonic()
            try:
                async with asyncio.timeout(STREAM_WITHIN_S):
                    await self._stream(prompt)
            except TimeoutError:
                self._found.wrong.append(f"no whole answer within {STREAM_WITHIN_S:.0f} s")
            except RefusedError as refused:
                self._found.wrong.append(f"an honest client was refused: {refused}")
                await asyncio.sleep(RETRY_S)
            self._found.stream_s.append(time.monotonic() - began)

    async def _stream(self, prompt: str) -> None:
        truth = self._truths[prompt]
        fields: dict[str, Any] = {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS}
        while True:
            reader = Reader(self._target.server.address, self._history, headers=self._headers)
            try:
                await reader.open(truth, **fields)
                break
            except OSError:
                self._found.did["honest: opened anew"] += 1
            except RefusedError as refused:
                if refused.status not in (429, 503):
                    raise
                self._found.did[f"honest: put off with {refused.status}"] += 1
            reader.forget()
            await asyncio.sleep(RETRY_S)
        await reader.read_through(STREAM_WITHIN_S)
        self._found.verdict.add(judge_stream(self._history.take(reader.stream), Rules()))


async def truths_of(target: Target, key: str) -> dict[str, Truth]:
    """Return the answer to each prompt while the server is idle."""
    truths = {}
    for prompt in PROMPTS:
        fields = {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS, "stream": False}
        sent = post(json.dumps(fields).encode(), f"Authorization: Bearer {key}")
        async with connected(target.server.address) as wire:
            answer: dict[str, Any] = json.loads((await wire.send(sent).answer()).body)
        reason, usage = answer["finish_reason"], answer["usage"]
        truths[prompt] = Truth(answer["text"], reason, usage["completion_tokens"])
    return truths


async def attack(
    target: Target, attacks: tuple[Attack, ...], stop: asyncio.Event, seed: int, found: Found
) -> None:
    """Run attacks, chosen at random, until `stop`."""
    chance = random.Random(seed)
    while not stop.is_set():
        kind = chance.choice(attacks)
        with contextlib.suppress(OSError, EOFError):  # TimeoutError is an OSError
            async with asyncio.timeout(ATTACK_WITHIN_S):
                await kind(target, chance)
        found.did[kind.__name__.replace("_", " ")] += 1


async def kill_engines(target: Target, stop: asyncio.Event, seed: int, found: Found) -> None:
    """Kill or stop the engine now and then."""
    chance = random.Random(seed)
    while not await is_set_within(stop, chance.uniform(*KILL_EVERY_S)):
        try:
            number = await break_engine(target, chance)
        except TimeoutError:
            found.wrong.append("the engine did not come back")
        else:
            found.did[f"engine: {number.name}"] += 1


async def check_health(target: Target, stop: asyncio.Event, found: Found) -> None:
    """Ask for the server's health, on a new connection each time."""
    while not await is_set_within(stop, HEALTH_EVERY_S):
        began = time.monotonic()
        try:
            async with asyncio.timeout(HEALTH_WITHIN_S):
                status = await status_of_health(target)
                if not status and target.tls_files is not None:
                    # A new certificate ends connections that have not sent their request yet.
                    found.did["health check: connected anew"] += 1
                    status = await status_of_health(target)
        except TimeoutError:
            status = 0
        if status in (200, 503):  # 503 while the engine is away
            found.health_s.append(time.monotonic() - began)
        else:
            found.wrong.append(f"a health check got {status or 'no answer'}")


async def status_of_health(target: Target) -> int:
    """Return the status of a health check, 0 if the connection ends without an answer."""
    try:
        async with connected(target.server.address, target.context) as wire:
            return (await wire.send(request("GET", "/health")).answer()).status
    except (ConnectionError, EOFError):
        return 0


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Return True as soon as the event is set, or False after `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def run(minutes: float, seed: int) -> bool:
    """Run the mix. Returns True if no honest client saw anything wrong."""
    found = Found()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with tempfile.TemporaryDirectory() as folder:
        async with targets(Path(folder)) as (plain, tls, honest_key):
            truths = await truths_of(plain, honest_key)
            opened = open_stream(tls.server.port, post(json.dumps(ENDLESS).encode()), tls.context)[
                0
            ]
            steady = HonestClient(opened)
            working = [
                asyncio.create_task(each)
                for each in (
                    *(
                        Honest(plain, honest_key, truths, found).run_until(
                            stop, random.Random(seed + number)
                        )
                        for number in range(NUM_HONEST)
                    ),
                    *(
                        attack(target, ATTACKS, stop, seed + 100 + number, found)
                        for number in range(NUM_ATTACKERS)
                        for target in ([plain, plain, tls][number % 3],)
                    ),
                    attack(plain, FAULTS[:1], stop, seed + 200, found),
                    attack(tls, FAULTS[1:], stop, seed + 201, found),
                    kill_engines(plain, stop, seed + 300, found),
                    check_health(plain, stop, found),
                    check_health(tls, stop, found),
                )
            ]
            await report_progress(minutes * 60, stop, found, plain, tls, working)
            stop.set()
            _, late = await asyncio.wait(working, timeout=LAST_STREAMS_S)
            found.wrong += ["a client did not come to its end"] * len(late)
            for task in working:
                if task in late:
                    task.cancel()
                elif (error := task.exception()) is not None:
                    found.wrong.append(f"{type(error).__name__}: {error}")
            judge_steady(steady, found)
            for target in (plain, tls):
                found.wrong += target.wrong
                if target.server.process.poll() is not None:
                    found.wrong.append("a server has ended")
            summary(found, plain, tls)
    return found.holds


ENDLESS = {"prompt": "Hello", "max_tokens": 1_000_000}


def judge_steady(steady: HonestClient, found: Found) -> None:
    """Judge the stream over TLS, which has never ended."""
    has_ended = not steady.is_reading
    steady.stop()
    if has_ended:
        found.wrong.append("the stream over TLS ended")
    if steady.indices != list(range(steady.num_tokens)) or not steady.indices:
        found.wrong.append("the stream over TLS is out of order")
    found.did["tokens over TLS"] = steady.num_tokens


@contextlib.asynccontextmanager
async def targets(folder: Path) -> AsyncIterator[tuple[Target, Target, str]]:
    """Yield both servers, and the honest clients' key."""
    keys = folder / "keys.toml"
    honest, attacker = new_key(), new_key()
    tables = [
        key_table("honest", honest, is_admin=False),
        key_table("attacker", attacker, is_admin=False),
    ]
    keys.write_text("\n".join(tables))
    (folder / "tls").mkdir()
    files = TlsFiles(folder / "tls", good())
    with (
        serve(keys=keys, slots=4, engine_timeout=ENGINE_TIMEOUT_S) as plain,
        serve(**STEADY, **files.flags()) as tls,
    ):
        yield (
            Target(plain, attacker, keys=keys),
            Target(tls, context=trusting(), tls_files=files),
            honest,
        )


async def report_progress(
    seconds: float,
    stop: asyncio.Event,
    found: Found,
    plain: Target,
    tls: Target,
    working: "list[asyncio.Task[None]]",
) -> None:
    """Print a line every ten seconds until the time is up, or a client or a server has ended."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        if await is_set_within(stop, min(PROGRESS_S, left)):
            return
        print(
            f"{time.monotonic() - began:5.0f} of {seconds:.0f} s:"
            f" {found.verdict.counts['streams']} honest streams,"
            f" {sum(found.did.values())} attacks, {len(found.verdict.breaches)} breaches,"
            f" {len(found.wrong)} wrong; memory {memory_mib(plain)} and {memory_mib(tls)} MiB",
            flush=True,
        )
        if any(task.done() for task in working) or None in (memory_mib(plain), memory_mib(tls)):
            return


def memory_mib(target: Target) -> int | None:
    """Return the server's resident memory, or None if the server has ended."""
    if target.server.process.poll() is not None:
        return None
    pages = int(Path(f"/proc/{target.server.pid}/statm").read_text().split()[1])
    return pages * 4096 // 2**20


def summary(found: Found, plain: Target, tls: Target) -> None:
    """Print what was done and what was found."""
    print("\n" + ", ".join(f"{number} x {what}" for what, number in sorted(found.did.items())))
    for name, target in (("plain", plain), ("TLS", tls)):
        print(f"answers to attackers, {name}: {dict(sorted(target.statuses.items()))}")
    print(f"honest streams: {spread_ms(found.stream_s)}")
    print(f"health checks: {spread_ms(found.health_s)}")
    for what, number in collections.Counter(found.wrong).most_common(20):
        print(f"WRONG, {number} times: {what}")
    print(found.verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    raise SystemExit(0 if asyncio.run(run(arguments.minutes, arguments.seed)) else 1)


if __name__ == "__main__":
    main()
