"""Request lines: methods, versions, and blanks around them (RFC 9112, section 3)."""

from tests.wire.case import BAD, FINE, FINE_OR_BAD, Case, either, get

# RFC 9112 lets a server refuse an unknown method with 501, and a broken one with 400.
NO_SUCH_METHOD = either(405, 501, 400)
NO_SUCH_VERSION = ("505 close", "400 close")


def line(first: bytes) -> bytes:
    """Make a request with this request line."""
    return first + b"\r\nHost: localhost\r\nX-Request-ID: first\r\n\r\n"


def bad_line(name: str, first: bytes) -> Case:
    return Case(name, line(first), BAD)


METHODS = [
    Case("GET", get(), FINE),
    Case("HEAD", get(method=b"HEAD"), FINE),
    Case("HEAD of nothing", get(method=b"HEAD", target=b"/nope"), ("404 next",)),
    Case("OPTIONS", get(method=b"OPTIONS"), either(200, 204, 405)),
    Case("OPTIONS *", get(method=b"OPTIONS", target=b"*"), either(200, 204, 404, 405, 400)),
    *(
        Case(method.decode(), get(b"Content-Length: 0", method=method), either(405))
        for method in (b"POST", b"PUT", b"PATCH", b"DELETE")
    ),
    Case("TRACE", get(method=b"TRACE"), either(405, 501)),
    Case("CONNECT", get(method=b"CONNECT", target=b"localhost:80"), (*NO_SUCH_METHOD, "404 next")),
    Case("CONNECT with a path", get(method=b"CONNECT", target=b"/health"), NO_SUCH_METHOD),
    Case("a method of our own", get(method=b"BREW"), NO_SUCH_METHOD),
    Case("a method of another protocol", get(method=b"SOURCE"), NO_SUCH_METHOD),
    Case("a method of a cache", get(method=b"PURGE"), NO_SUCH_METHOD),
    Case("a method in lower case", get(method=b"get"), NO_SUCH_METHOD),
    Case("a method in mixed case", get(method=b"Get"), NO_SUCH_METHOD),
    Case("a method that begins like GET", get(method=b"GETX"), NO_SUCH_METHOD),
    Case("a method that GET begins with", get(method=b"GE"), NO_SUCH_METHOD),
    Case("a method of 1,000 letters", get(method=b"A" * 1000), NO_SUCH_METHOD),
    bad_line("no method", b" /health HTTP/1.1"),
    bad_line("a method with @", b"G@T /health HTTP/1.1"),
    bad_line("a method with a colon", b"GET: /health HTTP/1.1"),
    bad_line("a method with NUL", b"GE\0T /health HTTP/1.1"),
    bad_line("a method with an umlaut", b"G\xc4T /health HTTP/1.1"),
    bad_line("a method in quotes", b'"GET" /health HTTP/1.1'),
]

VERSIONS = [
    Case("HTTP/1.0", get(version=b"HTTP/1.0"), ("200 close",)),
    Case("HTTP/1.2", get(version=b"HTTP/1.2"), (*FINE, *NO_SUCH_VERSION)),
    Case("HTTP/1.9", get(version=b"HTTP/1.9"), (*FINE, *NO_SUCH_VERSION)),
    *(
        Case(version.decode(), get(version=version), NO_SUCH_VERSION)
        for version in (
            *(b"HTTP/0.9", b"HTTP/2.0", b"HTTP/2", b"HTTP/3.0", b"HTTP/0.0", b"HTTP/9.9"),
            *(b"HTTP/11.1", b"HTTP/1.10", b"HTTP/1.", b"HTTP/.1", b"HTTP/1", b"HTTP/", b"HTTP"),
            *(b"HTTP/+1.1", b"HTTP/1.1x", b"HTTP/1,1", b"HTTP1.1", b"HTTP /1.1", b"HTTP/ 1.1"),
            *(b"http/1.1", b"Http/1.1", b"HTTPS/1.1", b"XTTP/1.1", b"ICE/1.0", b"RTSP/1.0"),
            *(b"HTTP/-1.1", b"HTTP/1.-1", b"HTTP/0x1.1", b"/1.1", b"1.1"),
        )
    ),
    Case("no version, as in HTTP/0.9", b"GET /health\r\n\r\n", (*NO_SUCH_VERSION, "close")),
    Case("no version, with headers", line(b"GET /health"), NO_SUCH_VERSION),
    Case("no version, but a space", line(b"GET /health "), NO_SUCH_VERSION),
    Case(
        "the preface of HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
        (*NO_SUCH_VERSION, "close"),
    ),
]

BLANKS = [
    Case("two spaces before the target", line(b"GET  /health HTTP/1.1"), FINE_OR_BAD),
    Case("two spaces before the version", line(b"GET /health  HTTP/1.1"), FINE_OR_BAD),
    bad_line("a tab before the target", b"GET\t/health HTTP/1.1"),
    bad_line("a tab before the version", b"GET /health\tHTTP/1.1"),
    bad_line("a vertical tab before the target", b"GET\v/health HTTP/1.1"),
    bad_line("a form feed before the version", b"GET /health\fHTTP/1.1"),
    bad_line("a no-break space before the version", b"GET /health\xa0HTTP/1.1"),
    Case("a space after the version", line(b"GET /health HTTP/1.1 "), FINE_OR_BAD),
    bad_line("a word after the version", b"GET /health HTTP/1.1 HTTP/1.1"),
    bad_line("a space before the method", b" GET /health HTTP/1.1"),
    bad_line("a tab before the method", b"\tGET /health HTTP/1.1"),
    bad_line("a bare CR before the target", b"GET\r/health HTTP/1.1"),
    bad_line("a bare CR after the target", b"GET /health\rHTTP/1.1"),
    bad_line("a bare CR after the version", b"GET /health HTTP/1.1\rX: y"),
    Case("CR CR LF after the version", line(b"GET /health HTTP/1.1\r"), BAD),
    Case(
        "a bare LF after the version", b"GET /health HTTP/1.1\nHost: localhost\r\n\r\n", FINE_OR_BAD
    ),
    bad_line("nothing but a method", b"GET"),
    bad_line("no line", b""),
    Case("CR LF before the line", b"\r\n" + get(), FINE),
    Case("CR LF twice before the line", b"\r\n\r\n" + get(), FINE),
    Case("a bare LF before the line", b"\n" + get(), FINE_OR_BAD),
    Case("a bare CR before the line", b"\r" + get(), FINE_OR_BAD),
    Case("CR LF after a request", get() + b"\r\n", FINE),
    bad_line("a byte order mark before the line", b"\xef\xbb\xbfGET /health HTTP/1.1"),
    bad_line("NUL before the line", b"\0GET /health HTTP/1.1"),
    Case("a client that speaks TLS", bytes.fromhex("16030100f8010000f40303") + b"\r\n\r\n", BAD),
    Case("a client that speaks SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", BAD),
    Case("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", BAD),
    Case("a header", b"Host: localhost\r\n\r\n", BAD),
]

CASES = [*METHODS, *VERSIONS, *BLANKS]
