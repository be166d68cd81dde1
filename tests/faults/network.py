"""Machines on this machine: network namespaces, and links between them that a test breaks.

In: names of machines, and which of them a link joins. Out: commands that run a program in a
machine, addresses, and links that lose what they carry. It knows nothing about the programs.
https://man7.org/linux/man-pages/man8/ip-netns.8.html
"""

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.programs import find_program

VARIABLE = "PENSTOCK_REQUIRE_NAMESPACES"
SUBNETS = list(IPv4Network("198.18.0.0/15").subnets(new_prefix=30))
"""A subnet for each link. RFC 2544 reserves these addresses for tests of networks."""

NOBODY = "02:00:00:00:00:01"
"""A hardware address that no machine has: frames to it are lost, and nobody is told."""

HERE = ""
"""The machine on which the test runs: this thread's own while there is a network."""

CLONE_NEWNET = 0x40000000


def ip(*words: str, machine: str = HERE) -> None:
    """Run `ip` in a machine. Raises CalledProcessError, with its standard error, if it fails."""
    place = ["-n", machine] if machine else []
    subprocess.run(["ip", *place, *words], check=True, capture_output=True, text=True)


def within(machine: str) -> str:
    """Return the command that runs in a machine the command that follows it."""
    return f"ip netns exec {machine}"


class End(NamedTuple):
    """One end of a link."""

    machine: str
    device: str
    address: str


class Link:
    """A cable between two machines. Whatever it loses, neither machine is told."""

    def __init__(self, near: End, far: End) -> None:
        self.near = near
        self.far = far

    def lose_to_near(self) -> None:
        """Lose what the far machine sends."""
        _misdirect(self.far, self.near)

    def lose_to_far(self) -> None:
        """Lose what the near machine sends."""
        _misdirect(self.near, self.far)

    def cut(self) -> None:
        """Lose everything."""
        self.lose_to_near()
        self.lose_to_far()

    def mend(self) -> None:
        """Lose nothing any more."""
        for end in (self.near, self.far):
            ip("neigh", "flush", "dev", end.device, "nud", "permanent", machine=end.machine)


def _misdirect(sender: End, receiver: End) -> None:
    """Let a machine send what is for `receiver` to nobody. (nftables and netem would need modules
    of the kernel that many machines do not have.)"""
    neighbor = ["neigh", "replace", receiver.address, "lladdr", NOBODY, "nud", "permanent"]
    ip(*neighbor, "dev", sender.device, machine=sender.machine)


@contextlib.contextmanager
def another_machine() -> Iterator[None]:
    """Move this thread, and what it starts, to a machine without any network. Raises OSError.

    Otherwise the links would be devices of the system's own network, and whenever these change,
    Chromium gives up what it loads: a page of another test (ERR_NETWORK_CHANGED).
    https://man7.org/linux/man-pages/man2/setns.2.html
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0


class Network:
    """Machines and links, until `close`. Their names are this process's own. Raises OSError."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(another_machine())
        self._numbers = itertools.count()

    def machine(self, name: str) -> str:
        """Add a machine; return the full name of its namespace."""
        full = f"penstock-{os.getpid()}-{name}"
        ip("netns", "add", full)
        self._stack.callback(ip, "netns", "delete", full)
        ip("link", "set", "lo", "up", machine=full)
        return full

    def link(self, near: str, far: str) -> Link:
        """Join two machines by a cable."""
        number = next(self._numbers)
        devices = [f"p{os.getpid()}-{number}-{side}" for side in "nf"]
        ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
        # The system gives no index to two devices of this machine.
        subnet = SUBNETS[socket.if_nametoindex(devices[0]) % len(SUBNETS)]
        if HERE in (near, far):  # the devices in a namespace go with it
            self._stack.callback(ip, "link", "delete", devices[(near, far).index(HERE)])
        return Link(
            *(
                _plug(End(machine, device, str(address)))
                for machine, device, address in zip(
                    (near, far), devices, subnet.hosts(), strict=True
                )
            )
        )

    def close(self) -> None:
        """Remove everything."""
        self._stack.close()


def _plug(end: End) -> End:
    """Put one end of a new cable into its machine."""
    if end.machine != HERE:
        ip("link", "set", end.device, "netns", end.machine)
    ip("addr", "add", f"{end.address}/30", "dev", end.device, machine=end.machine)
    ip("link", "set", end.device, "up", machine=end.machine)
    return end


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Yield a network, and remove it at the end.

    Skip the test, or fail it if PENSTOCK_REQUIRE_NAMESPACES=1, where namespaces cannot be made:
    without root, in most containers, and on other systems than Linux.
    """
    find_program("ip", "iproute2", VARIABLE)
    with contextlib.ExitStack() as stack:
        try:
            new = stack.enter_context(contextlib.closing(Network()))
            new.link(HERE, new.machine("trial"))
        except (OSError, subprocess.CalledProcessError) as error:
            why = (
                error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
            )
            reason = f"no network namespaces can be made here: {why}"
            if os.environ.get(VARIABLE) == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        yield new
