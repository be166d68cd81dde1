"""Several real servers over one store of logs: a test kills, stops and replaces them.

In: a store, and the flags of the servers. Out: running servers and their addresses. It knows
nothing about streams. `Clients` open streams at them.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.faults.checker import Verdict, judge
from tests.faults.history import History, Truth, numbered
from tests.faults.proxy import Address
from tests.faults.reading import Reader, fresh_word
from tests.faults.roving import RovingReader
from tests.store.servers import RedisServer
from tests.support.lethal import TARGET, halved_text
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve

TOKEN_S = 0.02
STOP_TIMEOUT_S = 20.0
NUM_TOKENS = 60
ALL_ENDED = "penstock_streams_running", "penstock_streams_waiting", "penstock_streams_followed"


class Replicas:
    """Servers over the store `log`, of which some may be dead. The engine is `support.lethal`.

    `flags` are those of all servers. Tests find the files `gate` and `once` in `folder`.
    """

    def __init__(self, log: str, folder: Path, **flags: Any) -> None:
        self.log = log
        self.folder = folder
        self._flags = flags
        self._stack = ExitStack()
        self.running: list[RunningServer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, num: int = 1, **others: Any) -> RunningServer:
        """Start servers; return the last one. `others` are flags of these servers only."""
        for _ in range(num):
            flags = {
                "engine": TARGET,
                "engine_arg": [f"folder={self.folder}", "length=1000000", f"interval={TOKEN_S}"],
                "log": self.log,
                "max_queue": 2000,
                "heartbeat": 1,
                **self._flags,
                **others,
            }
            self.running.append(self._stack.enter_context(serve(**flags)))
        return self.running[-1]

    @property
    def addresses(self) -> list[Address]:
        """The addresses of the running servers."""
        return [server.address for server in self.running]

    def kill(self, server: RunningServer) -> None:
        """Kill a server with -9, and forget it."""
        server.signal(signal.SIGKILL)
        self.died(server)

    def died(self, server: RunningServer) -> None:
        """Wait until a server is dead, and forget it."""
        server.process.wait(STOP_TIMEOUT_S)
        self.running.remove(server)

    def are_idle(self) -> list[Scrape]:
        """Wait until no server has an open stream or shows one; return their metrics."""
        return [scrape_until(server, is_idle) for server in self.running]


def is_idle(scrape: Scrape) -> bool:
    """Return True if the server has no open stream, and shows none of another one."""
    return not any(scrape(name) for name in ALL_ENDED)


def adds_up(scrape: Scrape) -> bool:
    """Return True if every stream that began here has ended here, or is still here."""
    open_now = scrape("penstock_streams_running") + scrape("penstock_streams_waiting")
    ended = scrape("penstock_streams_ended_total")
    return scrape("penstock_streams_started_total") == ended + open_now


class Clients:
    """Readers that begin at the first server and go on at the others, and what they saw."""

    def __init__(self, replicas: Replicas, *addresses: Address) -> None:
        self._addresses = list(addresses) or replicas.addresses
        self.history = History()
        self.readers: list[Reader] = []

    async def open(
        self, num: int = 1, does: str = "", num_tokens: int = NUM_TOKENS, **fields: Any
    ) -> list[RovingReader]:
        """Open streams; `does` is a word of their prompts (see `support.lethal`)."""
        opened: list[RovingReader] = []
        for _ in range(num):
            word = fresh_word()
            truth = numbered(word, length=1_000_000, max_tokens=num_tokens)
            if does == "halved":
                truth = Truth(halved_text(word, num_tokens), "length", num_tokens, word)
            reader = RovingReader(self._addresses, self.history)
            prompt = f"{word} says {does}"
            await reader.open(truth, prompt=prompt, max_tokens=num_tokens, **fields)
            opened.append(reader)
        self.readers += opened
        return opened

    async def all_end(self) -> Verdict:
        """Read everything to its end, and return the verdict."""
        await asyncio.gather(*(reader.read_through() for reader in self.readers))
        return judge(self.history)


async def got(readers: Sequence[Reader], index: int) -> None:
    """Wait until each reader has this event."""
    await asyncio.gather(*(reader.got(index) for reader in readers))


class FolderPlace:
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.log = str(folder / "log")

    def close(self) -> None:
        """Do nothing: the folder goes with the test's own."""


class RedisPlace:
    """A store in a Redis of its own, which keeps its data when it is killed."""

    def __init__(self, folder: Path, appendfsync: str = "no") -> None:
        """Without syncs Redis keeps no write back. With `everysec` it does while the disk is busy,
        and a kill loses what it has confirmed."""
        self.appended = folder / "appended"
        """Where Redis keeps its data."""
        options = {"dir": str(folder), "appenddirname": "appended"}
        options |= {"appendonly": "yes", "appendfsync": appendfsync}
        self.server = RedisServer(folder, options=options)
        self.server.start()
        self.log = self.server.url

    def close(self) -> None:
        """End Redis."""
        self.server.kill()


PLACES: dict[str, Callable[[Path], FolderPlace | RedisPlace]] = {
    "folder": FolderPlace,
    "redis": RedisPlace,
}
