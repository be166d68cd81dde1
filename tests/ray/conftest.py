"""Fixtures of Ray's tests, which only `make ray-check` runs, in Ray's environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import allow_time

# `make ray-check` sets TEST_RAY. Then a missing Ray is a failure, not a reason to skip.
if os.environ.get("TEST_RAY"):
    from tests.ray.cluster import Cluster
    from tests.store.servers import RedisServer

    @pytest.fixture(scope="session")
    def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        """Run Redis, and return what `--log` calls it."""
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        server.start()
        yield server.url
        server.kill()

    @pytest.fixture(scope="session")
    def cluster() -> Iterator[Cluster]:
        """Run a cluster of a head node and two nodes for replicas."""
        with Cluster() as running:
            running.add_node()
            running.add_node()
            yield running
else:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow time to start a cluster, and to notice that a node has died."""
    allow_time(items, HERE, 300)
