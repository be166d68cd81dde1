"""Packages from npm that tests read: fetched once, and kept beside the tests' environments."""

import fcntl
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.environments import cache_folder

MISSING = "no npm found: install it (Debian, Ubuntu: apt-get install npm)"


def npm_package(name: str, version: str) -> Path:
    """Return the folder of a package. No code of it runs.

    Without npm the test skips; with PENSTOCK_REQUIRE_NPM=1 it fails.
    """
    file = name.removeprefix("@").replace("/", "-")  # as npm names it
    folder = cache_folder() / f"npm-{file}-{version}"
    with (cache_folder() / f"npm-{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may ask at the same time
        if not (folder / "complete").exists():
            npm = shutil.which("npm")
            if npm is None and os.environ.get("PENSTOCK_REQUIRE_NPM") == "1":
                pytest.fail(MISSING)
            if npm is None:
                pytest.skip(MISSING)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            command = [npm, "pack", f"{name}@{version}", "--pack-destination", str(folder)]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            with tarfile.open(folder / f"{file}-{version}.tgz") as packed:
                packed.extractall(folder, filter="data")
            (folder / "complete").touch()
    return folder / "package"
