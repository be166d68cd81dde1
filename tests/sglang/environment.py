"""Makes the Python environment of SGLang's own server, once for each set of requirements.

`python -m tests.sglang.environment` prints the environment's folder and makes it first if
necessary. It has SGLang and what SGLang needs for a text model on the CPU. The tests themselves
run in Penstock's environment.
"""

from pathlib import Path

from tests.support.environments import print_torch_environment

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
SGLANG = ["sglang==0.5.23", "torchvision>=0.28,<0.29"]

if __name__ == "__main__":
    print_torch_environment("SGLang", REQUIREMENTS, whole=SGLANG)
