"""The environment that `make install` makes."""

import subprocess
import sys
from pathlib import Path


def test_a_program_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    """A clone's folder is named penstock, and so is the package in it.

    Python takes a folder of this name beside a program for the package, unless the package itself
    is on the path.
    """
    (tmp_path / "penstock").mkdir()
    program = tmp_path / "story.py"
    program.write_text("from penstock import Client\nprint(Client.__module__)\n", encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert (ran.stdout, ran.stderr) == ("penstock.client.client\n", "")
