"""The balancers of `deploy/` in front of replicas that start as docs/scaling.md says.

The tests change ports and the store's place, and nothing else of the files and the commands.
"""

import contextlib
import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.store.servers import RedisServer
from tests.support.proxies import find, free_port, running
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SCALING = ROOT / "docs" / "scaling.md"
SHOWN = re.compile(r"^penstock serve --port (\d+) --log \./log (.*)$", re.MULTILINE)
PORT = 8000
PORTS = (8001, 8002, 8003)


class Program(NamedTuple):
    """A balancer's program: its configuration in `deploy/`, its flags and its signals."""

    shipped: str
    command: tuple[str, ...]
    check: str
    reload: signal.Signals


PROGRAMS = {
    "HAProxy": Program("haproxy/haproxy.cfg", ("haproxy", "-W", "-db", "-f"), "-c", signal.SIGUSR2),
    "nginx": Program(
        "nginx/nginx.conf", ("nginx", "-p", ".", "-e", "stderr", "-c"), "-t", signal.SIGHUP
    ),
}


class Balancer:
    """A balancer that runs."""

    def __init__(self, program: Program, file: Path, port: int, pid: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.address = ("127.0.0.1", port)
        self._program = program
        self._file = file
        self._pid = pid

    def reload(self, ports: Sequence[int]) -> None:
        """Balance over replicas on other ports. Open connections stay where they are."""
        before = self._listening()
        _write(self._program, self._file, self.port, ports)
        psutil.Process(self._pid).send_signal(self._program.reload)
        assert eventually(lambda: bool(now := self._listening()) and not now & before)

    def _listening(self) -> set[int]:
        """Return the worker processes that accept connections."""
        return {
            worker.pid
            for worker in psutil.Process(self._pid).children()
            if worker.status() != psutil.STATUS_ZOMBIE
            for each in worker.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == self.port
        }


@contextlib.contextmanager
def balancer(name: str, folder: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """Run "HAProxy" or "nginx" with its shipped configuration, in front of replicas on `ports`."""
    program, port = PROGRAMS[name], free_port()
    file = folder / Path(program.shipped).name
    _write(program, file, port, ports)
    first, *flags = program.command
    with running([find(first), *flags, str(file)], program.check, folder, port) as process:
        yield Balancer(program, file, port, process.pid)


def _write(program: Program, file: Path, port: int, ports: Sequence[int]) -> None:
    """Write the shipped configuration with these ports; servers without a port are left out."""
    lines = (ROOT / "deploy" / program.shipped).read_text(encoding="utf-8").splitlines()
    new = dict(zip((PORT, *PORTS), (port, *ports), strict=False))
    written = []
    for line in lines:
        found = re.search(r"127\.0\.0\.1:(\d+)\b", line)
        if found is None:
            written.append(line)
        elif (number := new.get(int(found[1]))) is not None:
            written.append(line.replace(found[0], f"127.0.0.1:{number}"))
    file.write_text("\n".join([*written, ""]), encoding="utf-8")


@contextlib.contextmanager
def store(name: str, folder: Path) -> Iterator[str]:
    """Make a store, "folder" or "Redis"; yield what `--log` calls it."""
    if name == "folder":
        yield str(folder / "log")
        return
    server = RedisServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def replica(log: str, port: int, **more: object) -> AbstractContextManager[RunningServer]:
    """Run a replica as the guide says, with its store at `log`, with the mock engine, on `port`."""
    return serve(*_shown_flags(), log=log, port=port, engine="mock", **more)


def _shown_flags() -> list[str]:
    """Return the flags that all replicas of the guide have beside their port and their store."""
    shown = SHOWN.findall(SCALING.read_text(encoding="utf-8"))
    assert [int(port) for port, _ in shown] == list(PORTS)
    (flags,) = {flags for _, flags in shown}
    return shlex.split(flags)
