"""Tells the service manager (systemd, `Type=notify`) how this program is.

In: what happens to the server. Out: datagrams to the socket that NOTIFY_SOCKET names, in the form
of sd_notify(3). Without that variable nobody wants to know, and nothing is sent. A datagram that
cannot be sent is lost: no service manager may stop the server.
"""

import asyncio
import contextlib
import os
import socket
import time

# A watchdog that is fed twice in its time outlives one late turn of the event loop.
FEEDS_PER_TIMEOUT = 2


class Service:
    """The service that this process is the main process of, if it is one.

    Takes the service manager's variables out of the environment: they are for this process alone,
    and not for its engines.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        timeout_us = os.environ.pop("WATCHDOG_USEC", "")
        watched_pid = os.environ.pop("WATCHDOG_PID", "")
        # An abstract address begins with a zero byte; variables spell it as "@".
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        is_watched = timeout_us.isdecimal() and watched_pid in ("", str(os.getpid()))
        self._watchdog_s = int(timeout_us) / 1e6 if is_watched else 0.0
        self._is_ready = False

    def ready(self, status: str = "") -> None:
        """Say that the server serves; also after `reloading`, if it served before."""
        self._is_ready = self._is_ready or bool(status)
        if self._is_ready:
            self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """Say that the server reads its keys again. Call `ready` when it has."""
        if self._is_ready:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the server begins to stop."""
        self._is_ready = False
        self._send("STOPPING=1", "STATUS=stops")

    def tell(self, status: str) -> None:
        """Say how the server is, in a few words for `systemctl status`."""
        self._send(f"STATUS={status}")

    async def feed_watchdog(self) -> None:
        """Give signs of life for as long as the event loop turns, if anybody watches for them."""
        while self._watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / FEEDS_PER_TIMEOUT)

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        # A line break in a status (a model's name is anybody's) would begin another message.
        text = "\n".join(line.replace("\n", " ") for line in lines)
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(), self._address)
