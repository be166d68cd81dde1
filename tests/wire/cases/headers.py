"""Headers: names, values, the ends of lines, and the size of a head (RFC 9112, section 5)."""

from tests.wire.case import BAD, BODY, FINE, FINE_OR_BAD, Case, chunked, get, post

TOO_LARGE = ("431 close",)
SEPARATORS = b'()<>@,;\\"/[]?={}'


def header(name: str, line: bytes, right: tuple[str, ...]) -> Case:
    return Case(name, get(line), right)


NAMES = [
    header("a name of every letter that may be", b"!#$%&'*+-.^_`|~09azAZ: x", FINE),
    header("a name of 1,000 letters", b"x" * 1000 + b": x", FINE),
    header("a name in capitals", b"ACCEPT: */*", FINE),
    header("a name with an underscore", b"Content_Length: 5", FINE),
    header("a header twice", b"Accept: a\r\nAccept: b", FINE),
    header("an empty name", b": x", BAD),
    header("no colon", b"Accept", BAD),
    header("no colon, but a space", b"Accept */*", BAD),
    header("a space before the colon", b"Accept : */*", BAD),
    header("a tab before the colon", b"Accept\t: */*", BAD),
    header("a space in a name", b"Ac cept: */*", BAD),
    header("NUL in a name", b"Ac\0cept: */*", BAD),
    header("DEL in a name", b"Ac\x7fcept: */*", BAD),
    header("a control character in a name", b"Ac\x01cept: */*", BAD),
    header("Latin-1 in a name", b"Acc\xe9pt: */*", BAD),
    header("UTF-8 in a name", "Accépt: */*".encode(), BAD),
    header("a colon before the name", b":Accept: */*", BAD),
    *(header(f"{chr(each)} in a name", b"Ac%ccept: */*" % each, BAD) for each in SEPARATORS),
]

VALUES = [
    header("an empty value", b"Accept:", FINE),
    header("a blank value", b"Accept: \t ", FINE),
    header("no space after the colon", b"Accept:*/*", FINE),
    header("tabs around a value", b"Accept:\t*/*\t", FINE),
    header("a tab in a value", b"Accept: a\tb", FINE),
    header("a colon in a value", b"Accept: a:b:c", FINE),
    header("Latin-1 in a value", b"Accept: caf\xe9", FINE),
    header("UTF-8 in a value", "Accept: café".encode(), FINE),
    header("all high bytes in a value", b"Accept: " + bytes(range(128, 256)), FINE),
    header("a value of 8 KB", b"Accept: " + b"x" * 8_000, FINE),
    header("a value of 60 KB", b"Accept: " + b"x" * 60_000, FINE),
    header("NUL in a value", b"Accept: a\0b", BAD),
    header("NUL at the end of a value", b"Accept: a\0", BAD),
    header("a control character in a value", b"Accept: a\x01b", FINE_OR_BAD),
    header("DEL in a value", b"Accept: a\x7fb", FINE_OR_BAD),
    header("a vertical tab in a value", b"Accept: a\x0bb", FINE_OR_BAD),
]

# A proxy may read a bare CR or LF otherwise than the server does: only one reading is safe.
LINE_ENDS = [
    header("a bare CR in a value", b"Accept: a\rb", BAD),
    header("a bare CR as the end of a line", b"Accept: a\rX: y", BAD),
    header("CR CR LF", b"Accept: a\r\r\nX: y", BAD),
    header("LF CR", b"Accept: a\n\rX: y", BAD),
    header("a bare LF as the end of a line", b"Accept: a\nX: y", FINE_OR_BAD),
    Case("bare LF everywhere", get().replace(b"\r\n", b"\n"), FINE_OR_BAD),
    Case("bare CR everywhere", get().replace(b"\r\n", b"\r"), BAD),
    Case("a bare LF as the blank line", get().removesuffix(b"\r\n") + b"\n", FINE_OR_BAD),
    Case("a bare CR as the blank line", get().removesuffix(b"\n"), BAD),
    header("a length behind a bare CR", b"X: y\rContent-Length: 5", BAD),
    Case(
        "a length behind a bare LF",
        post(b"X: y\nContent-Length: %d" % len(BODY)),
        FINE_OR_BAD,
    ),
    Case(
        "chunks behind a bare CR",
        post(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5", body=chunked(BODY)),
        BAD,
    ),
    header("a folded line", b"Accept: a\r\n b", FINE_OR_BAD),
    header("a line folded with a tab", b"Accept: a\r\n\tb", FINE_OR_BAD),
    header("a folded blank line", b"Accept: a\r\n \r\nX: y", FINE_OR_BAD),
    Case(
        "a folded line before all headers",
        b"GET /health HTTP/1.1\r\n X: y\r\nHost: localhost\r\n\r\n",
        BAD,
    ),
    Case(
        "a header that looks folded before all headers",
        b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
        BAD,
    ),
    header("a folded name", b"Acc\r\n ept: a", BAD),
    Case(
        "a folded host",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n .evil.example\r\n\r\n",
        BAD,
    ),
    Case("a folded length", post(b"Content-Length: \r\n %d" % len(BODY)), FINE_OR_BAD),
    Case(
        "a folded coding",
        post(b"Transfer-Encoding: \r\n chunked", body=chunked(BODY)),
        FINE_OR_BAD,
    ),
]

SIZES = [
    header("100 lines", b"\r\n".join(b"X-%d: y" % n for n in range(98)), FINE),
    header("101 lines", b"\r\n".join(b"X-%d: y" % n for n in range(99)), TOO_LARGE),
    header("1,000 lines", b"\r\n".join(b"X-%d: y" % n for n in range(998)), TOO_LARGE),
    header("101 lines of one name", b"\r\n".join([b"Accept: */*"] * 99), TOO_LARGE),
    header("10,000 empty headers", b"\r\n".join([b"a:"] * 10_000), TOO_LARGE),
    header("a value of 70 KB", b"Accept: " + b"x" * 70_000, TOO_LARGE),
    header("a value of 1 MB", b"Accept: " + b"x" * 1_000_000, TOO_LARGE),
    header("a name of 70 KB", b"x" * 70_000 + b": x", TOO_LARGE),
    header("two values of 40 KB", b"A: %b\r\nB: %b" % (b"x" * 40_000, b"y" * 40_000), TOO_LARGE),
    header("a value of 70 KB of blanks", b"Accept:" + b" " * 70_000 + b"x", TOO_LARGE),
]

CASES = [*NAMES, *VALUES, *LINE_ENDS, *SIZES]
