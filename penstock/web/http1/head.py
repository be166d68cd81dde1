"""The head of an HTTP/1.1 request: what we accept beyond the parser's own checks.

In: what the parser found. Out: an ASGI scope, or the problem for which the request is refused. The
parser (llhttp, in its strict mode) has checked the grammar of every line. The rules here are about
how the parts fit together, where servers and proxies that disagree can be tricked into reading
different requests (request smuggling).
"""

from typing import Any
from urllib.parse import unquote

from penstock.errors import Problem

Header = tuple[bytes, bytes]

CLOSE = {"Connection": "close"}
MAX_BYTES = 64 * 1024
"""The longest head, in bytes."""
MAX_LINES = 100
"""The most header lines."""
# A bare `OPTIONS *` has no path of its own; it asks about the server as a whole.
_ASTERISK = b"*"


REFUSAL = "penstock.refusal"
"""The key of the problem in the scope of a request that must be refused."""


MAX_DIGITS = 20
"""The digits of the greatest length, 2^64 - 1. A number with more of them is greater."""


def number_in(digits: bytes) -> int:
    """Return the number, -1 if there is none. Python refuses to read thousands of zeros."""
    return int(digits.lstrip(b"0")[:MAX_DIGITS] or b"0") if digits.isdigit() else -1


def length_of(headers: list[Header]) -> int:
    """Return the length of the body in bytes, -1 if it has chunks. The headers were checked."""
    for name, value in headers:
        if name == b"content-length":
            return number_in(value)
        if name == b"transfer-encoding":
            return -1
    return 0


def wants_close(headers: list[Header]) -> bool:
    """Return True if any Connection header asks to close the connection."""
    return any(
        name == b"connection" and b"close" in [each.strip() for each in value.lower().split(b",")]
        for name, value in headers
    )


def expects_continue(version: str, headers: list[Header]) -> bool:
    """Return True if the client waits for `100 Continue` before it sends its body."""
    return version == "1.1" and any(
        name == b"expect" and value.lower() == b"100-continue" for name, value in headers
    )


def check(version: str, headers: list[Header]) -> Problem | None:
    """Return the problem with these headers, if there is one; names are in lower case."""
    if version not in ("1.1", "1.0"):
        return Problem(
            "unsupported_version", "This server speaks HTTP/1.1 and HTTP/1.0.", headers=CLOSE
        )
    fault = fault_of_coding(headers)
    # The parser refuses a Content-Length beside a Transfer-Encoding.
    if (
        fault is None
        and version == "1.0"
        and any(name == b"transfer-encoding" for name, _ in headers)
    ):
        return _bad("HTTP/1.0 has no Transfer-Encoding.")
    return fault


def fault_of_coding(headers: list[Header]) -> Problem | None:
    """Return the problem with the body's transfer coding: only `chunked` alone is fine.

    Source: RFC 9112, section 6.1.
    """
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if not codings or (len(codings) == 1 and codings[0].lower() == b"chunked"):
        return None
    return Problem(
        "unsupported_coding",
        "The only transfer coding is chunked. Send the body as it is.",
        headers=CLOSE,
    )


def place(target: bytes, version: str, headers: list[Header]) -> tuple[bytes, bytes] | Problem:
    """Return the raw path and the query of a request's target. Changes `headers`.

    A target with an authority replaces the Host header (RFC 9112, section 3.2.2).
    """
    if target[:1] != b"/" and target != _ASTERISK:
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            return _bad("The request's target is neither a path nor an http URL.")
        authority, slash, path = rest.partition(b"/")
        if b"?" in authority:
            authority, _, query = rest.partition(b"?")
            slash, path = b"/", b"?" + query
        if b"@" in authority or not authority:
            return _bad("The request's target has no host, or a user's name.")
        num_hosts = sum(name == b"host" for name, _ in headers)
        if not num_hosts and version == "1.1":
            return _bad("An HTTP/1.1 request must have a Host header, whatever its target is.")
        if num_hosts <= 1:  # several are refused later
            headers[:] = [each for each in headers if each[0] != b"host"]
            headers.append((b"host", authority))
        target = (slash or b"/") + path
    if b"#" in target:
        return _bad("The request's target has a fragment (#).")
    path, _, query = target.partition(b"?")
    return path, query


def scope_of(
    method: str,
    version: str,
    raw_path: bytes,
    query: bytes,
    headers: list[Header],
) -> dict[str, Any]:
    """Return the ASGI scope of a request; its connection adds the client and the peer."""
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": version,
        "method": method,
        "scheme": "http",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
    }


_ASGI = {"version": "3.0", "spec_version": "2.4"}


def unknown_method() -> Problem:
    """Return the problem of a method that HTTP does not have, or that only proxies serve."""
    return Problem("unknown_method", "This server does not know the HTTP method.", headers=CLOSE)


def malformed(reason: str) -> Problem:
    """Return the problem of a request that the parser refuses; `reason` is the parser's own."""
    return _bad(f"The request is not HTTP/1.1: {reason}.")


def too_large() -> Problem:
    """Return the problem of a head that is too long."""
    return Problem(
        "head_too_large",
        f"The request's head has more than {MAX_BYTES} bytes or {MAX_LINES} lines.",
        headers=CLOSE,
    )


def too_slow(timeout: float) -> Problem:
    """Return the problem of a head that did not arrive in time."""
    return Problem(
        "head_timeout",
        f"The request's head did not arrive within {timeout:g} seconds.",
        headers=CLOSE,
    )


def _bad(detail: str) -> Problem:
    return Problem("bad_request", detail, headers=CLOSE)
