"""Reads the PROXY protocol, versions 1 and 2: a proxy's word about who its client is.

A proxy that does not speak HTTP (a TCP balancer) sends it as the first bytes of a connection.
Source: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
"""

import ipaddress
import struct

MAX_V1_BYTES = 107
SIGNATURE_V1 = b"PROXY "
SIGNATURE_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_HEAD_V2 = 16
# Version 2 may carry further information, such as TLS names. This bounds it.
MAX_V2_BYTES = 4096
_LOCAL = 0x20
_PROXY = 0x21
_TCP4 = 0x11
_TCP6 = 0x21

Source = tuple[str, int]


def may_be_header(data: bytes) -> bool:
    """Return True if a connection that begins so may begin with the PROXY protocol."""
    return any(
        data.startswith(signature) or signature.startswith(data)
        for signature in (SIGNATURE_V1, SIGNATURE_V2)
    )


def parse(data: bytes) -> tuple[Source | None, int] | None:
    """Return the client's address and the header's length in bytes.

    The address is None if the proxy speaks for itself or does not know it. The result is None if
    the header is not complete. Raises ValueError if it is malformed.
    """
    if data.startswith(SIGNATURE_V1):
        return _parse_v1(data)
    if data.startswith(SIGNATURE_V2):
        return _parse_v2(data)
    return None


def _parse_v1(data: bytes) -> tuple[Source | None, int] | None:
    line, end, _ = data[:MAX_V1_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= MAX_V1_BYTES:
            raise ValueError("the line is too long")
        return None
    size = len(line) + len(end)
    parts = line.decode("ascii").split(" ")
    if parts[1] == "UNKNOWN":
        return None, size
    _, family, source, destination, port, _ = parts
    kinds = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
    if family not in kinds or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("an unknown family, or a port that is none")
    kinds[family](destination)
    return (str(kinds[family](source)), int(port)), size


def _parse_v2(data: bytes) -> tuple[Source | None, int] | None:
    if len(data) < _HEAD_V2:
        return None
    command, family, length = struct.unpack("!BBH", data[12:_HEAD_V2])
    size = _HEAD_V2 + length
    if command not in (_LOCAL, _PROXY) or size > MAX_V2_BYTES:
        raise ValueError("an unknown command, or too long")
    if len(data) < size:
        return None
    body = data[_HEAD_V2:size]
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return None, size
    width = 4 if family == _TCP4 else 16
    if length < 2 * width + 4:
        raise ValueError("an address is missing")
    port = int.from_bytes(body[2 * width : 2 * width + 2], "big")
    return (str(ipaddress.ip_address(body[:width])), port), size
