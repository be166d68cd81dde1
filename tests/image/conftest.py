"""Fixtures of the image's tests, which only `make image-check` runs: as root, on Debian."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import allow_time

# `make image-check` sets TEST_IMAGE. Then a missing program is a failure, not a reason to skip.
if os.environ.get("TEST_IMAGE"):
    from tests.image.build import Buildah, Image, build

    @pytest.fixture(scope="session")
    def image() -> Iterator[Image]:
        """Build the image, and remove it at the end."""
        # Not in /tmp, which may be a memory: layers need a disk.
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="penstock-image-") as folder:
            buildah = Buildah(Path(folder))
            try:
                yield build(buildah)
            finally:
                buildah.remove_all()
else:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow time to make Debian and to build the image."""
    allow_time(items, HERE, 1800)
