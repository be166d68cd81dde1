"""Several real servers over one store of logs: a test kills, stops and replaces them.

In: a store, and the flags of the servers. Out: running servers and their addresses. It knows
nothing about streams.
"""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.faults.proxy import Address
from tests.store.servers import RedisServer
from tests.support.lethal import TARGET
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve

TOKEN_S = 0.02
STOP_TIMEOUT_S = 20.0
STORES = ("folder", "redis")
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


class FolderPlace:
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.log = str(folder / "log")

    def close(self) -> None:
        """Do nothing: the folder goes with the test's own."""


class RedisPlace:
    """A store in a Redis of its own, which keeps its data when it is killed."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder, options={"appendonly": "yes"})
        self.server.start()
        self.log = self.server.url

    def close(self) -> None:
        """End Redis."""
        self.server.kill()


PLACES: dict[str, Callable[[Path], FolderPlace | RedisPlace]] = {
    "folder": FolderPlace,
    "redis": RedisPlace,
}
