"""Connection, Upgrade, Expect, and codings of a body's content (RFC 9110)."""

import gzip
import zlib

from tests.wire.case import (
    BAD,
    BODY,
    FINE,
    FINE_OR_BAD,
    INNER,
    Case,
    chunked,
    either,
    get,
    length,
    post,
)

CHUNKED = b"Transfer-Encoding: chunked"
LAST = ("200 close",)
# What the server is not asked for in its own words, it may ignore.
EXPECTATION_FAILED = (*FINE, *either(417))
BOMB = gzip.compress(b'{"prompt": "' + b"a" * 5_000_000 + b'"}')


def options(name: str, *lines: bytes, right: tuple[str, ...] = FINE) -> Case:
    return Case(name, get(*lines), right)


CONNECTION = [
    options("close", b"Connection: close", right=LAST),
    options("Close", b"Connection: Close", right=LAST),
    options("CLOSE", b"CONNECTION: CLOSE", right=LAST),
    options("close in a list", b"Connection: x, close", right=LAST),
    options("close first in a list", b"Connection: close, x", right=LAST),
    options("close without a space in a list", b"Connection: x,close", right=LAST),
    options("close and keep-alive", b"Connection: close, keep-alive", right=LAST),
    options("keep-alive and close", b"Connection: keep-alive, close", right=LAST),
    options("close in a second line", b"Connection: x\r\nConnection: close", right=LAST),
    options("close with blanks", b"Connection: \tclose\t", right=LAST),
    options("keep-alive", b"Connection: keep-alive"),
    options("Keep-Alive with its header", b"Connection: Keep-Alive\r\nKeep-Alive: timeout=5"),
    options("an unknown option", b"Connection: cow"),
    options("an option that begins like close", b"Connection: closed"),
    options("an option that ends like close", b"Connection: unclose"),
    options("an empty option", b"Connection:"),
    options("a list of commas", b"Connection: ,,,"),
    options("host as an option", b"Connection: host"),
    options("content-length as an option", b"Connection: content-length"),
    options("Proxy-Connection", b"Proxy-Connection: close", right=(*FINE, *LAST)),
    options("te", b"Connection: TE\r\nTE: trailers"),
    Case("close of a POST", post(length(BODY), b"Connection: close"), LAST),
    Case("close of chunks", post(CHUNKED, b"Connection: close", body=chunked(BODY)), LAST),
    Case("close of an error", get(b"Connection: close", target=b"/nope"), ("404 close",)),
    Case("close of HEAD", get(b"Connection: close", method=b"HEAD"), LAST),
    Case(
        "keep-alive in HTTP/1.0",
        get(b"Connection: keep-alive", version=b"HTTP/1.0"),
        ("200 next", "200 close"),
    ),
    Case("close in HTTP/1.0", get(b"Connection: close", version=b"HTTP/1.0"), LAST),
    Case("both in HTTP/1.0", get(b"Connection: keep-alive, close", version=b"HTTP/1.0"), LAST),
    Case(
        "keep-alive of a POST in HTTP/1.0",
        post(length(BODY), b"Connection: keep-alive", version=b"HTTP/1.0"),
        ("200 next", "200 close"),
    ),
    Case("HEAD in HTTP/1.0", get(method=b"HEAD", version=b"HTTP/1.0"), LAST),
]

H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

# The server knows no other protocol: it goes on in HTTP/1.1 (RFC 9110, section 7.8).
UPGRADE = [
    options("h2c", *H2C),
    options("websocket", *WEBSOCKET),
    options("an unknown protocol", b"Connection: upgrade\r\nUpgrade: cow/1"),
    options("TLS", b"Connection: upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1"),
    options("a list of protocols", b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket"),
    options("an upgrade to nothing", b"Connection: Upgrade"),
    options("a protocol without the option", b"Upgrade: websocket"),
    options("an empty protocol", b"Connection: Upgrade\r\nUpgrade:"),
    options("close and an upgrade", b"Connection: close, Upgrade\r\nUpgrade: h2c", right=LAST),
    Case("h2c of a POST", post(length(BODY), *H2C), FINE),
    Case("h2c of chunks", post(CHUNKED, *H2C, body=chunked(BODY)), FINE),
    Case("websocket of a POST", post(length(BODY), *WEBSOCKET), FINE),
    Case("h2c of HEAD", get(*H2C, method=b"HEAD"), FINE),
    Case(
        "an upgrade and a request in the body", post(length(INNER), *H2C, body=INNER), either(400)
    ),
    Case(
        "an upgrade and a request in a chunk", post(CHUNKED, *H2C, body=chunked(INNER)), either(400)
    ),
    Case(
        "an upgrade, a coding and a length",
        post(CHUNKED, b"Content-Length: 5", *H2C, body=chunked(INNER)),
        BAD,
    ),
    Case("an upgrade in HTTP/1.0", get(*H2C, version=b"HTTP/1.0"), LAST),
]

EXPECT = [
    Case(
        "100-continue, and the body at once",
        post(length(BODY), b"Expect: 100-continue"),
        (*FINE, "100 200 next"),
    ),
    Case("100-Continue", post(length(BODY), b"Expect: 100-Continue"), (*FINE, "100 200 next")),
    Case(
        "100-continue of chunks",
        post(CHUNKED, b"Expect: 100-continue", body=chunked(BODY)),
        (*FINE, "100 200 next"),
    ),
    Case("100-continue without a body", get(b"Expect: 100-continue"), FINE),
    Case("100-continue of a length of 0", get(b"Expect: 100-continue", b"Content-Length: 0"), FINE),
    Case(
        "100-continue in HTTP/1.0",
        post(length(BODY), b"Expect: 100-continue", version=b"HTTP/1.0"),
        LAST,
    ),
    Case(
        "100-continue, twice",
        post(length(BODY), *[b"Expect: 100-continue"] * 2),
        (*EXPECTATION_FAILED, "100 200 next"),
    ),
    Case(
        "100-continue of what is too large",
        post(b"Expect: 100-continue", b"Content-Length: 99999999"),
        ("413 close",),
    ),
    Case(
        "100-continue of an unknown route",
        post(length(BODY), b"Expect: 100-continue", target=b"/nope"),
        either(404),
    ),
    Case(
        "100-continue of a request in a body",
        post(length(INNER), b"Expect: 100-continue", body=INNER),
        ("100 400 next", *either(400)),
    ),
    Case(
        "100-continue of a request in a body that nobody reads",
        post(length(INNER), b"Expect: 100-continue", body=INNER, target=b"/nope"),
        either(404),
    ),
    Case("an unknown expectation", get(b"Expect: cow"), EXPECTATION_FAILED),
    Case(
        "an unknown expectation of a POST", post(length(BODY), b"Expect: cow"), EXPECTATION_FAILED
    ),
    Case("an empty expectation", get(b"Expect:"), EXPECTATION_FAILED),
    Case(
        "100-continue and an unknown one",
        post(length(BODY), b"Expect: 100-continue, cow"),
        (*EXPECTATION_FAILED, "100 200 next"),
    ),
    Case("an expectation with a value", get(b"Expect: 100-continue=1"), EXPECTATION_FAILED),
]


def content(name: str, coding: bytes, body: bytes, *right: str) -> Case:
    return Case(name, post(b"Content-Encoding: " + coding, length(body), body=body), right)


# Either the server inflates a body, within the same bounds, or it says that it does not (415).
CONTENT = [
    content("identity", b"identity", BODY, *FINE, *either(415)),
    content("gzip", b"gzip", gzip.compress(BODY), *FINE, *either(415)),
    content("GZip", b"GZip", gzip.compress(BODY), *FINE, *either(415)),
    content("x-gzip", b"x-gzip", gzip.compress(BODY), *FINE, *either(415)),
    content("deflate", b"deflate", zlib.compress(BODY), *FINE, *either(415)),
    content("gzip twice", b"gzip, gzip", gzip.compress(gzip.compress(BODY)), *FINE, *either(415)),
    content("an unknown coding", b"cow", BODY, *either(415)),
    content("br", b"br", BODY, *either(415, 400)),
    content("gzip of plain text", b"gzip", BODY, *either(400, 415)),
    content("a cut gzip", b"gzip", gzip.compress(BODY)[:-5], *either(400, 415)),
    content("gzip and more", b"gzip", gzip.compress(BODY) + b"more", *either(400, 415)),
    content("gzip of nothing", b"gzip", b"", *either(400, 415)),
    content("a bomb", b"gzip", BOMB, *either(413, 415)),
    Case(
        "gzip in chunks",
        post(CHUNKED, b"Content-Encoding: gzip", body=chunked(gzip.compress(BODY))),
        (*FINE, *either(415)),
    ),
    Case(
        "gzip without saying so",
        post(length(gzip.compress(BODY)), body=gzip.compress(BODY)),
        either(400),
    ),
    Case("a coding of GET", get(b"Content-Encoding: gzip"), FINE_OR_BAD),
]

CASES = [*CONNECTION, *UPGRADE, *EXPECT, *CONTENT]
