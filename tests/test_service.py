"""What a server tells systemd, as a service manager of the test's own hears it on its socket."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.keyed import Keys
from tests.support.raw import generate, open_stream

PATIENCE_S = 40.0
WATCHDOG_S = 0.5


class Heard(NamedTuple):
    """A service that runs, and what its manager hears."""

    process: subprocess.Popen[bytes]
    manager: socket.socket

    def next(self, beginning: str) -> dict[str, str]:
        """Return the next message that begins with this word; signs of life are passed over."""
        while True:
            message = self.manager.recv(4096).decode()
            fields = dict(line.partition("=")[::2] for line in message.split("\n"))
            if next(iter(fields)) == beginning:
                return fields
            assert fields == {"WATCHDOG": "1"}, f"{fields} before {beginning}"

    def is_silent(self) -> bool:
        """Return True if nothing is heard for twice the watchdog's time."""
        self.manager.settimeout(2 * WATCHDOG_S)
        try:
            return self.manager.recv(4096) == b""
        except TimeoutError:
            return True
        finally:
            self.manager.settimeout(PATIENCE_S)


@contextlib.contextmanager
def service(address: str, *flags: str, watchdog: bool = True) -> Iterator[Heard]:
    """Run a server of the mock engine as systemd would, with a manager at `address`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(PATIENCE_S)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        environment |= {"NOTIFY_SOCKET": address}
        if watchdog:
            environment |= {"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        command = [sys.executable, "-m", "penstock", "serve", "--engine", "mock", "--port", "0"]
        with subprocess.Popen([*command, *flags], env=environment, stderr=subprocess.DEVNULL) as it:
            try:
                yield Heard(it, manager)
            finally:
                it.kill()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


def port_in(ready: dict[str, str]) -> int:
    found = re.fullmatch(r"serves mock at http://127\.0\.0\.1:(\d+)", ready["STATUS"])
    assert found is not None, ready
    return int(found[1])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_manager_hears_ready_reloading_and_stopping_in_this_order(
    tmp_path: Path, address: str, processes: str
) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice")
    with service(address, "--keys", str(keys.path), "--processes", processes) as heard:
        assert heard.next("READY")["READY"] == "1"
        before = time.monotonic_ns() // 1000
        heard.process.send_signal(signal.SIGHUP)
        reloading = heard.next("RELOADING")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert heard.next("READY") == {"READY": "1"}
        heard.process.send_signal(signal.SIGTERM)
        assert heard.next("STOPPING")["STATUS"] == "stops"
        assert heard.process.wait(PATIENCE_S) == 0


def test_a_server_that_drains_says_how_many_streams_it_waits_for(address: str) -> None:
    with service(address, "--engine-arg", "length=100000") as heard:
        port = port_in(heard.next("READY"))
        stream, _ = open_stream(port, generate())
        heard.process.send_signal(signal.SIGTERM)
        heard.next("STOPPING")
        assert heard.next("STATUS") == {"STATUS": "stops; streams left: 1"}
        stream.close()
        assert heard.process.wait(PATIENCE_S) == 0


def test_a_stopped_event_loop_gives_no_sign_of_life(address: str) -> None:
    with service(address) as heard:
        heard.next("READY")
        heard.next("WATCHDOG")
        heard.process.send_signal(signal.SIGSTOP)
        os.waitpid(heard.process.pid, os.WUNTRACED)
        heard.manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while heard.manager.recv(4096):  # sent before the stop
                pass
        assert heard.is_silent()
        heard.process.send_signal(signal.SIGCONT)
        assert heard.next("WATCHDOG") == {"WATCHDOG": "1"}


def test_without_a_watchdog_there_are_no_signs_of_life(address: str) -> None:
    with service(address, watchdog=False) as heard:
        heard.next("READY")
        assert heard.is_silent()


def test_an_abstract_socket_is_heard_and_engines_do_not_know_it() -> None:
    with service(f"@penstock-test-{os.getpid()}") as heard:
        heard.next("READY")
        engines = psutil.Process(heard.process.pid).children(recursive=True)
        assert engines
        for engine in engines:
            variables = engine.environ()
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(variables)


def test_a_manager_that_went_away_stops_nothing(address: str) -> None:
    with service(address) as heard:
        port = port_in(heard.next("READY"))
        heard.manager.close()
        heard.process.send_signal(signal.SIGHUP)
        stream, _ = open_stream(port, generate(max_tokens=2))
        assert [event for event in stream.events() if "finish_reason" in event]
        stream.close()
        heard.process.send_signal(signal.SIGTERM)
        assert heard.process.wait(PATIENCE_S) == 0
