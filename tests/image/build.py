"""Builds the image of the Dockerfile with buildah, without a registry.

The base image comes from a registry. We make it ourselves, as Debian makes it: with debootstrap.
Debian's and PyPI's packages come from their servers.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.environments import cache_folder

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
BASE = f"docker.io/library/debian:{SUITE}-slim"
"""The base image's full name: the Dockerfile calls it debian:trixie-slim."""
MIRROR = "http://deb.debian.org/debian"
# pip must trust whom this machine trusts: a proxy may have its own authority.
OUR_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
THEIR_AUTHORITIES = "/usr/local/share/ca-certificates/of-the-host.crt"
STEP_TIMEOUT_S = 900


class Image(NamedTuple):
    """A built image: its files, and its configuration as Docker writes it."""

    files: Path
    config: dict[str, Any]


def build(buildah: "Buildah") -> Image:
    """Build the image. Raises CalledProcessError if a step fails, and TimeoutExpired."""
    _make_base(buildah)
    buildah("build", "--isolation=chroot", "--format=docker", "--pull-never", "-t=penstock", ROOT)
    container = buildah("from", "--pull-never", "localhost/penstock")
    about = json.loads(buildah("inspect", "--type=image", "localhost/penstock"))
    return Image(Path(buildah("mount", container)), about["Docker"]["config"])


class Buildah:
    """Buildah with images of its own in the folder `storage`."""

    def __init__(self, storage: Path) -> None:
        self._places = ("--root", str(storage / "root"), "--runroot", str(storage / "run"))

    def __call__(self, *arguments: str | Path) -> str:
        """Run a command of buildah; return what it prints."""
        command = ["buildah", *self._places, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
        if done.returncode:
            sys.stderr.write(done.stdout[-2000:] + done.stderr[-8000:])
        done.check_returncode()
        return done.stdout.strip()

    def remove_all(self) -> None:
        """Remove all containers, with their mounts."""
        self("rm", "--all")


def _make_base(buildah: Buildah) -> None:
    """Make Debian's image under the name that the Dockerfile expects."""
    container = buildah("from", "scratch")
    buildah("add", container, debian(), "/")
    buildah("copy", container, OUR_AUTHORITIES, THEIR_AUTHORITIES)
    buildah("commit", "--rm", container, BASE)


def debian() -> Path:
    """Return an archive of the smallest Debian, which is kept."""
    archive = cache_folder() / f"debian-{SUITE}.tar"
    if not archive.exists():
        draft = archive.with_suffix(".new")
        folder = archive.with_suffix(".folder")
        shutil.rmtree(folder, ignore_errors=True)
        # What debootstrap mounts goes with its namespace, even if it is killed.
        made = ["unshare", "--mount", "debootstrap", "--variant=minbase", SUITE, str(folder)]
        _run(*made, MIRROR)
        _run("tar", "--directory", str(folder), "--one-file-system", "-cf", str(draft), ".")
        shutil.rmtree(folder)
        draft.rename(archive)
    return archive


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=STEP_TIMEOUT_S)
