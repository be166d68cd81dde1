"""Run two releases of Penstock over one store, and check the streams that go between them.

    python -m tests.deploy.upgrades            # the release before what is stored last changed
    python -m tests.deploy.upgrades v1.2.0     # any commit

The working tree is the newer release. The older one is installed from its commit, once, into an
environment of its own. Streams go from the older to the newer release, and back as in a rollback,
in a folder and in Redis. The other release shows them while they run, cancels them, takes them over
after kill -9 and at SIGTERM, and continues them when it starts after all servers are dead. It also
joins answers of each API by their Idempotency-Key. If the formats of a store differ, the other
release must refuse to start, and the streams must go on. The exit status is 1 if anything is wrong.
"""

import argparse
import asyncio
import itertools
import json
import operator
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.releases import Release, before_the_newest_shape, release_of, this_release
from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes
from tests.faults.proxy import Address
from tests.faults.reading import Reader, RefusedError, cancel
from tests.faults.replicas import PLACES, TOKEN_S, Clients, Replicas, adds_up, got
from tests.support.servers import RunningServer, refuses_to_start

NUM_STREAMS = 4
NUM_TOKENS = 200
ENGINE_ARGS = ["numbered=true", "length=1000000", f"interval={TOKEN_S}"]
NUMBER = re.compile(r"w:(\d+) ")
MESSAGES = [{"role": "user", "content": "w says"}]
ANSWERS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "w says", "max_tokens": NUM_TOKENS},
    "/v1/completions": {"prompt": "w says", "max_tokens": NUM_TOKENS},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": NUM_TOKENS},
    "/v1/responses": {"input": "w says", "max_output_tokens": NUM_TOKENS},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": NUM_TOKENS, "model": "mock"},
}
"""A request of each API, by its path."""


class Pair:
    """Servers of two releases over one store: streams go from `old` to `new`."""

    def __init__(self, replicas: Replicas, old: Release, new: Release) -> None:
        self.replicas = replicas
        self.old, self.new = old, new

    async def start(self, release: Release) -> RunningServer:
        """Start a server of a release."""
        return await asyncio.to_thread(self.replicas.start, program=release.program)

    async def kill(self, server: RunningServer) -> None:
        """Kill a server with -9."""
        await asyncio.to_thread(self.replicas.kill, server)

    async def all_is_well(self, clients: Clients, endings: dict[str, int]) -> None:
        """Read everything to its end, and judge it; check that the servers hold nothing then."""
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == endings, verdict
        for scrape in await asyncio.to_thread(self.replicas.are_idle):
            assert adds_up(scrape), scrape.text
            assert scrape("penstock_streams_stored") == 0, scrape.text


async def follow(clients: Clients, server: RunningServer, readers: list[Any]) -> None:
    """Let another reader read each stream from its beginning at a server."""
    for reader in readers:
        follower = Reader(server.address, clients.history)
        await follower.attach(reader.stream)
        clients.readers.append(follower)


async def streams_are_read_cancelled_and_taken_over(pair: Pair) -> None:
    old, new = await pair.start(pair.old), await pair.start(pair.new)
    clients = Clients(pair.replicas)
    (ended,) = await clients.open(1, num_tokens=3)
    await ended.closed()
    cancelled, *readers = await clients.open(NUM_STREAMS, num_tokens=NUM_TOKENS)
    await got([cancelled, *readers], 3)
    await follow(clients, new, [ended, cancelled, *readers])
    assert await cancel(new.address, clients.history, cancelled.stream) == "cancelled"
    await pair.kill(old)
    await pair.all_is_well(clients, {"length": NUM_STREAMS, "cancelled": 1})
    assert await cancel(new.address, clients.history, cancelled.stream) == "cancelled"


async def streams_are_handed_over(pair: Pair) -> None:
    old, new = await pair.start(pair.old), await pair.start(pair.new)
    clients = Clients(pair.replicas)
    stored = await clients.open(NUM_STREAMS, num_tokens=NUM_TOKENS)
    unstored = await clients.open(2, num_tokens=NUM_TOKENS, resumable=False)
    await got([*stored, *unstored], 3)
    await follow(clients, new, stored)
    old.signal(signal.SIGTERM)
    await asyncio.to_thread(pair.replicas.died, old)
    assert old.process.returncode == 0
    await pair.all_is_well(clients, {"length": NUM_STREAMS + 2})
    assert judge(clients.history).counts["cut"] == 0


async def streams_outlive_all_servers(pair: Pair) -> None:
    old = await pair.start(pair.old)
    clients = Clients(pair.replicas)
    readers = await clients.open(NUM_STREAMS, num_tokens=NUM_TOKENS)
    await got(readers, 3)
    await pair.kill(old)
    new = await pair.start(pair.new)
    for reader in readers:
        reader.turn_to([new.address])
    await pair.all_is_well(clients, {"length": NUM_STREAMS})


async def answers_of_each_api_are_joined(pair: Pair) -> None:
    old, new = await pair.start(pair.old), await pair.start(pair.new)
    cases = list(itertools.product(ANSWERS, (False, True)))
    begun = [asyncio.create_task(answer(old.address, *case)) for case in cases]
    clients = Clients(pair.replicas)  # its tokens tell how far the answers are
    readers = await clients.open(1, num_tokens=NUM_TOKENS)
    await got(readers, 20)
    joined = [asyncio.create_task(answer(new.address, *case)) for case in cases]
    await got(readers, 40)
    await pair.kill(old)
    assert await asyncio.gather(*joined) == [("true", NUM_TOKENS)] * len(cases)
    await asyncio.gather(*begun, return_exceptions=True)  # the kill has cut them
    await pair.all_is_well(clients, {"length": 1})


async def answer(address: Address, path: str, is_streamed: bool) -> tuple[str, int]:
    """Ask for an answer by its key. Return whether the server says that it was there already, and
    how many numbered tokens it begins with."""
    fields = {**ANSWERS[path], "stream": is_streamed}
    key = f"Idempotency-Key: key-{is_streamed}"
    asked = request_bytes("POST", path, key, body=json.dumps(fields).encode())
    head, body = await fetch(address, asked)
    assert head.status == 200, body
    numbers = map(int, NUMBER.findall(body.decode()))
    # The last events of OpenAI's responses repeat the text, beginning with 0 again.
    in_order = itertools.takewhile(lambda pair: pair[0] == pair[1], enumerate(numbers))
    return head.headers.get("idempotency-replayed", ""), sum(1 for _ in in_order)


async def the_other_release_refuses_the_store(pair: Pair) -> None:
    await pair.start(pair.old)
    clients = Clients(pair.replicas)
    await got(await clients.open(NUM_STREAMS), 3)
    log = pair.replicas.log
    said = await asyncio.to_thread(
        refuses_to_start, program=pair.new.program, engine="mock", log=log
    )
    assert "format" in said, said
    await pair.all_is_well(clients, {"length": NUM_STREAMS})


async def streams_stay_with_their_release(pair: Pair) -> None:
    old, new = await pair.start(pair.old), await pair.start(pair.new)
    clients = Clients(pair.replicas)
    readers = await clients.open(NUM_STREAMS, num_tokens=NUM_TOKENS)
    await got(readers, 3)
    with pytest.raises(RefusedError) as refused:  # the client asks again, at another server
        await Reader(new.address, clients.history).attach(readers[0].stream)
    assert (refused.value.status, refused.value.code) == (503, "store_unavailable")
    await pair.kill(old)
    old = await pair.start(pair.old)
    for reader in readers:
        reader.turn_to([old.address])
        await reader.closed()
        await reader.attach()
    await got(readers, readers[0].cursor + 3)
    beside = Clients(pair.replicas, new.address)
    await beside.open(NUM_STREAMS, num_tokens=NUM_TOKENS)
    old.signal(signal.SIGTERM)  # there is nobody to whom it could hand its streams over
    await asyncio.to_thread(pair.replicas.died, old)
    assert old.process.returncode == 0
    await pair.all_is_well(clients, {"length": NUM_STREAMS})
    await pair.all_is_well(beside, {"length": NUM_STREAMS})


Way = Callable[[Pair], Coroutine[Any, Any, None]]
EQUAL: list[Way] = [
    streams_are_read_cancelled_and_taken_over,
    streams_are_handed_over,
    streams_outlive_all_servers,
    answers_of_each_api_are_joined,
]


def ways(store: str, old: Release, new: Release) -> list[Way]:
    """Return what must hold between two releases with these formats."""
    formats = operator.attrgetter(f"{store}_format")
    if formats(old) != formats(new):
        return [the_other_release_refuses_the_store]
    if old.entry_format != new.entry_format:
        return [streams_stay_with_their_release]
    return EQUAL


def holds(store: str, old: Release, new: Release, way: Way) -> bool:
    """Run one check, on a store of its own, and say whether it holds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = PLACES[store](folder)
        stack.callback(place.close)
        try:
            with Replicas(place.log, folder, engine="mock", engine_arg=ENGINE_ARGS) as replicas:
                asyncio.run(way(Pair(replicas, old, new)))
        except Exception:
            traceback.print_exc()
            return False
    return True


def main() -> None:
    """Check everything, and say what holds."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", nargs="?", help="the older release")
    commit = parser.parse_args().commit or before_the_newest_shape()
    older, newer = release_of(commit), this_release(f"{sys.executable} -m penstock")
    all_hold = True
    for store, (old, new) in itertools.product(PLACES, [(older, newer), (newer, older)]):
        print(f"{store}: from {old.name} to {new.name}", flush=True)
        for way in ways(store, old, new):
            did = holds(store, old, new, way)
            all_hold &= did
            print(f"  {'holds ' if did else 'BROKEN'} {way.__name__.replace('_', ' ')}", flush=True)
    raise SystemExit(0 if all_hold else 1)


if __name__ == "__main__":
    main()
