"""Checks the host that a request is for, and the web page it comes from.

The HTTP server passes the Host header on unchecked. This module requires exactly one well-formed
Host header, except from clients of HTTP/1.0 and for health checks, which may have none.

Every web page open on a machine can reach a server on that machine: a page may send requests to
http://127.0.0.1:8000, and a page whose own name resolves to 127.0.0.1 (DNS rebinding) could even
read the response. So a server without keys requires that the host is a name of this machine, and
that a page comes from this machine or from an admitted origin. The port does not matter: it may be
forwarded.
"""

import ipaddress
import re
from collections.abc import Callable, Collection

from starlette.types import Scope

from penstock.errors import Problem

# RFC 3986: a name or an IPv4 address, or an IPv6 address in brackets; then an optional port.
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# The path of the health checks, which tell nothing about anyone.
_HEALTH = "/health"
_ORIGIN = re.compile(rb"https?://(?P<host>[^/]*)")


class HostCheck:
    """Refuses requests for no host, for another host, or from a foreign page.

    `hosts` returns the admitted names besides this machine's own, or None to admit any name; it
    is called for each request. `origins` are the admitted web origins; "*" admits all.
    """

    def __init__(
        self, hosts: Callable[[], Collection[str] | None], origins: Collection[str]
    ) -> None:
        self._hosts = hosts
        self._origins = origins

    def problem(self, scope: Scope) -> Problem | None:
        """Return the problem for which a request is refused, or None to admit it."""
        given = [value for name, value in scope["headers"] if name == b"host"]
        if not any(given) and self._needs_no_host(scope):
            return None
        host = _name_in(given[0]) if len(given) == 1 else None
        if host is None:
            return Problem("bad_host", "The request must have exactly one well-formed Host header.")
        hosts = self._hosts()
        if hosts is None:
            return None
        if not _is_ours(host, hosts):
            return Problem(
                "host_not_allowed",
                "This server only accepts the names of its own machine as Host. Start it with"
                " --allow-host NAME to admit another name.",
            )
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if not all(self._admits(origin, hosts) for origin in origins):
            return Problem(
                "origin_not_allowed",
                "Web pages from other origins may not use this server. Start it with"
                " --cors-origin ORIGIN to admit one.",
            )
        return None

    @staticmethod
    def _needs_no_host(scope: Scope) -> bool:
        """Return True for old clients and for probes, which are no browsers and send no Host."""
        return scope.get("http_version") in ("1.0", "1") or scope["path"].startswith(_HEALTH)

    def _admits(self, origin: bytes, hosts: Collection[str]) -> bool:
        if "*" in self._origins or origin.decode("latin-1") in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        name = _name_in(found["host"]) if found else None
        return name is not None and _is_ours(name, hosts)


def _name_in(host: bytes) -> str | None:
    """Return the name or address in a Host header, or None if it is malformed."""
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    name = found["name"].decode("ascii").strip("[]").lower()
    return name.removesuffix(".") or None  # the root of all names may be spelled out


def _is_ours(name: str, hosts: Collection[str]) -> bool:
    return is_loopback(name) or name in hosts


def is_loopback(name: str) -> bool:
    """Return True if a name or address can only mean this machine."""
    if name in ("127.0.0.1", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")
