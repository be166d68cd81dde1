"""Requests in HTTP/2 that are odd or malformed (RFC 9113, section 8).

A malformed request is a stream error: the stream is reset, or answered with 400 at most.
"""

from dataclasses import dataclass

from tests.support.http2 import Headers

METHOD, PATH, SCHEME = (b":method", b"GET"), (b":path", b"/v1/models"), (b":scheme", b"http")
AUTHORITY = (b":authority", b"localhost")
POST, GENERATE = (b":method", b"POST"), (b":path", b"/generate")
JSON = (b"content-type", b"application/json")
BODY = b'{"prompt":"a","max_tokens":1,"stream":false}'

FINE = ("200 next",)
MALFORMED = ("reset next", "400 next", "over")
NOT_OURS = ("403 next",)


@dataclass(frozen=True)
class Case:
    """Headers, perhaps a body and trailers, and the outcomes that are right.

    An outcome ends in "next" if the connection answers another request afterwards. If Granian's
    fault cannot be mended from here, `right` is what Granian does, and `granian_differs` says why.
    """

    name: str
    headers: Headers
    right: tuple[str, ...]
    body: bytes | None = None
    trailers: Headers | None = None
    granian_differs: str = ""


def asked(name: str, right: tuple[str, ...], *more: tuple[bytes, bytes]) -> Case:
    """Make a case for a good request with more headers."""
    return Case(name, [METHOD, PATH, SCHEME, AUTHORITY, *more], right)


def named(name: str, right: tuple[str, ...], *names: tuple[bytes, bytes]) -> Case:
    """Make a case for a good request with these names of its host."""
    pseudo = [each for each in names if each[0].startswith(b":")]
    others = [each for each in names if not each[0].startswith(b":")]
    return Case(name, [METHOD, PATH, SCHEME, *pseudo, *others], right)


def sent(
    name: str,
    right: tuple[str, ...],
    *more: tuple[bytes, bytes],
    body: bytes = BODY,
    trailers: Headers | None = None,
) -> Case:
    """Make a case for a body."""
    headers = [POST, GENERATE, SCHEME, AUTHORITY, JSON, *more]
    return Case(name, headers, right, body, trailers)


def authority(value: bytes) -> tuple[bytes, bytes]:
    return (b":authority", value)


def host(value: bytes) -> tuple[bytes, bytes]:
    return (b"host", value)


# RFC 9113, section 8.3.1: :authority is the host; a Host that differs makes a request malformed.
HOSTS = [
    named("an authority", FINE, authority(b"localhost:8000")),
    named("a host", FINE, host(b"localhost")),
    named("both the same", FINE, authority(b"localhost"), host(b"localhost")),
    named("neither", MALFORMED),
    named("another's authority", NOT_OURS, authority(b"evil.example")),
    named("another's host", NOT_OURS, host(b"evil.example")),
    Case(
        "another's authority and our host",
        [METHOD, PATH, SCHEME, authority(b"evil.example"), host(b"127.0.0.1")],
        FINE,
        granian_differs="Granian tells us the authority only if there is no host",
    ),
    named(
        "our authority and another's host",
        (*FINE, *NOT_OURS, *MALFORMED),
        authority(b"localhost"),
        host(b"evil.example"),
    ),
    named("an empty authority", MALFORMED, authority(b"")),
    named("an empty authority and a host", (*FINE, *MALFORMED), authority(b""), host(b"localhost")),
    named("a user in the authority", MALFORMED, authority(b"me@localhost")),
    named(
        "another's name and our user", (*NOT_OURS, *MALFORMED), authority(b"localhost@evil.example")
    ),
    named("a path in the authority", MALFORMED, authority(b"localhost/x")),
    named("two authorities", MALFORMED, authority(b"localhost"), authority(b"localhost")),
    named(
        "two hosts", MALFORMED, authority(b"localhost"), host(b"localhost"), host(b"evil.example")
    ),
    named("an authority with a dot at its end", FINE, authority(b"localhost.")),
]

PSEUDO = [
    Case("no method", [PATH, SCHEME, AUTHORITY], MALFORMED),
    Case("no path", [METHOD, SCHEME, AUTHORITY], MALFORMED),
    Case("no scheme", [METHOD, PATH, AUTHORITY], MALFORMED),
    Case("an empty method", [(b":method", b""), PATH, SCHEME, AUTHORITY], MALFORMED),
    Case("an empty path", [METHOD, (b":path", b""), SCHEME, AUTHORITY], MALFORMED),
    Case(
        "a path without a slash",
        [METHOD, (b":path", b"v1/models"), SCHEME, AUTHORITY],
        (*MALFORMED, "404 next"),
    ),
    Case(
        "an absolute path",
        [METHOD, (b":path", b"http://evil.example/v1/models"), SCHEME, AUTHORITY],
        (*MALFORMED, *NOT_OURS, "404 next"),
    ),
    Case(
        "a path with a space", [METHOD, (b":path", b"/v1/models x"), SCHEME, AUTHORITY], MALFORMED
    ),
    Case("a path with NUL", [METHOD, (b":path", b"/v1/models\0"), SCHEME, AUTHORITY], MALFORMED),
    Case(
        "a path with CR LF",
        [METHOD, (b":path", b"/v1/models\r\nx: y"), SCHEME, AUTHORITY],
        MALFORMED,
    ),
    Case("an asterisk", [METHOD, (b":path", b"*"), SCHEME, AUTHORITY], (*MALFORMED, "404 next")),
    Case("a method with a space", [(b":method", b"G T"), PATH, SCHEME, AUTHORITY], MALFORMED),
    Case(
        "a method in lower case",
        [(b":method", b"get"), PATH, SCHEME, AUTHORITY],
        (*MALFORMED, "405 next"),
    ),
    Case("another scheme", [METHOD, PATH, (b":scheme", b"ftp"), AUTHORITY], (*FINE, *MALFORMED)),
    Case("two methods", [METHOD, METHOD, PATH, SCHEME, AUTHORITY], MALFORMED),
    Case("two paths", [METHOD, PATH, PATH, SCHEME, AUTHORITY], MALFORMED),
    Case("two schemes", [METHOD, PATH, SCHEME, SCHEME, AUTHORITY], MALFORMED),
    Case("an unknown pseudo-header", [METHOD, PATH, SCHEME, AUTHORITY, (b":x", b"y")], MALFORMED),
    Case("a status", [METHOD, PATH, SCHEME, AUTHORITY, (b":status", b"200")], MALFORMED),
    Case(
        "a pseudo-header after a header",
        [METHOD, PATH, SCHEME, (b"accept", b"*/*"), AUTHORITY],
        MALFORMED,
    ),
    Case(
        "CONNECT",
        [(b":method", b"CONNECT"), AUTHORITY],
        (*MALFORMED, "404 next", "405 next", "501 next"),
    ),
    Case(
        "CONNECT with a protocol",
        [(b":method", b"CONNECT"), (b":protocol", b"websocket"), PATH, SCHEME, AUTHORITY],
        (*MALFORMED, "404 next", "405 next", "501 next"),
    ),
    Case("HEAD", [(b":method", b"HEAD"), PATH, SCHEME, AUTHORITY], FINE),
]

HEADERS = [
    asked("a header in capitals", MALFORMED, (b"Accept", b"*/*")),
    asked("an empty name", MALFORMED, (b"", b"x")),
    asked("a space in a name", MALFORMED, (b"ac cept", b"x")),
    asked("a colon in a name", MALFORMED, (b"ac:cept", b"x")),
    asked("Latin-1 in a name", MALFORMED, (b"acc\xe9pt", b"x")),
    asked("NUL in a value", MALFORMED, (b"accept", b"a\0b")),
    asked("CR in a value", MALFORMED, (b"accept", b"a\rb")),
    asked("LF in a value", MALFORMED, (b"accept", b"a\nb")),
    asked("CR LF and a header in a value", MALFORMED, (b"accept", b"a\r\nhost: evil.example")),
    asked("Latin-1 in a value", FINE, (b"accept", b"caf\xe9")),
    asked("an empty value", FINE, (b"accept", b"")),
    asked("a header twice", FINE, (b"accept", b"a"), (b"accept", b"b")),
    asked("Connection: close", MALFORMED, (b"connection", b"close")),
    asked("Keep-Alive", MALFORMED, (b"keep-alive", b"timeout=5")),
    asked("Proxy-Connection", MALFORMED, (b"proxy-connection", b"close")),
    asked("Upgrade", MALFORMED, (b"upgrade", b"websocket")),
    asked("Transfer-Encoding", MALFORMED, (b"transfer-encoding", b"chunked")),
    asked("TE: trailers", FINE, (b"te", b"trailers")),
    asked("TE: gzip", MALFORMED, (b"te", b"gzip")),
    asked("90 lines", FINE, *((b"x-%d" % n, b"y") for n in range(90))),
    asked(
        "200 lines", ("431 next", "reset next", "over"), *((b"x-%d" % n, b"y") for n in range(196))
    ),
    asked(
        "200 lines of one name", ("431 next", "reset next", "over"), *[(b"accept", b"*/*")] * 196
    ),
    asked("a value of 70 KB", ("431 next", "reset next", "over"), (b"accept", b"x" * 70_000)),
    asked("cookies in crumbs", FINE, *[(b"cookie", b"a=b")] * 20),
]

LENGTH = (b"content-length", b"%d" % len(BODY))
BODIES = [
    sent("a body", FINE),
    sent("a body with its length", FINE, LENGTH),
    sent("a body that is longer than its length", MALFORMED, (b"content-length", b"5")),
    sent("a body that is shorter than its length", MALFORMED, (b"content-length", b"500")),
    sent("a negative length", MALFORMED, (b"content-length", b"-1")),
    sent("a length that is a word", MALFORMED, (b"content-length", b"five")),
    sent("two lengths", MALFORMED, LENGTH, (b"content-length", b"5")),
    sent("an empty body with a length", MALFORMED, LENGTH, body=b""),
    sent("a body and trailers", FINE, trailers=[(b"x", b"y")]),
    sent(
        "a pseudo-header among the trailers", (*FINE, *MALFORMED), trailers=[(b":path", b"/nope")]
    ),
    sent("a length that is too large", ("413 next", *MALFORMED), (b"content-length", b"99999999")),
    sent("a transfer coding", MALFORMED, (b"transfer-encoding", b"chunked")),
]

CASES = [*HOSTS, *PSEUDO, *HEADERS, *BODIES]
