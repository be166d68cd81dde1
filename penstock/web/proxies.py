"""Finds a client's address behind proxies that the operator trusts (`--trusted-proxy`).

A proxy appends the address that it was called from to `Forwarded` (RFC 7239) or `X-Forwarded-For`.
Everything to the left of what trusted proxies wrote may be forged. So the list is read from its
end: the first address that is no trusted proxy is the client.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import Scope

from penstock.errors import StartError
from penstock.web.addresses import Address, address_of

# More hops than any real chain has; the rest of the list is not read.
MAX_HOPS = 32
# RFC 7239 allows escapes in quoted values, but no address needs one.
_ELEMENT = re.compile(r'(?:"[^"]*"|[^,"])+')
_PARAMETER = re.compile(r'\s*for=(?:"([^"]*)"|([^\s";,]+))\s*', re.IGNORECASE)


class TrustedProxies:
    """The networks of trusted proxies: addresses or networks, as text. Raises StartError."""

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = [ipaddress.ip_network(each, strict=False) for each in networks]
        except ValueError:
            raise StartError(
                "A trusted proxy is not an address or a network.",
                "For example: --trusted-proxy 10.0.0.0/8 --trusted-proxy ::1",
            ) from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Return True if a trusted proxy has this address."""
        parsed = address_of(address)
        return parsed is not None and self._has(parsed)

    def client_of(self, scope: Scope) -> tuple[str, int] | None:
        """Return the client's address, with the port 0 if a proxy named it.

        If both headers are there and do not agree, one of them is the client's own invention:
        neither is believed, and the proxy itself counts as the client.
        """
        client: tuple[str, int] | None = scope.get("client")
        if client is None or not self.trusts(client[0]):
            return client
        forwarded = _joined(scope, b"forwarded")
        others = _joined(scope, b"x-forwarded-for")
        found = {
            self._first_untrusted(hops)
            for hops, is_given in (
                (_hops_of_forwarded(forwarded), forwarded),
                (others.split(","), others),
            )
            if is_given
        }
        (address,) = found if len(found) == 1 else (None,)
        return client if address is None else (str(address), 0)

    def _first_untrusted(self, hops: Sequence[str]) -> Address | None:
        """Return the last address that is no trusted proxy, or the first of all if all are.

        Return None at a hop that is no address: what stands before it cannot be checked.
        """
        address = None
        for hop in [*reversed(hops)][:MAX_HOPS]:
            address = address_of(_without_port(hop.strip()))
            if address is None or not self._has(address):
                return address
        return address

    def _has(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _joined(scope: Scope, name: bytes) -> str:
    """Return a header's values as one list (RFC 9110, section 5.3)."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ",".join(values)


def _hops_of_forwarded(value: str) -> list[str]:
    """Return the `for` of each element, "" for an element that has none or is malformed."""
    if value.count('"') % 2:
        return [""]
    hops = []
    for element in _ELEMENT.findall(value):
        found = [match for pair in element.split(";") if (match := _PARAMETER.fullmatch(pair))]
        hops.append((found[0][1] or found[0][2]) if len(found) == 1 else "")
    return hops


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
