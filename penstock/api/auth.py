"""Who asks: the owner that a request's streams belong to.

In: a request's head. Out: an owner. Not known here: streams.
"""

import ipaddress

from starlette.types import Scope

from penstock.stream.owners import Owner


def owner_of(scope: Scope) -> Owner:
    """Whose this request is: without keys, that of whoever is at the address it comes from."""
    client = scope.get("client")
    return Owner("address " + _network(client[0] if client else ""))


def _network(address: str) -> str:
    """The part of an address that nobody has a thousand of: of IPv6, what one line is given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
