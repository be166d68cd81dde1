"""Transfer-Encoding and chunks (RFC 9112, sections 6.1 and 7.1).

A coding that is not exactly `chunked` gets 501 or 400, and the connection closes: the server cannot
know where the body ends.
"""

from tests.wire.case import (
    BAD,
    BODY,
    FINE,
    FINE_OR_BAD,
    INNER,
    NO_SUCH_CODING,
    Case,
    chunked,
    either,
    get,
    length,
    post,
)

CHUNKED = b"Transfer-Encoding: chunked"
BOTH = ("400 close",)
# The body would be too large, but not much of it has come.
NEVER_WHOLE = ("400 close", "413 close", "408 close")


def coded(value: bytes, right: tuple[str, ...] = NO_SUCH_CODING, name: str = "") -> Case:
    sent = post(b"Transfer-Encoding: " + value, body=chunked(BODY))
    return Case(name or f"Transfer-Encoding: {value.decode()}", sent, right)


def chunks(name: str, body: bytes, right: tuple[str, ...]) -> Case:
    """Make a case for a body whose chunks are already written out."""
    return Case(name, post(CHUNKED, body=body), right)


def sized(name: str, size: bytes, right: tuple[str, ...] = BAD) -> Case:
    """Make a case for a body of one chunk with this line for its size."""
    return chunks(name, size + b"\r\n" + BODY + b"\r\n0\r\n\r\n", right)


SIZE = b"%x" % len(BODY)

CODINGS = [
    coded(b"Chunked", FINE),
    coded(b"CHUNKED", FINE),
    coded(b"\tchunked \t", FINE_OR_BAD, "blanks around chunked"),
    Case("the name in capitals", post(CHUNKED.upper(), body=chunked(BODY)), FINE),
    *(
        coded(value)
        for value in (
            *(b"gzip, chunked", b"gzip,chunked", b"deflate, chunked", b"cow, chunked", b"cow"),
            *(b", chunked", b"chunked,", b",", b"chunked, chunked", b"chunked,chunked"),
            *(b"identity", b"identity, chunked", b"chunked, identity", b"chunked, gzip"),
            *(b"chunked, cow", b"gzip", b"compress", b"br", b"trailers", b"none", b"null"),
            *(b"xchunked", b"chunkedx", b"chunk", b"chunke", b"chunked;q=1", b"chunked; a=b"),
            *(b'"chunked"', b"'chunked'", b"chunked chunked", b"chunked\tx", b"x chunked"),
            *(b"chunked=1", b"c hunked", b"chun\tked", b"chunked:", b"[chunked]", b"(x) chunked"),
        )
    ),
    coded(b"", NO_SUCH_CODING, "an empty coding"),
    coded(b"\x0bchunked", NO_SUCH_CODING, "a vertical tab before chunked"),
    coded(b"chunked\x0c", NO_SUCH_CODING, "a form feed after chunked"),
    coded(b"chunked\0", BAD, "NUL after chunked"),
    coded(b"chun\xe7ed", NO_SUCH_CODING, "Latin-1 in chunked"),
    coded("\u212achunked".encode(), NO_SUCH_CODING, "UTF-8 before chunked"),
    coded("chun\u212aed".encode(), NO_SUCH_CODING, "the sign for kelvin in chunked"),
    Case("chunked twice", post(CHUNKED, CHUNKED, body=chunked(BODY)), NO_SUCH_CODING),
    Case(
        "chunked, then a coding",
        post(CHUNKED, b"Transfer-Encoding: cow", body=chunked(BODY)),
        NO_SUCH_CODING,
    ),
    Case(
        "a coding, then chunked",
        post(b"Transfer-Encoding: cow", CHUNKED, body=chunked(BODY)),
        NO_SUCH_CODING,
    ),
    Case(
        "chunked, then identity",
        post(CHUNKED, b"Transfer-Encoding: identity", body=chunked(BODY)),
        NO_SUCH_CODING,
    ),
    Case(
        "chunked, then nothing",
        post(CHUNKED, b"Transfer-Encoding:", body=chunked(BODY)),
        NO_SUCH_CODING,
    ),
    Case("a space before the colon", post(b"Transfer-Encoding : chunked", body=chunked(BODY)), BAD),
    Case("an underscore in the name", post(b"Transfer_Encoding: chunked", length(BODY)), FINE),
    Case("a prefix of the name", post(b"X-Transfer-Encoding: chunked", length(BODY)), FINE),
    Case("a coding that the body names", post(b"TE: chunked", length(BODY)), FINE),
    Case("a coding without a body", get(b"Transfer-Encoding: cow"), NO_SUCH_CODING),
    Case("a coding of GET", get(CHUNKED, body=chunked(b"x")), ("200 next", "200 close")),
    Case("a coding in HTTP/1.0", post(CHUNKED, body=chunked(BODY), version=b"HTTP/1.0"), BAD),
    Case("a coding of GET in HTTP/1.0", get(CHUNKED, body=chunked(b"x"), version=b"HTTP/1.0"), BAD),
]

WITH_A_LENGTH = [
    Case("a coding and a length", post(CHUNKED, length(BODY), body=chunked(BODY)), BOTH),
    Case("a length and a coding", post(length(BODY), CHUNKED, body=chunked(BODY)), BOTH),
    Case(
        "a coding and the length of its chunks",
        post(CHUNKED, length(chunked(BODY)), body=chunked(BODY)),
        BOTH,
    ),
    Case("a coding and no length", post(CHUNKED, b"Content-Length: 0", body=chunked(BODY)), BOTH),
    Case(
        "a coding and a request behind the length",
        post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + INNER),
        ("400 close",),
    ),
    Case(
        "a length and a request behind the chunks",
        post(b"Content-Length: %d" % (5 + len(INNER)), CHUNKED, body=b"0\r\n\r\n" + INNER),
        ("400 close",),
    ),
    Case(
        "an unknown coding and a length",
        post(b"Transfer-Encoding: cow", length(BODY)),
        NO_SUCH_CODING,
    ),
    Case(
        "an unknown coding and a request in its body",
        post(b"Transfer-Encoding: cow", length(INNER), body=INNER),
        NO_SUCH_CODING,
    ),
    Case(
        "identity and a length", post(b"Transfer-Encoding: identity", length(BODY)), NO_SUCH_CODING
    ),
    Case("an empty coding and a length", post(b"Transfer-Encoding:", length(BODY)), NO_SUCH_CODING),
    Case(
        "a coding with NUL and a length", post(b"Transfer-Encoding: chunked\0", length(BODY)), BAD
    ),
    Case(
        "a coding and a negative length",
        post(CHUNKED, b"Content-Length: -1", body=chunked(BODY)),
        BOTH,
    ),
    Case(
        "a coding and a length in GET",
        get(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + INNER),
        BOTH,
    ),
]

CHUNKS = [
    chunks("three chunks", chunked(BODY[:5], BODY[5:6], BODY[6:]), FINE),
    chunks("a chunk for each byte", chunked(*(BODY[n : n + 1] for n in range(len(BODY)))), FINE),
    chunks("no chunk", chunked(), either(400)),
    sized("a size in capitals", SIZE.upper(), FINE),
    sized("zeros before a size", b"000" + SIZE, FINE),
    sized("zeros before a size, beyond 64 bits", b"0" * 20 + SIZE, FINE_OR_BAD),
    sized("an extension", SIZE + b";a=b", FINE),
    sized("an extension without a value", SIZE + b";a", FINE),
    sized("a quoted extension", SIZE + b';a="b; c"', FINE),
    sized("a quoted extension with a quote", SIZE + b';a="b\\"c"', FINE_OR_BAD),
    sized("two extensions", SIZE + b";a=b;c=d", FINE),
    sized("an extension of 1 KB", SIZE + b";a=" + b"b" * 1000, FINE_OR_BAD),
    sized("an extension of 100 KB", SIZE + b";a=" + b"b" * 100_000, ("400 close", "413 close")),
    sized("an extension with NUL", SIZE + b";a=\0"),
    sized("an extension with a bare LF", SIZE + b";a=b\nX"),
    sized("an extension with a bare CR", SIZE + b";a=b\rX"),
    sized("an extension with a blank", SIZE + b" ; a=b", FINE_OR_BAD),
    sized("an extension without a name", SIZE + b";", FINE_OR_BAD),
    sized("a space after the size", SIZE + b" ", FINE_OR_BAD),
    sized("a space before the size", b" " + SIZE),
    sized("a tab before the size", b"\t" + SIZE),
    sized("a size with 0x", b"0x" + SIZE),
    sized("a size with a plus", b"+" + SIZE),
    sized("a size with a minus", b"-" + SIZE),
    sized("a size with an underscore", b"2_c"),
    sized("a size of other letters", b"xyz"),
    sized("a size with a comma", SIZE + b","),
    sized("a size with NUL", SIZE + b"\0"),
    sized("a size with a wide digit", "\uff12".encode()),
    sized("no size", b""),
    sized("a size of 2^64 - 1", b"f" * 16, NEVER_WHOLE),
    sized("a size of 2^64 and the right one", b"1" + SIZE.zfill(16), ("400 close", "413 close")),
    sized("a size of 100 digits", b"f" * 100, ("400 close", "413 close")),
    sized("a size beyond the limit", b"400001", NEVER_WHOLE),
    sized("a size that is too small", b"5"),
    sized("a size that is too large by one", b"%x" % (len(BODY) + 1)),
    sized("a size that is too large by two", b"%x" % (len(BODY) + 2)),
    chunks("a bare LF after the size", chunked(BODY).replace(SIZE + b"\r\n", SIZE + b"\n"), BAD),
    chunks("a bare CR after the size", chunked(BODY).replace(SIZE + b"\r\n", SIZE + b"\r"), BAD),
    chunks("CR CR LF after the size", chunked(BODY).replace(SIZE + b"\r", SIZE + b"\r\r"), BAD),
    chunks("a bare LF after a chunk", chunked(BODY).replace(b"}\r\n", b"}\n"), BAD),
    chunks("nothing after a chunk", chunked(BODY).replace(b"}\r\n", b"}"), BAD),
    chunks("two other bytes after a chunk", chunked(BODY).replace(b"}\r\n", b"}xx"), BAD),
    chunks("bare LF everywhere", chunked(BODY).replace(b"\r\n", b"\n"), BAD),
    chunks("no blank line after the last chunk", chunked(BODY)[:-2], BAD),
    chunks("no last chunk", chunked(BODY)[:-5], BAD),
    chunks("a last chunk of three zeros", chunked(BODY)[:-5] + b"000\r\n\r\n", FINE),
    chunks("an extension of the last chunk", chunked(BODY)[:-5] + b"0;a=b\r\n\r\n", FINE),
    chunks("a body over the limit in chunks", chunked(*[b" " * 65_000] * 70), ("413 close",)),
]


def trailers(name: str, lines: bytes, right: tuple[str, ...]) -> Case:
    return chunks(name, chunked(BODY)[:-2] + lines + b"\r\n", right)


TRAILERS = [
    trailers("a trailer", b"X: y\r\n", FINE),
    trailers("two trailers", b"X: y\r\nZ: z\r\n", FINE),
    trailers("a length as trailer", b"Content-Length: 5\r\n", FINE_OR_BAD),
    trailers("a coding as trailer", b"Transfer-Encoding: chunked\r\n", FINE_OR_BAD),
    trailers("a host as trailer", b"Host: evil.example\r\n", FINE_OR_BAD),
    trailers("a wish to close as trailer", b"Connection: close\r\n", (*FINE_OR_BAD, "200 close")),
    trailers("a trailer without a colon", b"trailer\r\n", BAD),
    trailers("a trailer without a name", b": x\r\n", BAD),
    trailers("a trailer with a space before the colon", b"X : y\r\n", BAD),
    trailers("a trailer with NUL", b"X: \0\r\n", BAD),
    trailers("a trailer with a bare CR", b"X: a\rb\r\n", BAD),
    trailers("a request as trailer", INNER[:-2], BAD),
    trailers("1,000 trailers", b"X: y\r\n" * 1000, (*FINE_OR_BAD, "413 close", "431 close")),
    trailers(
        "a trailer of 100 KB",
        b"X: %b\r\n" % (b"y" * 100_000),
        ("400 close", "413 close", "431 close"),
    ),
]

INSIDE = [
    chunks("a request in a chunk", chunked(INNER), either(400)),
    Case(
        "a request in a chunk that nobody reads",
        post(CHUNKED, body=chunked(INNER), target=b"/nope"),
        either(404),
    ),
    Case(
        "a request in a chunk of GET", get(CHUNKED, body=chunked(INNER)), ("200 next", "200 close")
    ),
    Case(
        "a request in a chunk of HEAD",
        get(CHUNKED, method=b"HEAD", body=chunked(INNER)),
        ("200 next", "200 close"),
    ),
    chunks("a request after a broken chunk", b"x\r\n\r\n" + INNER, BAD),
    chunks("a request after a size with a bare LF", b"5\n" + INNER, BAD),
    chunks("a request in an extension", b"5;\n" + INNER, BAD),
    Case(
        "a request after a broken chunk that nobody reads",
        get(CHUNKED, body=b"x\r\n\r\n" + INNER),
        ("200 close", "400 close"),
    ),
]

CASES = [*CODINGS, *WITH_A_LENGTH, *CHUNKS, *TRAILERS, *INSIDE]
