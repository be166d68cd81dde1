"""How an engine's process makes the engine that it was told to make."""

import pytest

from penstock.engine.process.worker import load
from penstock.errors import StartError


def test_an_unknown_parameter_of_an_engine_is_named_beside_the_known_ones() -> None:
    with pytest.raises(StartError, match=r"^The engine has no parameter 'fail'\.$") as refused:
        load("penstock.engine.mock:Mock", {"name": "mock", "fail": 5})
    assert "fail_at" in refused.value.hint
