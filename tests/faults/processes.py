"""The operating system's view of the server: processes, memory, descriptors, unsent bytes.

In: process ids and ports. Out: numbers. It knows nothing about streams.
"""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.faults.client_request import fetch, request_bytes
from tests.faults.proxy import Address
from tests.support.servers import RunningServer

PATIENCE_S = 60.0
PROBE_S = 0.005
ESTABLISHED = 1
"""The state of a connection that neither side has closed."""


def processes_of(server: RunningServer) -> list[psutil.Process]:
    """Return the server's process, then every process it has started."""
    parent = psutil.Process(server.pid)
    return [parent, *parent.children(recursive=True)]


def held_by(server: RunningServer) -> dict[str, float]:
    """Count what an idle server holds, to compare the counts before and after a load."""
    parent, *children = processes_of(server)
    return {
        "processes": len(children),
        "descriptors of the server": parent.num_fds(),
        "descriptors of the engine": sum(child.num_fds() for child in children),
        "threads of the server": parent.num_threads(),
    }


async def settled(
    server: RunningServer, before: dict[str, float], within: float = PATIENCE_S
) -> dict[str, float]:
    """Count what the server holds once it is down to `before`, or after `within` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        now = held_by(server)
        if all(now[what] <= number for what, number in before.items()) or loop.time() > deadline:
            return now
        await asyncio.sleep(0.05)


def rss_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    return float(psutil.Process(pid).memory_info().rss) / 2**20


class ServerSocket(NamedTuple):
    """A connection on the server's side. `unsent` counts the bytes that the client's kernel has not
    acknowledged."""

    state: int
    unsent: int


def server_sockets(server_port: int) -> dict[int, ServerSocket]:
    """Return the server's connections by client port. Linux only.

    https://docs.kernel.org/networking/proc_net_tcp.html
    """
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if int(local.rpartition(":")[2], 16) == server_port:
            unsent = int(queues.partition(":")[0], 16)
            found[int(remote.rpartition(":")[2], 16)] = ServerSocket(int(state, 16), unsent)
    return found


async def readiness(address: Address) -> int:
    """Return the status of `/health/ready`."""
    head, _ = await fetch(address, request_bytes("GET", "/health/ready"))
    return head.status


async def until_readiness(address: Address, status: int, within: float = PATIENCE_S) -> None:
    """Poll `/health/ready` until it has this status: from outside there is no event to wait for."""
    async with asyncio.timeout(within):
        while True:
            with contextlib.suppress(OSError):
                if await readiness(address) == status:
                    return
            await asyncio.sleep(PROBE_S)


def signal_engine(server: RunningServer, number: signal.Signals) -> int:
    """Send the engine's process a signal. Returns its process id, or 0 if there is no process."""
    for child in psutil.Process(server.pid).children():
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue
        return int(child.pid)
    return 0


def still_there(pids: list[int]) -> list[int]:
    """Return the process ids that still run."""

    def runs(pid: int) -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if runs(pid)]


def engine_pids(server: RunningServer) -> list[int]:
    """Return the running processes that the server has started: usually one."""
    return still_there([child.pid for child in psutil.Process(server.pid).children()])


async def kill_engine(
    server: RunningServer, number: signal.Signals = signal.SIGKILL, within: float = PATIENCE_S
) -> None:
    """Send the engine's process a signal that ends it, and wait until its successor is ready."""
    killed = 0
    async with asyncio.timeout(within):
        while not killed:
            killed = signal_engine(server, number)
            await asyncio.sleep(PROBE_S)
        while engine_pids(server) in ([], [killed]):  # noqa: ASYNC110 - as above
            await asyncio.sleep(PROBE_S)
        await until_readiness(server.address, 200)
