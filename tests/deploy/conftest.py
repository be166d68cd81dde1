"""A client in HTTP/2. Prometheus and promtool, from Debian's package `prometheus`.

Without them the tests skip and say what to install; with PENSTOCK_REQUIRE_PROMETHEUS=1, as in CI,
they fail.
"""

from collections.abc import AsyncIterator

import pytest

from tests.faults.http2_client import Http2Client
from tests.support.balancers import trusting
from tests.support.programs import find_program


def find(name: str) -> str:
    """Return the path of the program; skip or fail the test if it is not installed."""
    return find_program(name, "prometheus", "PENSTOCK_REQUIRE_PROMETHEUS")


@pytest.fixture
async def client() -> AsyncIterator[Http2Client]:
    """A client in HTTP/2 that trusts the balancers' certificates."""
    made = Http2Client(trusting("h2"))
    yield made
    await made.close()


@pytest.fixture(scope="session")
def prometheus() -> str:
    return find("prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    return find("promtool")
