"""Prometheus itself and its promtool, from Debian's package `prometheus`.

Without them the tests skip and say what to install; with PENSTOCK_REQUIRE_PROMETHEUS=1, as in CI,
they fail instead.
"""

import os
import shutil

import pytest

MISSING = "no {} found: install it (Debian, Ubuntu: apt-get install prometheus)"


def find(name: str) -> str:
    """The program, or the end of the test."""
    program = shutil.which(name)
    if program is None and os.environ.get("PENSTOCK_REQUIRE_PROMETHEUS") == "1":
        pytest.fail(MISSING.format(name))
    return program or pytest.skip(MISSING.format(name))


@pytest.fixture(scope="session")
def prometheus() -> str:
    return find("prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    return find("promtool")
