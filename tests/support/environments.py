"""Python environments of tests whose packages do not go together with the other tests' packages.

An environment is made once for each set of requirements. It is kept in ~/.cache/penstock, or in
XDG_CACHE_HOME, and all clones share it. This module needs only the standard library.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

UNUSED_AFTER_S = 14 * 24 * 3600
TORCH = "torch==2.13.0+cpu"
# The index with torch's CPU build, for machines whose pip has no other source of it.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def cache_folder() -> Path:
    """Return the folder in which tests keep what takes long to get."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def environment(name: str, requirements: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder of the environment `name` with these requirements.

    If there is none, make a virtual environment and let `fill` install into it. Environments of
    the same name that nobody has used for two weeks are removed. Raises CalledProcessError if pip
    fails.
    """
    cache = cache_folder()
    what = f"{sys.version}\n{requirements}"
    folder = cache / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    stamp = folder / "complete"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clones may run at the same time
        if not stamp.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            fill(folder)
        stamp.touch()
        for other in cache.glob(f"{name}-*/complete"):
            if time.time() - other.stat().st_mtime > UNUSED_AFTER_S:
                shutil.rmtree(other.parent, ignore_errors=True)
    return folder


def pip_install(folder: Path, *what: str) -> None:
    """Run pip install in an environment; its output goes to standard error."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq"]
    subprocess.run([*command, "--progress-bar=off", *what], check=True, stdout=sys.stderr)


def print_torch_environment(engine: str, requirements: Path, *ours: str, whole: list[str]) -> None:
    """Print the folder of an environment on the CPU for an engine, making it if necessary.

    It has torch, what the file `requirements` and `ours` name, and the packages `whole` without
    their own requirements, some of which are for GPUs only. Exits if pip fails.
    """

    def fill(folder: Path) -> None:
        print(f"making {engine}'s environment in {folder} (3 GB, some minutes)", file=sys.stderr)
        # Install torch first, so that no other package installs its CUDA build.
        with contextlib.suppress(subprocess.CalledProcessError):
            pip_install(folder, TORCH)
        if not list(folder.glob("lib/*/site-packages/torch")):
            pip_install(folder, TORCH, "--extra-index-url", TORCH_INDEX)
        pip_install(folder, TORCH, "-r", str(requirements), *ours)
        pip_install(folder, *whole, "--no-deps")

    what = "\n".join([TORCH, *whole, requirements.read_text(encoding="utf-8"), *ours])
    try:
        print(environment(engine.lower(), what, fill))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{engine}'s environment cannot be made: pip ended with {error.returncode}")
