"""A machine with Docker for the tests, which leaves this one as it is.

It is a Debian in a folder, whose processes, mounts and network are their own: Docker's bridges and
firewall are there, not here. slirp4netns connects it to the registries of Debian and of Python. All
that it starts ends with it, and it ends with the tests, even if they are killed.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from tests.image.build import OUR_AUTHORITIES, ROOT, THEIR_AUTHORITIES, debian
from tests.support.waiting import eventually

HERE = Path(__file__).parent
# Docker needs iptables, and `ps` for `docker top`. The documentation's commands need openssl.
PACKAGES = (
    "docker.io docker-buildx docker-cli docker-compose iptables procps"
    " ca-certificates curl iproute2 openssl"
)
RESOLVER = "10.0.2.3"
"""Where slirp4netns answers questions about names."""
STAND_INS = {
    "debian": "debian:trixie-slim",
    "valkey": "valkey/valkey:8",
    "haproxy": "haproxy:3.0",
    "prometheus": "prom/prometheus:v3.5.0",
}
"""The images that come from a registry, by their stage in our Dockerfile."""
REPOSITORY = "/penstock"
"""Where the machine has a copy of this repository."""
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 600
# Ends a program when the tests end.
WITH_US = ("setpriv", "--pdeathsig=KILL")


class Machine:
    """A machine that runs."""

    def __init__(self, first: psutil.Process) -> None:
        self._first = first
        namespaces = ("--mount", "--net", "--pid", "--ipc", "--uts")
        self._enter = ("nsenter", f"--target={first.pid}", *namespaces)

    def run(self, command: str, folder: str = REPOSITORY) -> str:
        """Run a command of bash in a folder of the machine; return what it writes, errors too.

        Raises AssertionError if it fails, and TimeoutExpired after ten minutes.
        """
        status, said = self.try_to_run(command, folder)
        assert status == 0, f"{command}\nended with {status}:\n{said[-8000:]}"
        return said

    def try_to_run(self, command: str, folder: str = REPOSITORY) -> tuple[int, str]:
        """Run a command as `run` does; return its status and what it writes."""
        there = f"cd {shlex.quote(folder)}\n{command}"
        done = subprocess.run(
            [*self._enter, "bash", "-e", "-c", there],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        return done.returncode, done.stdout

    def start(
        self, *command: str, variables: Mapping[str, str], errors: Path
    ) -> subprocess.Popen[str]:
        """Start a program of ours in the machine's network. Its output is read line by line."""
        with errors.open("w") as log:
            return subprocess.Popen(
                [*WITH_US, "nsenter", f"--net=/proc/{self._first.pid}/ns/net", *command],
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the machine."""
        return [self._first, *self._first.children(recursive=True)]


@contextlib.contextmanager
def running_machine(folder: Path) -> Iterator[Machine]:
    """Yield a machine whose files are in `folder`, with this repository and all images but ours."""
    root = folder / "root"
    _install(root)
    group = f"penstock-compose-{os.getpid()}"
    command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    with contextlib.ExitStack() as cleanup, (folder / "docker.log").open("w") as log:
        cleanup.callback(_remove_groups, group)
        program = subprocess.Popen(
            [*WITH_US, *command, "sh", str(HERE / "machine.sh"), str(root), group],
            stdout=log,
            stderr=log,
        )
        cleanup.callback(_end, program)
        assert eventually(lambda: bool(psutil.Process(program.pid).children()))
        (first,) = psutil.Process(program.pid).children()
        cleanup.callback(_end, _connect(first.pid))
        machine = Machine(first)
        assert eventually(lambda: _answers(machine), START_TIMEOUT_S), (
            folder / "docker.log"
        ).read_text()
        for stage, name in STAND_INS.items():
            machine.run(f"docker build --quiet --target {stage} --tag {name} /images")
        yield machine


def _install(root: Path) -> None:
    """Make a Debian with Docker in `root`."""
    images = root / "images"
    images.mkdir(parents=True)
    archive = debian()
    subprocess.run(["tar", "--directory", root, "-xf", archive], check=True)
    shutil.copy(archive, images / "debian.tar")
    shutil.copy(OUR_AUTHORITIES, images / "of-the-host.crt")
    shutil.copy(HERE / "Dockerfile", images)
    ours = root / THEIR_AUTHORITIES.lstrip("/")
    ours.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(OUR_AUTHORITIES, ours)
    resolver = root / "etc" / "resolv.conf"
    shutil.copy("/etc/resolv.conf", resolver)
    install = f"apt-get update && apt-get install --yes --no-install-recommends {PACKAGES}"
    # What is mounted goes with the namespace.
    mounted = f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mounted} && chroot {root} sh -c '{install}'"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    resolver.write_text(f"nameserver {RESOLVER}\n", encoding="utf-8")
    _copy_repository(root / REPOSITORY.lstrip("/"))


def _copy_repository(target: Path) -> None:
    """Copy what Git has or would take: no environment, and nobody's keys."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    packed = ["tar", "--null", "--files-from=-", "--ignore-failed-read", "-cf", "-"]
    archive = subprocess.run(packed, cwd=ROOT, check=True, input=files, stdout=subprocess.PIPE)
    target.mkdir()
    unpacked = ["tar", "--directory", str(target), "-xf", "-"]
    subprocess.run(unpacked, check=True, input=archive.stdout)


def _connect(pid: int) -> subprocess.Popen[bytes]:
    """Connect the network of a process to ours; return the program that does it, when it does."""
    ready, is_ready = os.pipe()
    command = ["slirp4netns", "--configure", "--disable-host-loopback", f"--ready-fd={is_ready}"]
    program = subprocess.Popen(
        [*WITH_US, *command, str(pid), "tap0"],
        pass_fds=[is_ready],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(is_ready)
    with os.fdopen(ready, "rb") as file:
        assert file.read(1), "slirp4netns has ended"
    return program


def _answers(machine: Machine) -> bool:
    """Return whether Docker's daemon answers."""
    return machine.try_to_run("docker version", "/")[0] == 0


def _end(program: subprocess.Popen[bytes]) -> None:
    """End a program, and all that runs in its namespaces."""
    program.kill()
    program.wait(STOP_TIMEOUT_S)


def _remove_groups(name: str) -> None:
    """Remove the control groups that Docker has made for its containers."""
    remove = f"find {name} -depth -type d -exec rmdir {{}} +"
    there = f"mount -t cgroup2 cgroup2 /mnt && cd /mnt && if [ -d {name} ]; then {remove}; fi"
    subprocess.run(["unshare", "--mount", "sh", "-c", there], check=True, timeout=STOP_TIMEOUT_S)
