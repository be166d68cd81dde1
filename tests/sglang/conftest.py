"""Fixtures of SGLang's tests. `make test-sglang` runs them beside SGLang; `make test` does not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.engine.llamacpp.hub import find_model
from tests.sglang.servers import Server, servers
from tests.support.patience import allow_time
from training.export import export_hub

HERE = Path(__file__).parent

# `make test-sglang` sets TEST_SGLANG. Then a missing SGLang is a failure, not a reason to skip.
if not os.environ.get("TEST_SGLANG"):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow time to start SGLang."""
    allow_time(items, HERE, 900)


@pytest.fixture(scope="session")
def rill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the built-in model in Hugging Face's form, and return its folder."""
    folder = tmp_path_factory.mktemp("models") / "rill"
    export_hub(find_model("rill"), folder)
    return folder


@pytest.fixture(scope="session")
def pair(rill: Path) -> Iterator[list[Server]]:
    """Run two servers of this model."""
    with servers(2, rill) as started:
        yield started
