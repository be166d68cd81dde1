"""Finds the programs that tests run."""

import os
import shutil

import pytest


def find_program(name: str, packages: str, variable: str, path: str | None = None) -> str:
    """Return the path of a program; skip the test if it is not installed.

    With `variable` set to 1 in the environment the test fails instead. `packages` are those of
    Debian that have the program. `path` is where to look, by default PATH.
    """
    program = shutil.which(name, path=path)
    missing = f"no {name} found: install it (Debian, Ubuntu: apt-get install {packages})"
    if program is None and os.environ.get(variable) == "1":
        pytest.fail(missing)
    return program or pytest.skip(missing)
