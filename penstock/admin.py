"""The application of the admin port: health checks and metrics, for machines and without keys.

In: the routes, and the address that the port listens on. Out: an ASGI application that serves
these routes and nothing else. Not known here: how the checks and the metrics are made.
"""

from collections.abc import Sequence

from starlette.routing import Route
from starlette.types import ASGIApp

from penstock.api.native.errors import problem_details
from penstock.observe.meter import Meter
from penstock.web.access import AccessMiddleware
from penstock.web.auth import KeyCheck
from penstock.web.gate import Gate
from penstock.web.granian import GranianPeer
from penstock.web.host import HostCheck, is_loopback
from penstock.web.keys import KeyRing
from penstock.web.problems import ErrorResponses, RouteGroup


def create_admin_app(routes: Sequence[Route], host: str, meter: Meter) -> AccessMiddleware:
    """Return the application that serves `routes` to everybody who reaches `host`.

    On this machine alone, requests must name this machine, so that no web page can read the
    metrics (see `host`). On any other address, probes use whatever names they know.
    """
    names = {host.lower()} if is_loopback(host) else None

    def no_pages(inner: ASGIApp) -> ASGIApp:
        return inner

    gate = Gate(
        routes,
        HostCheck(lambda: names, origins=()),
        KeyCheck(KeyRing()),
        ErrorResponses([RouteGroup(routes, problem_details, prefix="/")]),
        no_pages,
        always_cors=False,
    )
    return AccessMiddleware(gate, meter, GranianPeer)
