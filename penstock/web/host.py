"""Checks the host that a request is for, and the web page it comes from.

The HTTP server passes the Host header on unchecked. This module requires exactly one well-formed
Host header.

Every web page open on a machine can reach a server on that machine: a page may send requests to
http://127.0.0.1:8000, and a page whose own name resolves to 127.0.0.1 (DNS rebinding) could even
read the response. So a server without keys requires that the host is a name of this machine, and
that a page comes from this machine or from an admitted origin. The port does not matter: it may be
forwarded.
"""

import ipaddress
import re
from collections.abc import Callable, Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import Problem
from penstock.web.http1.head import REFUSAL

# RFC 3986: a name or an IPv4 address, or an IPv6 address in brackets; then an optional port.
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rb"https?://(?P<host>[^/]*)")


class HostCheck:
    """ASGI middleware: refuses a request for no host, for another host, or from a foreign page.

    `hosts` returns the admitted names besides this machine's own, or None to admit any name; it
    is called for each request. `origins` are the admitted web origins; "*" admits all. `report`
    makes the response for a problem.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Callable[[], Collection[str] | None],
        origins: Collection[str],
        report: Callable[[Scope, Problem], Response],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an admitted request on."""
        if scope["type"] == "http" and (problem := self._check(scope)):
            await self._report(scope, problem)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Problem | None:
        if refusal := scope.get(REFUSAL):
            problem: Problem = refusal
            return problem
        given = [value for name, value in scope["headers"] if name == b"host"]
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

    def _admits(self, origin: bytes, hosts: Collection[str]) -> bool:
        if "*" in self._origins or origin.decode("latin-1") in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        name = _name_in(found["host"]) if found else None
        return name is not None and _is_ours(name, hosts)


def _name_in(host: bytes) -> str | None:
    """Return the name or address in a Host header, or None if it is malformed."""
    found = _HOST.fullmatch(host)
    return found["name"].decode("ascii").strip("[]").lower() if found else None


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
