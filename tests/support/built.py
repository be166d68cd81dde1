"""Wheels of this clone, built as for a release."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A clean clone has no environments, no caches and no results of earlier builds.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


def built_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of a folder of the clone from its source distribution; return its path.

    `folder` is empty. The build writes into the project's folder, and another worker may build the
    same project at the same time, so a copy is built.
    """
    clone, out = folder / "clone", folder / "out"
    shutil.copytree(ROOT, clone, symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--outdir", str(out)]
    copy = clone / project.relative_to(ROOT)
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built
