"""A server with a real model, which all tests of a worker share. See `tests/support/smollm2.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import smollm2
from tests.support.servers import RunningServer, serve


@pytest.fixture(scope="session")
def model() -> Path:
    return smollm2.find()


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[RunningServer]:
    # A prompt that is partly cached gives slightly other numbers, and perhaps another answer.
    with serve(model=model, model_name="smollm2", engine_arg="cache_prompt=false") as running:
        yield running


@pytest.fixture(scope="session")
def reference(model: Path) -> smollm2.Reference:
    return smollm2.Reference(model)
