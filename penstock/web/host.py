"""Which host a request is for, and which page it comes from.

The HTTP library lets the Host header through as it comes: here it is exactly one, and well-formed.

A server that only this machine can reach is still reached by every web page that is open on it: a
page may ask for http://127.0.0.1:8000, and one whose own name is made to resolve to 127.0.0.1 (DNS
rebinding) may even read the answer. So where no key is asked for, the host must be a name of this
machine, and a page that asks must come from there as well, or from an origin that is admitted. The
port may be any: it may be forwarded.
"""

import ipaddress
import re
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import Problem
from penstock.web.problems import problem_for

# RFC 3986: a name or IPv4 address, or an IPv6 address in brackets; then perhaps a port.
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rb"https?://(?P<host>[^/]*)")


class HostCheck:
    """ASGI middleware: refuses requests that are for no host, or for one that is not this.

    `hosts`: names beside those of this machine, or None where any will do; asked for each request.
    `origins`: those admitted from elsewhere ("*": all of them).
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Callable[[], Collection[str] | None],
        origins: Collection[str],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._check(scope)):
            await problem_for(scope, problem)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Problem | None:
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
                "This server answers to the names of its own machine only. --allow-host admits"
                " another.",
            )
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if not all(self._admits(origin, hosts) for origin in origins):
            return Problem(
                "origin_not_allowed",
                "Pages from elsewhere may not use this server. --cors-origin admits them.",
            )
        return None

    def _admits(self, origin: bytes, hosts: Collection[str]) -> bool:
        if "*" in self._origins or origin.decode("latin-1") in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        name = _name_in(found["host"]) if found else None
        return name is not None and _is_ours(name, hosts)


def _name_in(host: bytes) -> str | None:
    """The name or address in a Host header; None where it is not well-formed."""
    found = _HOST.fullmatch(host)
    return found["name"].decode("ascii").strip("[]").lower() if found else None


def _is_ours(name: str, hosts: Collection[str]) -> bool:
    return is_loopback(name) or name in hosts


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine, and none else."""
    if name in ("127.0.0.1", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")
