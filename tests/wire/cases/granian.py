"""Where Granian's end differs, and why that cannot be mended from here.

The tests hold what Granian really does, so a change of Granian's is seen.
"""


def _differences(
    why: str, outcomes: tuple[str, ...], *names: str
) -> dict[str, tuple[tuple[str, ...], str]]:
    return dict.fromkeys(names, (outcomes, why))


DIFFERENCES = {
    **_differences(
        "Granian serves the path of a target and tells us nothing of the rest.",
        ("200 next",),
        "target: absolute-form with a word as port",
        "target: absolute-form with a port too large",
        "target: absolute-form with a user",
        "host: http://evil.example/v1/models with the host localhost",
        "host: HTTP://EVIL.EXAMPLE/v1/models with the host localhost",
        "host: http://evil.example:80/v1/models with the host localhost",
        "host: http://localhost@evil.example/v1/models with the host localhost",
        "host: http://localhost:80@evil.example/v1/models with the host localhost",
        "host: http://evil.example@localhost/v1/models with the host localhost",
        "host: http://[2001:db8::1]/v1/models with the host localhost",
        "host: https://evil.example/v1/models with the host localhost",
        "host: http://evil.example#@localhost/v1/models with the host localhost",
        "host: http://evil.example?@localhost/v1/models with the host localhost",
    ),
    **_differences(
        "Granian gives us the target's host as Host only if there is no Host.",
        ("403 next",),
        "host: http://localhost/v1/models with the host evil.example",
    ),
    **_differences(
        "Granian gives us the target's host as Host only if there is no Host.",
        ("400 next",),
        "host: http://localhost/v1/models with the host ",
    ),
    **_differences(
        "Granian takes the host from the target if there is no Host.",
        ("200 next",),
        "host: absolute-form without Host",
    ),
    **_differences(
        "Granian checks the size of a head only when more of it arrives.",
        ("431 close", "200 next"),
        "target: a target of 70 KB",
        "header: a value of 70 KB",
        "header: a name of 70 KB",
        "header: two values of 40 KB",
        "header: a value of 70 KB of blanks",
    ),
    **_differences(
        "Granian checks the size of a head only when more of it arrives.",
        ("431 close", "400 close", "405 next"),
        "target: a method of 70 KB",
        "target: a version of 70 KB",
    ),
    **_differences(
        "Granian takes the largest length for one that no head may have.",
        ("431 close",),
        "length: Content-Length: 2^64 - 1",
    ),
    **_differences(
        "Granian ignores the length, as RFC 9112, section 6.3, allows, and then closes.",
        ("200 close",),
        "coding: a coding and a length",
        "coding: a length and a coding",
        "coding: a coding and the length of its chunks",
        "coding: a coding and no length",
        "coding: a coding and a negative length",
        "coding: a coding and a length in GET",
    ),
    **_differences(
        "Granian skips an extension unread.",
        ("200 next",),
        "coding: an extension with NUL",
    ),
    **_differences(
        "Granian may keep a connection open that it said it would close, if a body is not whole.",
        ("408 close", "408 open"),
        "length: a body that is shorter than its length",
        "coding: a size beyond the limit",
        "coding: a size of 2^64 - 1",
    ),
    **_differences(
        "Granian finds HTTP/2 by its preface, whatever the client asked for.",
        ("HTTP/2",),
        "request line: the preface of HTTP/2",
    ),
}
"""The outcomes of a case at Granian's end, and the reason."""
