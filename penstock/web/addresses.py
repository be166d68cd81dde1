"""Clients' addresses: how they are read, and which of them count as one client.

In: text. Out: an address or a network. Not known here: sockets, headers, connections.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(text: str) -> Address | None:
    """Return the address; an IPv4 address in IPv6's form is an IPv4 address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def network_of(text: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or an IPv6 network of /64.

    Whoever has an IPv6 address usually has 2^64 of them. Text that is no address stays as it is.
    """
    if ":" not in text:
        return text
    address = address_of(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return text if address is None else str(address)
