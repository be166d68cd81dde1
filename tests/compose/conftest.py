"""Fixtures of the tests that only `make compose-check` runs: as root, on Debian."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import allow_time

# `make compose-check` sets TEST_COMPOSE. Then a missing program is a failure, not a reason to skip.
if os.environ.get("TEST_COMPOSE"):
    from tests.compose.compose_set import ComposeSet, composed, documented
    from tests.compose.machine import Machine, running_machine

    @pytest.fixture(scope="session")
    def machine() -> Iterator[Machine]:
        """Make a machine with Docker and our image, and remove it at the end."""
        # Not in /tmp, which may be a memory: layers need a disk.
        with (
            tempfile.TemporaryDirectory(dir="/var/tmp", prefix="penstock-compose-") as folder,
            running_machine(Path(folder)) as made,
        ):
            build, _ = documented("docker build --tag penstock .").splitlines()
            made.run(build)
            yield made

    @pytest.fixture(scope="module")
    def running(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeSet]:
        """Start the set as the documentation says, once for a file of tests."""
        with composed(machine, tmp_path_factory.mktemp("clients")) as made:
            yield made

    @pytest.fixture
    def whole(running: ComposeSet) -> ComposeSet:
        """Return the set with all that a test before has stopped or changed."""
        running.up()
        return running
else:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow time to make the machine, to build images and to drain."""
    allow_time(items, HERE, 1800)
