"""Fixtures of vLLM's tests. `make test-vllm` runs them in vLLM's environment; `make test` does not.

Most tests run with two models. Each model is loaded once: pytest runs all tests of one model before
the tests of the other.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.engine import test_conformance as conformance
from tests.support.patience import allow_time
from tests.vllm.engines import SharedCase
from tests.vllm.models import make_models

HERE = Path(__file__).parent
PROMPT_OF_OPT = "Once upon a time"
"""The model `opt` is random. Its answer to this has no half characters within 40 tokens."""

# `make test-vllm` sets TEST_VLLM. Then a missing vLLM is a failure, not a reason to skip.
if not os.environ.get("TEST_VLLM"):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests in one event loop, because engines outlive a test. Allow time to load one."""
    for item in allow_time(items, HERE, 900):
        if item.get_closest_marker("asyncio"):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the models `opt`, `rill` and `thinker`, and return the folder that contains them."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["opt", "rill"])
async def case(request: pytest.FixtureRequest, models: Path) -> AsyncIterator[SharedCase]:
    """Start vLLM with one of the models, for the conformance test."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "opt":
            patch.setattr(conformance, "PROMPT", PROMPT_OF_OPT)
        async with SharedCase.of(request.param, models / request.param) as shared:
            yield shared
