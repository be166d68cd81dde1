"""The head of an HTTP/1.1 response, and the framing of its body (RFC 9112, sections 4 to 7)."""

import http
from collections.abc import Iterable
from email.utils import formatdate

VERSION = b"HTTP/1.1 "
STATUS_LINES = {
    status.value: VERSION + b"%d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODYLESS = (204, 304)


def date_line(now: float) -> bytes:
    """Return the `Date` header for a moment, in seconds since 1970."""
    return b"date: %b\r\n" % formatdate(now, usegmt=True).encode()


def head(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    date: bytes,
    *,
    is_1_1: bool,
    keep_alive: bool,
    length: int | None,
) -> tuple[bytes, bool, bool]:
    """Return the head, whether the body has chunks, and whether the connection stays open.

    `length` is the body's length in bytes if it is known; a Content-Length among `headers` wins.
    A body of unknown length has chunks in HTTP/1.1; in HTTP/1.0 the connection's end is its end.
    """
    lines = [STATUS_LINES.get(status) or VERSION + b"%d \r\n" % status]
    has_length = status in _BODYLESS
    for name, value in headers:
        if name == b"content-length":
            has_length = True
        elif name == b"connection":
            keep_alive = keep_alive and value.lower() != b"close"
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    is_chunked = False
    if not has_length:
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif is_1_1:
            is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            keep_alive = False
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    elif not is_1_1:
        lines.append(b"connection: keep-alive\r\n")
    lines.append(date)
    lines.append(b"\r\n")
    return b"".join(lines), is_chunked, keep_alive


def chunk(data: bytes) -> bytes:
    """Return data as a chunk; an empty one would end the body, so it is left out."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
