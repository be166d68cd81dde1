"""Content-Length (RFC 9112, section 6): one that can be read in two ways is refused."""

from tests.wire.case import BAD, BODY, FINE, INNER, Case, either, get, length, post

N = len(BODY)
TOO_LARGE = ("413 close", "400 close")
# The answer needs no body: the server may skip it, or close.
SKIPPED = ("200 next", "200 close")


def value(text: bytes, right: tuple[str, ...], name: str = "") -> Case:
    return Case(name or f"Content-Length: {text.decode()}", post(b"Content-Length: " + text), right)


VALUES = [
    value(b"%d" % N, FINE, "the right length"),
    value(b"00%d" % N, FINE, "zeros before the length"),
    value(b"\t%d \t" % N, FINE, "blanks around the length"),
    Case("the name in capitals", post(b"CONTENT-LENGTH: %d" % N), FINE),
    *(
        value(text, BAD)
        for text in (
            *(b"", b"-1", b"-0", b"+5", b"+0", b"0x2c", b"2c", b"1e1", b"5.0", b"5,", b",5"),
            *(b"5;", b"5;5", b"'5'", b'"5"', b"five", b"5 5", b"5\t5", b"- 5", b"5b", b"NaN"),
            *(b"(5)", b"5_0", b"$5", b"5%30", b"1 2 3", b"5\x0b"),
        )
    ),
    value("\u0665".encode(), BAD, "an Arabic five"),
    value("\uff15".encode(), BAD, "a wide five"),
    value(b"\xb2", BAD, "a Latin-1 superscript"),
    value(b"5\x00", BAD, "NUL after the length"),
    value(b"%d\x01" % N, BAD, "a control character after the length"),
    Case("a space before the colon", post(b"Content-Length : %d" % N), BAD),
    # RFC 9110, section 8.6: equal values may be taken as one.
    value(b"%d, %d" % (N, N), (*FINE, *BAD), "a list of equal lengths"),
    Case("two equal lengths", post(length(BODY), length(BODY)), (*FINE, *BAD)),
    value(b"%d, 5" % N, BAD, "a list of two lengths"),
    value(b"5, %d" % N, BAD, "a list of two lengths, the wrong one first"),
    Case("two lengths", post(length(BODY), b"Content-Length: 5"), BAD),
    Case("two lengths, the wrong one first", post(b"Content-Length: 5", length(BODY)), BAD),
    Case("a length and an empty one", post(length(BODY), b"Content-Length:"), BAD),
    Case("a length and none", post(length(BODY), b"Content-Length: 0"), BAD),
    Case("two lengths in two spellings", post(length(BODY), b"content-length: 5"), BAD),
]

SIZES = [
    value(b"4194305", ("413 close",), "one byte too large"),
    *(
        value(b"%d" % number, TOO_LARGE, f"Content-Length: {name}")
        for name, number in (
            ("2^31", 2**31),
            ("2^32 and the right length", 2**32 + N),
            ("2^63 - 1", 2**63 - 1),
            ("2^63", 2**63),
            ("2^64 - 1", 2**64 - 1),
            ("2^64", 2**64),
            ("2^64 and the right length", 2**64 + N),
            ("2^128 and the right length", 2**128 + N),
        )
    ),
    value(b"9" * 1000, TOO_LARGE, "1,000 digits"),
    value(b"0" * 1000 + b"%d" % N, (*FINE, *BAD), "1,000 zeros before the length"),
    Case("a body that is shorter than its length", post(b"Content-Length: 500"), ("408 close",)),
    Case(
        "a body that is longer than its length",
        post(b"Content-Length: %d" % (N - 1)),
        ("400 400 close",),  # it is not JSON, and its last byte begins no request
    ),
    Case("a body of no length", post(body=b""), either(400, 411, 415)),
    Case("a body without its length", post(), ("400 400 close", "411 close", "400 close")),
    Case("no body, with a length", post(b"Content-Length: 0", body=b""), either(400)),
]

# A request inside a body must stay a body.
INSIDE = [
    Case("a request in a body", post(length(INNER), body=INNER), either(400)),
    Case("a request in the body of a GET", get(length(INNER), body=INNER), SKIPPED),
    Case(
        "a request in a body that nobody reads",
        post(length(INNER), body=INNER, target=b"/nope"),
        either(404),
    ),
    Case(
        "a request in a body of another type",
        post(length(INNER), b"Content-Type: text/plain", body=INNER),
        either(415, 400),
    ),
    Case(
        "a request in a body for another host",
        post(length(INNER), body=INNER, host=b"evil.example"),
        either(403),
    ),
    Case(
        "a request in a body of a wrong method",
        get(length(INNER), method=b"DELETE", body=INNER),
        either(405),
    ),
    Case("a request in a body of HEAD", get(length(INNER), method=b"HEAD", body=INNER), SKIPPED),
    Case(
        "a request in a body of OPTIONS",
        get(length(INNER), method=b"OPTIONS", body=INNER),
        either(200, 204, 405),
    ),
    Case(
        "a request in a body of CONNECT",
        get(length(INNER), method=b"CONNECT", target=b"localhost:80", body=INNER),
        either(400, 404, 405, 501),
    ),
    Case(
        "a request in a body with a negative length",
        post(b"Content-Length: -%d" % len(INNER), body=INNER),
        BAD,
    ),
    Case(
        "a request in a body with two lengths",
        post(b"Content-Length: 0", length(INNER), body=INNER),
        BAD,
    ),
    Case(
        "a request in a body with a length after NUL",
        post(b"X: \0", length(INNER), body=INNER),
        BAD,
    ),
    Case(
        "a request in a body that is too large",
        post(b"Content-Length: 99999999", body=INNER),
        ("413 close",),
    ),
    Case(
        "a request in a body of HTTP/1.0",
        post(length(INNER), body=INNER, version=b"HTTP/1.0"),
        ("400 close",),
    ),
    Case(
        "a request in a body of HTTP/1.0 that is kept alive",
        get(length(INNER), b"Connection: keep-alive", body=INNER, version=b"HTTP/1.0"),
        SKIPPED,
    ),
]

CASES = [*VALUES, *SIZES, *INSIDE]
