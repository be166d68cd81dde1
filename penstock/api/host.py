"""The Host header, which the HTTP library lets through as it comes: exactly one, well-formed."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.api.problems import problem_response
from penstock.errors import BadRequest

# RFC 3986: a name or IPv4 address, or an IPv6 address in brackets; then perhaps a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class HostCheck:
    """ASGI middleware: 400 for a request that does not say which host it is for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_well_formed(scope):
            problem = BadRequest(
                "bad_host", "The request must have exactly one well-formed Host header."
            )
            await problem_response(problem)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_well_formed(scope: Scope) -> bool:
    """Whether there is exactly one Host header, in RFC 3986's grammar."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None
