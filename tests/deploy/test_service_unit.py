"""The systemd unit: systemd accepts it, its times agree, and Penstock can work in its sandbox."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.settings import Settings
from tests.support.deployed import DEPLOY, settings_given, unknown_variables
from tests.support.programs import find_program
from tests.support.raw import ask, generate
from tests.support.waiting import eventually

UNIT = DEPLOY / "systemd" / "penstock.service"
# What `server` takes beyond both of its times for slow clients and for the engine's end.
END_S = 6
PATIENCE_S = 60
URL = re.compile(r'"url": "http://127\.0\.0\.1:(\d+)".*\n')
"""The end of the line that says that the server serves."""
# Of 100: below 20 systemd says "OK", from 50 on "MEDIUM".
MOST_EXPOSURE = 20


@pytest.fixture(scope="module")
def analyze() -> str:
    return find_program("systemd-analyze", "systemd", "PENSTOCK_REQUIRE_SYSTEMD")


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """Return the path of the unit as it is installed, with a program that exists."""
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("/opt/penstock/bin/penstock ") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/penstock/bin/penstock ", f"{sys.executable} "))
    return str(copy)


def value_of(name: str) -> str:
    """Return the value of the unit's only line with this name."""
    text = UNIT.read_text(encoding="utf-8").replace("\\\n", " ")
    (found,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return str(found)


def served() -> Settings:
    """Return the settings of the unit's server."""
    program, command, *flags = shlex.split(value_of("ExecStart"))
    assert (program, command) == ("/opt/penstock/bin/penstock", "serve")
    return settings_given(flags)


def test_systemd_accepts_the_unit(analyze: str, installed: str) -> None:
    done = subprocess.run([analyze, "verify", installed], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # Lines about this machine's other units do not name ours.
    assert not [line for line in said.splitlines() if UNIT.name in line]


def test_systemd_calls_the_sandbox_tight(analyze: str, installed: str) -> None:
    command = [analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", installed]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_unit_s_flags_exist_and_its_stop_waits_for_the_drain() -> None:
    settings = served()
    needed = settings.drain_grace + settings.drain_timeout + END_S
    assert int(value_of("TimeoutStopSec")) >= needed
    assert settings.admin_port
    assert settings.log.startswith("/var/lib/" + value_of("StateDirectory"))
    assert not unknown_variables(UNIT.read_text(encoding="utf-8"))
    assert (value_of("Type"), value_of("ExecReload").split()[1]) == ("notify", "-HUP")


def allowed(analyze: str, group: str) -> set[str]:
    """Return the system calls in a group of systemd's, and in the groups that it names."""
    done = subprocess.run([analyze, "syscall-filter", group], capture_output=True, check=True)
    names = [line.strip() for line in done.stdout.decode().splitlines()[1:]]
    calls = {name for name in names if name and name[0] not in "@#"}
    return calls.union(*(allowed(analyze, name) for name in names if name.startswith("@")))


def test_a_server_makes_no_system_call_that_the_unit_forbids(analyze: str, tmp_path: Path) -> None:
    """With the built-in model: llama.cpp has threads, and the store of logs has locks."""
    strace = find_program("strace", "strace", "PENSTOCK_REQUIRE_STRACE")
    table, ready = tmp_path / "calls", tmp_path / "said"
    command = [strace, "-f", "-c", "-qq", "-o", str(table), sys.executable, "-m", "penstock"]
    flags = ["serve", "--port", "0", "--log", str(tmp_path / "log"), "--log-format", "json"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    with (
        ready.open("w") as said,
        subprocess.Popen(
            [*command, *flags], stderr=said, env=variables, start_new_session=True
        ) as process,
    ):
        served_or_ended = eventually(
            lambda: bool(URL.search(ready.read_text())) or process.poll() is not None, PATIENCE_S
        )
        if found := URL.search(ready.read_text()):
            answer = ask(int(found[1]), generate(max_tokens=3, resumable=True))
            assert answer.status == 200
        os.killpg(process.pid, signal.SIGTERM)  # strace leaves it to the server
        process.wait(PATIENCE_S)
    assert served_or_ended
    assert '"serving"' in ready.read_text(), ready.read_text()
    rows = table.read_text(encoding="utf-8").splitlines()[2:-2]
    used = {row.split()[-1] for row in rows}
    assert {"epoll_ctl", "flock", "prctl"} <= used
    assert used <= allowed(analyze, value_of("SystemCallFilter"))
