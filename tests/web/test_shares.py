"""Which connections are closed when there are too many."""

import math
from dataclasses import dataclass

import pytest

from penstock.web.addresses import network_of
from penstock.web.shares import share_of, to_close


@dataclass(frozen=True)
class Connection:
    network: str
    deadline: float
    is_idle: bool = True


def busy(network: str) -> Connection:
    return Connection(network, math.inf, is_idle=False)


def test_the_greediest_network_loses_the_connections_that_would_end_next() -> None:
    greedy = [Connection("a", deadline) for deadline in (5, 1, 3, 4)]
    modest = [Connection("b", 0), Connection("b", 9)]
    chosen = to_close([*greedy, *modest], 4)
    assert [each.deadline for each in chosen] == [1, 3, 4, 0]  # of two equal ones, any


def test_connections_with_requests_and_those_without_a_share_stay() -> None:
    places = [*(busy("a") for _ in range(9)), Connection("", 1), Connection("b", 7)]
    assert to_close(places, 5) == [Connection("b", 7)]
    assert to_close([busy("a"), Connection("", 1)], 5) == []


def test_a_network_with_open_requests_is_counted_with_them() -> None:
    places = [busy("a"), busy("a"), Connection("a", 8), Connection("b", 1), Connection("b", 2)]
    assert to_close(places, 1) == [Connection("a", 8)]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:0:1%eth0", "2001:db8::/64"),
        ("::1", "::/64"),
    ],
)
def test_a_network_is_an_address_or_64_bits(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("max_connections", "share"), [(1, 1), (2, 1), (3, 2), (8, 7), (40, 35), (8192, 7168)]
)
def test_seven_of_eight_connections_are_one_network_s(max_connections: int, share: int) -> None:
    assert share_of(max_connections) == share
