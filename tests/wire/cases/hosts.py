"""Host, and a target that names another one (RFC 9112, section 3.2; RFC 9110, section 7.2).

The server has no keys, so only names of its own machine are right. The health checks are asked by
programs that know no name: they need none.
"""

from tests.wire.case import BAD, FINE, Case, either, get

MODELS = b"/v1/models"
NOT_OURS = ("403 next",)


def host(value: bytes, right: tuple[str, ...], name: str = "") -> Case:
    return Case(name or f"Host: {value.decode()}", get(target=MODELS, host=value), right)


def named(target: bytes, host: bytes, right: tuple[str, ...]) -> Case:
    name = f"{target.decode()} with the host {host.decode()}"
    return Case(name, get(target=target, host=host), right)


VALUES = [
    *(
        host(value, FINE)
        for value in (
            *(b"localhost", b"LocalHost", b"localhost:8000", b"localhost:1", b"localhost."),
            *(b"localhost.:8000", b"127.0.0.1", b"127.0.0.1:80", b"127.9.9.9", b"[::1]"),
            *(b"[::1]:8000", b"[0:0:0:0:0:0:0:1]", b"my.localhost", b"my.localhost."),
        )
    ),
    *(
        host(value, NOT_OURS)
        for value in (
            *(b"evil.example", b"evil.example:80", b"localhost.evil.example", b"evillocalhost"),
            *(b"127.0.0.1.evil.example", b"10.0.0.1", b"0.0.0.0", b"[::]", b"[2001:db8::1]"),
        )
    ),
    *(
        host(value, either(400, 403))
        for value in (
            *(b"0x7f000001", b"2130706433", b"127.1", b"localhost..", b".", b"localhost%00"),
            *(b"[::ffff:10.0.0.1]", b"local_host"),
        )
    ),
    *(
        host(value, either(400))
        for value in (
            *(b"", b"localhost:http", b"localhost:-1", b"localhost:80:80", b"localhost:999999"),
            *(b"::1", b"[::1", b"::1]", b"[::1]x", b"[]", b"[localhost]", b"me@localhost"),
            *(b"localhost/", b"http://localhost", b"localhost?x", b"localhost#x", b"a b"),
            *(b"localhost, localhost", b"localhost, evil.example", b"localhost\\x", b"<localhost>"),
        )
    ),
    host(b"localhost:", (*FINE, *either(400))),
    host(b"localhost:8000 ", FINE, "a space after the host"),
    host(b"\tlocalhost\t", FINE, "tabs around the host"),
    host(b"localhost\0", BAD, "NUL after the host"),
    host("löcalhost".encode(), either(400), "raw UTF-8 in the host"),
    host(b"x" * 1000, NOT_OURS, "a host of 1,000 letters"),
]

NUMBERS = [
    Case("no Host", get(target=MODELS, host=None), either(400)),
    Case("no Host for the health check", get(host=None), (*FINE, *either(400))),
    Case("no Host in HTTP/1.0", get(target=MODELS, host=None, version=b"HTTP/1.0"), ("200 close",)),
    Case(
        "no Host for the health check in HTTP/1.0",
        get(host=None, version=b"HTTP/1.0"),
        ("200 close",),
    ),
    Case(
        "another's host in HTTP/1.0",
        get(target=MODELS, host=b"evil.example", version=b"HTTP/1.0"),
        ("403 close",),
    ),
    Case("two hosts", get(b"Host: localhost", target=MODELS), either(400)),
    Case("two hosts, the second another's", get(b"Host: evil.example", target=MODELS), either(400)),
    Case(
        "two hosts, the first another's",
        get(b"Host: localhost", target=MODELS, host=b"evil.example"),
        either(400),
    ),
    Case("two hosts in two spellings", get(b"HOST: localhost", target=MODELS), either(400)),
    Case("two hosts, one of them empty", get(b"Host:", target=MODELS), either(400)),
    Case("two hosts for the health check", get(b"Host: localhost"), (*FINE, *either(400))),
    Case("a host in X-Forwarded-Host", get(b"X-Forwarded-Host: evil.example", target=MODELS), FINE),
    Case("a host in Forwarded", get(b"Forwarded: host=evil.example", target=MODELS), FINE),
    Case("another's host for the health check", get(host=b"10.1.2.3:8000"), NOT_OURS),
    Case("a broken host for the health check", get(host=b"a b"), (*FINE, *either(400))),
    Case("an empty host for the health check", get(host=b""), (*FINE, *either(400))),
    *(
        Case(
            f"another's host for {path.decode()}", get(target=path, host=b"evil.example"), NOT_OURS
        )
        for path in (b"/health/live", b"/health/ready")
    ),
    Case(
        "another's host for what only begins so",
        get(target=b"/healthy", host=b"evil.example"),
        NOT_OURS,
    ),
]

# The target wins: RFC 9112, section 3.2.2.
TARGETS = [
    named(b"http://localhost/v1/models", b"localhost", FINE),
    named(b"http://localhost/v1/models", b"evil.example", FINE),
    named(b"http://localhost/v1/models", b"", FINE),
    named(b"http://127.0.0.1:80/v1/models", b"localhost", FINE),
    named(b"http://localhost./v1/models", b"localhost", FINE),
    named(b"http://evil.example/v1/models", b"localhost", NOT_OURS),
    named(b"HTTP://EVIL.EXAMPLE/v1/models", b"localhost", NOT_OURS),
    named(b"http://evil.example:80/v1/models", b"localhost", NOT_OURS),
    named(b"http://localhost@evil.example/v1/models", b"localhost", either(400, 403)),
    named(b"http://localhost:80@evil.example/v1/models", b"localhost", either(400, 403)),
    named(b"http://evil.example@localhost/v1/models", b"localhost", either(400, 403)),
    named(b"http://[2001:db8::1]/v1/models", b"localhost", NOT_OURS),
    named(b"http://evil.example/health", b"localhost", (*NOT_OURS, *FINE)),
    named(b"https://evil.example/v1/models", b"localhost", either(400, 403, 421)),
    named(b"http://evil.example\\@localhost/v1/models", b"localhost", either(400, 403)),
    named(b"http://evil.example#@localhost/v1/models", b"localhost", either(400, 403)),
    named(b"http://evil.example?@localhost/v1/models", b"localhost", either(400, 403)),
    Case(
        "absolute-form without Host",
        get(target=b"http://localhost/v1/models", host=None),
        either(400),
    ),
    Case(
        "absolute-form without Host in HTTP/1.0",
        get(target=b"http://localhost/v1/models", host=None, version=b"HTTP/1.0"),
        ("200 close",),
    ),
    Case(
        "another's absolute-form without Host in HTTP/1.0",
        get(target=b"http://evil.example/v1/models", host=None, version=b"HTTP/1.0"),
        ("403 close",),
    ),
]

CASES = [*VALUES, *NUMBERS, *TARGETS]
