"""Who the client is, behind proxies that are trusted and proxies that are not."""

import time

import pytest

from penstock.errors import StartError
from penstock.web.proxies import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "::1"])


def client(peer: str, **headers: str | list[str]) -> str:
    given = [
        (name.replace("_", "-").encode(), each.encode("latin-1"))
        for name, value in headers.items()
        for each in ([value] if isinstance(value, str) else value)
    ]
    found = PROXIES.client_of({"client": (peer, 1234), "headers": given})
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("203.0.113.7, garbage", "10.0.0.1"),
        ("", "10.0.0.1"),
        (", ,", "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_its_end(value: str, expected: str) -> None:
    assert client("10.0.0.1", x_forwarded_for=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        ("for=198.51.100.1, for=203.0.113.7", "203.0.113.7"),
        ('for="198.51.100.1, for=203.0.113.9", for=203.0.113.7;x="a;b,c"', "203.0.113.7"),
        ("for=203.0.113.7, for=10.1.1.1", "203.0.113.7"),
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown, for=10.1.1.1", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        ('for="203.0.113.7', "10.0.0.1"),
        ("for=203.0.113.7;for=198.51.100.1", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_from_its_end(value: str, expected: str) -> None:
    assert client("10.0.0.1", forwarded=value) == expected


def test_a_proxy_that_is_not_trusted_is_the_client() -> None:
    assert client("192.0.2.1", x_forwarded_for="203.0.113.7") == "192.0.2.1"
    assert client("::ffff:10.0.0.1", x_forwarded_for="203.0.113.7") == "203.0.113.7"


def test_two_headers_that_do_not_agree_are_not_believed() -> None:
    agreed = client("10.0.0.1", forwarded="for=203.0.113.7", x_forwarded_for="203.0.113.7")
    assert agreed == "203.0.113.7"
    forged = client("10.0.0.1", forwarded="for=198.51.100.1", x_forwarded_for="203.0.113.7")
    assert forged == "10.0.0.1"


def test_hostile_headers_cost_little() -> None:
    for value in ('"' * 60_000, "for=" * 15_000, "," * 60_000, '\\"' * 30_000, "10.1.1.1," * 7_000):
        began = time.process_time()
        client("10.0.0.1", forwarded=value, x_forwarded_for=value)
        assert time.process_time() - began < 1.0


def test_a_network_that_is_none_is_refused_at_start() -> None:
    with pytest.raises(StartError, match="trusted proxy"):
        TrustedProxies(["10.0.0.0/99"])
