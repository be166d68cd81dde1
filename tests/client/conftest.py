"""Settings of the tests of the Python client."""

import pytest

from penstock.client import http


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the server more time to cancel than a busy machine takes."""
    assert http.QUICK_CANCEL_S == 2
    monkeypatch.setattr(http, "QUICK_CANCEL_S", 20.0)
