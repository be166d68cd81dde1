"""Ports for servers of tests that must have their number before they listen, or keep it meanwhile.

The kernel gives none of these ports away: neither to a socket that asks for any port, nor to the
near end of a connection. So nobody takes one while its server is being started again, and nobody
who tries to reach it meanwhile can be connected to himself.
"""

import contextlib
import os
import random
import socket
from pathlib import Path

LOWEST = 15_000
# Where the kernel's own ports begin if it does not say so.
END = 32_768
# Workers of pytest never get the same port, if there are at most so many of them.
MAX_WORKERS = 16
_KERNEL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, at any address, and that this process has not got."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ours = range(LOWEST + worker % MAX_WORKERS, _end(), MAX_WORKERS)
    while True:
        port = _chance.choice(ours)
        if port not in _given and _is_free(port):
            _given.add(port)
            if len(_given) > len(ours) / 2:  # the first of them are long free again
                _given.clear()
            return port


def _end() -> int:
    with contextlib.suppress(OSError):
        first = int(_KERNEL_PORTS.read_text(encoding="ascii").split()[0])
        if first > LOWEST + MAX_WORKERS:
            return min(first, END)
    return END


def _is_free(port: int) -> bool:
    with socket.socket() as trying, contextlib.suppress(OSError):
        # As servers do: connections of the one before may linger.
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trying.bind(("0.0.0.0", port))
        return True
    return False
