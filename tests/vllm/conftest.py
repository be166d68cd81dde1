"""vLLM's tests: `make test-vllm` runs them, in an environment that has it; `make test` does not.

Two models for most, each loaded once: pytest runs everything that asks for one before it turns to
the other.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vllm.engines import SharedCase
from tests.vllm.models import make_models

HERE = Path(__file__).parent

# Set by `make test-vllm`: there a missing vLLM is a failure, not a reason to skip.
if not os.environ.get("TEST_VLLM"):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all, as the engines outlive a test; and time to load a model."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(900), append=False)
            if item.get_closest_marker("asyncio"):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the folders `opt`, `rill` and `thinker`."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["opt", "rill"])
async def case(request: pytest.FixtureRequest, models: Path) -> AsyncIterator[SharedCase]:
    """vLLM with one of the models, for the conformance test."""
    async with SharedCase.of(request.param, models / request.param) as shared:
        yield shared
