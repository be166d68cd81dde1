"""Runs containers of the image with runc, the runtime of Docker and Kubernetes.

A container has what a careful operator gives it: a root that is read-only, no capabilities, and
the image's user, variables and command. Its network is this machine's, so the ports are free ones.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.image.build import Image
from tests.support.ports import free_port
from tests.support.waiting import eventually

SERVES = "page and API"
"""What a server writes when it serves."""
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
NAMESPACES = ("pid", "mount", "ipc", "uts")


class Container:
    """A container that runs. `name` is its name for runc."""

    def __init__(self, name: str, folder: Path, image: Image, port: int) -> None:
        self.port = port
        self._name = name
        self._runc = ["runc", "--root", str(folder / "containers")]
        self._image = image
        self._said = folder / f"{name}.log"
        with self._said.open("w") as log:
            command = [*self._runc, "run", "--bundle", str(folder / name), name]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        """What the container has written so far."""
        return self._said.read_text(encoding="utf-8")

    def serves(self) -> bool:
        """Wait until the server serves; return False if it ends before."""
        ended = self.process.poll
        eventually(lambda: SERVES in self.said or ended() is not None, START_TIMEOUT_S)
        return SERVES in self.said

    def health(self) -> int:
        """Run the image's health check in the container, as Docker does; return its status."""
        kind, *command = self._image.config["Healthcheck"]["Test"]
        assert kind == "CMD", "a shell would be in between"
        return self.run(*command)

    def run(self, *command: str) -> int:
        """Run a command in the container; return its status."""
        return subprocess.run([*self._runc, "exec", self._name, *command], timeout=60).returncode

    def processes(self) -> list[psutil.Process]:
        """Return the container's first process and all that it has started."""
        command = [*self._runc, "state", self._name]
        state = subprocess.run(command, capture_output=True, check=True, timeout=60)
        first = psutil.Process(json.loads(state.stdout)["pid"])
        return [first, *first.children(recursive=True)]

    def stop(self) -> None:
        """Send the signal with which Docker stops a container of this image."""
        number = self._image.config.get("StopSignal") or "SIGTERM"
        subprocess.run([*self._runc, "kill", self._name, number], check=True, timeout=60)

    def wait(self) -> int:
        """Wait until the container has ended; return its status."""
        return self.process.wait(STOP_TIMEOUT_S)

    def remove(self) -> None:
        """End the container if it runs, and remove it."""
        command = [*self._runc, "delete", "--force", self._name]
        subprocess.run(command, check=True, timeout=60)
        self.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(
    image: Image, folder: Path, *command: str, mounts: Mapping[str, Path] | None = None
) -> Iterator[Container]:
    """Yield a container that runs, with folders of this machine at the places in `mounts`.

    Without a command, the image's own runs.
    """
    name = f"penstock-{free_port()}"
    port, admin_port = free_port(), free_port()
    variables = {"PENSTOCK_PORT": port, "PENSTOCK_ADMIN_PORT": admin_port}
    (folder / name).mkdir()
    bundle = _bundle(image, command, variables, mounts or {})
    (folder / name / "config.json").write_text(json.dumps(bundle), encoding="utf-8")
    container = Container(name, folder, image, port)
    try:
        yield container
    finally:
        container.remove()


def _bundle(
    image: Image, command: tuple[str, ...], variables: Mapping[str, int], mounts: Mapping[str, Path]
) -> dict[str, Any]:
    """Return the configuration of a container, in OCI's form."""
    config = image.config
    user, _, group = config["User"].partition(":")
    nothing: dict[str, list[str]] = {"bounding": [], "effective": [], "permitted": []}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": [*config["Entrypoint"], *(command or config["Cmd"])],
            "env": [*config["Env"], *(f"{name}={value}" for name, value in variables.items())],
            "cwd": config["WorkingDir"],
            "user": {"uid": int(user), "gid": int(group)},
            "noNewPrivileges": True,
            "capabilities": nothing,
        },
        "root": {"path": str(image.files), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _memory("/dev", "mode=755"),
            _memory("/dev/shm", "mode=1777"),
            _memory("/tmp", "mode=1777"),
            *(_memory(volume, f"mode=755,uid={user},gid={group}") for volume in config["Volumes"]),
            *(
                {"destination": place, "source": str(source), "options": ["bind"]}
                for place, source in mounts.items()
            ),
        ],
        "linux": {"namespaces": [{"type": each} for each in NAMESPACES]},
    }


def _memory(place: str, options: str) -> dict[str, Any]:
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", *options.split(",")],
    }
