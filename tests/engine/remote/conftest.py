"""Settings of the tests that run the remote engine in their own process."""

import pytest

from penstock.engine.remote import questions


@pytest.fixture(autouse=True)
def no_upstream_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no second upstream because this process, in which the first one runs, stood still."""
    monkeypatch.setattr(questions, "SLOW_S", 60.0)
