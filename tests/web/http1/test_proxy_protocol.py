"""The PROXY protocol's headers, whole and cut off anywhere."""

import socket
import struct

import pytest

from penstock.web.http1.proxy_protocol import SIGNATURE_V2, may_be_header, parse


def version_2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE_V2 + struct.pack("!BBH", command, family, len(body)) + body


TCP4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("10.0.0.1") + b"\x30\x39\x00\x50"
TCP6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + b"\x30\x39\x00\x50"
)
GOOD = {
    b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 80\r\n": ("203.0.113.7", 12345),
    b"PROXY TCP6 2001:db8::7 ::1 12345 80\r\n": ("2001:db8::7", 12345),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n": None,
    version_2(0x21, 0x11, TCP4): ("203.0.113.7", 12345),
    version_2(0x21, 0x11, TCP4 + b"\x04\x00\x01\x00"): ("203.0.113.7", 12345),
    version_2(0x21, 0x21, TCP6): ("2001:db8::7", 12345),
    version_2(0x20, 0x00, b""): None,
    version_2(0x21, 0x31, bytes(216)): None,
}


@pytest.mark.parametrize("header", GOOD)
def test_a_header_is_read_and_its_end_found(header: bytes) -> None:
    assert parse(header + b"GET / HTTP/1.1\r\n") == (GOOD[header], len(header))
    for end in range(len(header)):
        assert parse(header[:end]) is None
        assert may_be_header(header[:end])


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 203.0.113.7 10.0.0.1 12345\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 80 x\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 12345 80\r\n",
        b"PROXY TCP4 localhost 10.0.0.1 12345 80\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 99999 80\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 12345 80\r\n",
        b"PROXY TCP4 \xff 10.0.0.1 12345 80\r\n",
        b"PROXY " + b"x" * 200,
        version_2(0x11, 0x11, TCP4),
        version_2(0x22, 0x11, TCP4),
        version_2(0x21, 0x11, TCP4[:8]),
        version_2(0x21, 0x11, bytes(5000)),
    ],
)
def test_a_malformed_header_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError):
        parse(header)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PUT", b"\r\n\r\nGET", b"PROXIES"])
def test_other_bytes_are_no_header(data: bytes) -> None:
    assert parse(data) is None
    assert not may_be_header(data)
