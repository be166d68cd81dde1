"""Packages from npm that tests read: fetched once, and kept beside the tests' environments."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.environments import cache_folder

MISSING = "no npm found: install it (Debian, Ubuntu: apt-get install npm)"


def npm_packages(listed: Path) -> Path:
    """Return a folder `node_modules` with the packages of `package.json` and its lock in `listed`.

    Without npm the test skips; with PENSTOCK_REQUIRE_NPM=1 it fails.
    """
    files = [listed / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    folder = cache_folder() / f"npm-{listed.name}-{digest}"
    with (cache_folder() / f"npm-{listed.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may ask at the same time
        if not (folder / "complete").exists():
            npm = _npm()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for file in files:
                shutil.copy(file, folder)
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run([npm, "ci", *quiet], check=True, capture_output=True, cwd=folder)
            (folder / "complete").touch()
    return folder / "node_modules"


def npm_package(name: str, version: str) -> Path:
    """Return the folder of a package. No code of it runs.

    Without npm the test skips; with PENSTOCK_REQUIRE_NPM=1 it fails.
    """
    file = name.removeprefix("@").replace("/", "-")  # as npm names it
    folder = cache_folder() / f"npm-{file}-{version}"
    with (cache_folder() / f"npm-{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may ask at the same time
        if not (folder / "complete").exists():
            npm = _npm()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            command = [npm, "pack", f"{name}@{version}", "--pack-destination", str(folder)]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            with tarfile.open(folder / f"{file}-{version}.tgz") as packed:
                packed.extractall(folder, filter="data")
            (folder / "complete").touch()
    return folder / "package"


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None and os.environ.get("PENSTOCK_REQUIRE_NPM") == "1":
        pytest.fail(MISSING)
    if npm is None:
        pytest.skip(MISSING)
    return npm
