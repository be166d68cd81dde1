"""Real nginx and HAProxy processes in front of a real server."""

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.programs import find_program
from tests.support.waiting import eventually

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
STOP_TIMEOUT_S = 60
# Debian keeps both programs where only root's PATH looks.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
NGINX = """
daemon off;
pid nginx.pid;
worker_processes 1;  # workers share no connections to the server
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{}
}}
"""


def find(name: str) -> str:
    """Return the path of the program; skip or fail the test if it is not installed."""
    return find_program(name, "caddy haproxy nginx-light", "PENSTOCK_REQUIRE_PROXIES", PATH)


def documented(name: str) -> str:
    """Return the configuration of "nginx" or "HAProxy" that the guide for operators shows."""
    page = OPERATIONS.read_text(encoding="utf-8")
    found = re.search(rf"^For {name}:\n\n<!--[^\n]*-->\n```text\n(.*?)^```", page, re.DOTALL | re.M)
    assert found is not None
    return found[1]


def replaced(text: str, old: str, new: str) -> str:
    """Replace a part of a configuration, which must have it once."""
    assert text.count(old) == 1, f"{old!r} in {text}"
    return text.replace(old, new)


@contextlib.contextmanager
def nginx(folder: Path, port: int, config: str) -> Iterator[None]:
    """Run nginx, which listens on `port`, with `config` as the content of its `http` block."""
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(config), encoding="utf-8")
    command = [find("nginx"), "-p", str(folder), "-c", str(file), "-e", "stderr"]
    with running(command, [*command, "-t"], folder, [port]):
        yield


@contextlib.contextmanager
def haproxy(folder: Path, port: int, config: str) -> Iterator[None]:
    """Run HAProxy, which listens on `port`."""
    file = folder / "haproxy.cfg"
    # Threads take connections to the server from each other, but not always in time.
    file.write_text(f"global\n    maxconn 100\n    nbthread 1\n{config}", encoding="utf-8")
    command = [find("haproxy"), "-f", str(file), "-db"]
    with running(command, [*command, "-c"], folder, [port]):
        yield


@contextlib.contextmanager
def running(
    command: Sequence[str], check: Sequence[str], folder: Path, ports: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy in `folder` once `check` accepts its configuration, until the context ends."""
    checked = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    log = folder / "proxy.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        assert eventually(
            lambda: process.poll() is not None or all(_listens(port) for port in ports)
        ), "it never listens"
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield process
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
