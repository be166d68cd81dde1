"""The shell commands of the compose file, run for real: the store's password comes from a file.

They run without containers: the test changes places and ports, and nothing else.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.store.servers import find
from tests.support.deployed import DEPLOY
from tests.support.keyed import Keys
from tests.support.ports import free_port
from tests.support.raw import ask
from tests.support.waiting import eventually

COMPOSE = DEPLOY / "docker" / "compose.yaml"
PASSWORD = "not-shown-to-anyone"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def service(name: str) -> dict[str, Any]:
    """Return a service of the compose file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][name]
    return found


def changed(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """Return a command as Compose gives it to a container, with other places."""
    given = [word.replace("$$", "$") for word in words]
    for old, new in places.items():
        assert any(old in word for word in given), old
        given = [word.replace(old, new) for word in given]
    return given


@contextlib.contextmanager
def running(command: Sequence[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command; when the context ends, send SIGTERM and check that it ends cleanly."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    # `penstock` is in the folder of this Python.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables)
    try:
        yield process
    finally:
        process.terminate()
        try:
            status = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert status == 0, said.read_text(encoding="utf-8")


def test_the_store_and_a_replica_take_the_password_from_its_file_and_stop_at_sigterm(
    tmp_path: Path,
) -> None:
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n", encoding="utf-8")
    keys = Keys(tmp_path / "keys.toml", "alice")
    store_port, port, admin_port = free_port(), free_port(), free_port()
    valkey, one = service("valkey"), service("one")
    store = changed(
        valkey["command"],
        {
            "/run/secrets/valkey-password": str(password),
            "/tmp/password.conf": str(tmp_path / "password.conf"),
            "valkey-server": find("redis"),
            "/data": f"{tmp_path} --port {store_port}",
        },
    )
    replica = changed(
        [*one["entrypoint"], *one["command"]],
        {
            "/run/secrets/valkey-password": str(password),
            "/etc/penstock/keys.toml": str(keys.path),
            "valkey:6379": f"127.0.0.1:{store_port}",
            "--admin-host=0.0.0.0": "--admin-host=127.0.0.1",
            "--admin-port=9000": f"--admin-port={admin_port}",
            "--drain-grace=3": f"--port={port}",
        },
    )
    kind, check = valkey["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    (asked,) = changed([check], {"valkey-cli": f"redis-cli -p {store_port}"})
    with running(store, tmp_path / "store") as store_process:
        assert eventually(lambda: subprocess.run(["sh", "-c", asked]).returncode == 0)
        with running(replica, tmp_path / "replica") as process:
            said = tmp_path / "replica"
            assert eventually(
                lambda: '"serving"' in said.read_text() or process.poll() is not None,
                START_TIMEOUT_S,
            )
            assert process.poll() is None, said.read_text()
            answer = ask(port, keys.generate("alice", max_tokens=3, resumable=True))
            # Without the store, a resumable stream gets 503.
            assert answer.status == 200
            for each in (process, store_process):
                assert PASSWORD not in " ".join(psutil.Process(each.pid).cmdline())
    assert PASSWORD not in (tmp_path / "replica").read_text()
