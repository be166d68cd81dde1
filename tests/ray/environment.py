"""Makes the Python environment for Ray's tests, once for each set of requirements.

`python -m tests.ray.environment` prints the environment's folder and makes it first if necessary.
Ray brings many packages, whose versions Penstock's own environment need not share.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.environments import environment, pip_install

HERE = Path(__file__).parent


def main() -> None:
    """Print the environment's folder, after making the environment if necessary."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    ours: list[str] = project["project"]["dependencies"]
    redis: list[str] = project["project"]["optional-dependencies"]["redis"]
    theirs = HERE / "requirements.txt"

    def fill(folder: Path) -> None:
        print(f"making Ray's environment in {folder} (700 MB, a minute)", file=sys.stderr)
        pip_install(folder, "-r", str(theirs), *ours, *redis)

    wanted = "\n".join([theirs.read_text(encoding="utf-8"), *ours, *redis])
    try:
        print(environment("ray", wanted, fill))
    except subprocess.CalledProcessError as error:
        sys.exit(f"Ray's environment cannot be made: pip ended with {error.returncode}")


if __name__ == "__main__":
    main()
