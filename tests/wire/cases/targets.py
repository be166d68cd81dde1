"""Targets: their forms, their characters and their length (RFC 9112, section 3.2)."""

from tests.wire.case import BAD, FINE, FINE_OR_BAD, Case, either, get

NOT_FOUND_OR_BAD = either(404, 400)
TOO_LONG = ("414 close", "431 close")
MODELS = b"/v1/models"


def target(name: str, text: bytes, right: tuple[str, ...]) -> Case:
    return Case(name, get(target=text), right)


CHARACTERS = [
    target("a query", b"/health?a=b&c=d", FINE),
    target("an empty query", b"/health?", FINE),
    target("a query of question marks", b"/health????", FINE),
    target("a query with a slash", b"/health?/../x", FINE),
    target("bytes in a query that are no UTF-8", b"/health?x=%ff%fe", FINE),
    target("a broken escape in a query", b"/health?x=%zz", FINE_OR_BAD),
    target("a fragment", b"/health#top", FINE_OR_BAD),
    target("a fragment after a query", b"/health?x#top", FINE_OR_BAD),
    target("two fragments", b"/health#a#b", FINE_OR_BAD),
    target("an escaped letter", b"/%68ealth", FINE),
    target("all letters escaped", b"/%68%65%61%6c%74%68", FINE),
    target("an escaped slash", b"/v1%2fmodels", (*FINE, *NOT_FOUND_OR_BAD)),
    target("an escaped NUL", b"/health%00", NOT_FOUND_OR_BAD),
    target("escaped CR LF", b"/health%0d%0aX:%20y", NOT_FOUND_OR_BAD),
    target("an escaped escape", b"/%2568ealth", NOT_FOUND_OR_BAD),
    target("an escape of one digit", b"/health%4", NOT_FOUND_OR_BAD),
    target("an escape of no digits", b"/health%", NOT_FOUND_OR_BAD),
    target("an escape of no hexadecimal digits", b"/health%zz", NOT_FOUND_OR_BAD),
    target("escaped bytes that are no UTF-8", b"/health%ff", NOT_FOUND_OR_BAD),
    target("an overlong slash", b"/health%c0%af", NOT_FOUND_OR_BAD),
    target("dots", b"/x/../health", NOT_FOUND_OR_BAD),
    target("escaped dots", b"/x/%2e%2e/health", NOT_FOUND_OR_BAD),
    target("dots above the root", b"/../../etc/passwd", NOT_FOUND_OR_BAD),
    target("dots below the page", b"/page/../../pyproject.toml", NOT_FOUND_OR_BAD),
    target("escaped dots below the page", b"/page/..%2f..%2fpyproject.toml", NOT_FOUND_OR_BAD),
    target("backslashes", b"/page/..\\..\\pyproject.toml", NOT_FOUND_OR_BAD),
    target("two slashes", b"//health", NOT_FOUND_OR_BAD),
    target("two slashes and a host", b"//evil.example/health", NOT_FOUND_OR_BAD),
    target("a parameter", b"/health;x=y", NOT_FOUND_OR_BAD),
    target("quotes and brackets", b'/"<>[]{}|^`', NOT_FOUND_OR_BAD),
    target("raw Latin-1", b"/gr\xfcn", NOT_FOUND_OR_BAD),
    target("raw UTF-8", "/grün".encode(), NOT_FOUND_OR_BAD),
    target("a raw query of no UTF-8", b"/health?\xff", FINE_OR_BAD),
    target("NUL", b"/health\0", BAD),
    target("NUL in the query", b"/health?\0", BAD),
    target("DEL", b"/health\x7f", BAD),
    target("a control character", b"/health\x01", BAD),
    target("an escape character", b"/health?\x1b[2J", BAD),
    target("a space", b"/he alth", BAD),
    target("a space in the query", b"/health?a b", BAD),
    target("a tab", b"/he\talth", BAD),
    target("a bare LF", b"/he\nalth", BAD),
]

FORMS = [
    target("no slash", b"health", either(400, 404)),
    target("only a query", b"?health", BAD),
    target("only a fragment", b"#health", BAD),
    target("an asterisk", b"*", either(400, 404, 405)),
    target("asterisks", b"**", either(400, 404)),
    target("an asterisk and a path", b"*/health", either(400, 404)),
    target("authority-form", b"localhost:80", either(400, 404)),
    target("authority-form without a port", b"localhost", either(400, 404)),
    target("absolute-form", b"http://localhost/health", FINE),
    target("absolute-form with a port", b"http://localhost:8000/health", FINE),
    target("absolute-form in capitals", b"HTTP://LOCALHOST/health", FINE),
    target("absolute-form with a query", b"http://localhost/health?x=y", FINE),
    target("absolute-form of an IPv6 address", b"http://[::1]/health", FINE),
    target("absolute-form without a path", b"http://localhost", FINE),
    target("absolute-form with an empty query", b"http://localhost?", FINE_OR_BAD),
    target("absolute-form of nothing", b"http://localhost/nope", ("404 next",)),
    target("absolute-form of https", b"https://localhost/health", (*FINE, *either(400, 421))),
    target("absolute-form without a host", b"http:///health", either(400)),
    target("absolute-form without slashes", b"http:health", either(400, 404)),
    target("absolute-form with one slash", b"http:/health", either(400, 404)),
    target("absolute-form of ftp", b"ftp://localhost/health", (*FINE, *either(400, 403, 404, 421))),
    target("absolute-form of a file", b"file:///etc/passwd", either(400, 404)),
    target("absolute-form with an open bracket", b"http://[::1/health", either(400)),
    target("absolute-form with a word as port", b"http://localhost:http/health", either(400)),
    target("absolute-form with a port too large", b"http://localhost:99999999/health", either(400)),
    target("absolute-form with a user", b"http://me@localhost/health", either(400)),
    target("absolute-form with a space", b"http://local host/health", BAD),
    Case(
        "OPTIONS in absolute-form",
        get(method=b"OPTIONS", target=b"http://localhost"),
        either(200, 204, 404, 405),
    ),
]

LENGTHS = [
    target("a target of 8 KB", b"/health?" + b"x" * 8_000, FINE),
    target("a target of 60 KB", b"/health?" + b"x" * 60_000, FINE),
    target("a path of 60 KB", b"/" + b"x" * 60_000, ("404 next",)),
    target("a target of 70 KB", b"/health?" + b"x" * 70_000, TOO_LONG),
    target("a target of 1 MB", b"/health?" + b"x" * 1_000_000, TOO_LONG),
    target("a path of 10,000 slashes", b"/" * 10_000, ("404 next",)),
    Case(
        "a method of 70 KB",
        get(method=b"A" * 70_000),
        (*TOO_LONG, "400 close", "405 close", "501 close"),
    ),
    Case(
        "a version of 70 KB",
        get(version=b"HTTP/1.1" + b"1" * 70_000),
        (*TOO_LONG, "400 close", "505 close"),
    ),
]

CASES = [*CHARACTERS, *FORMS, *LENGTHS]
