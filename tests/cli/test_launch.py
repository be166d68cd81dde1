"""`penstock launch` runs real processes that stand in for the programs, with a real server.

Each stand-in records its arguments, its environment and its process id, and exits with status 7.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.cli.launch import MIN_CONTEXT
from penstock.cli.programs import PROGRAMS
from tests.support.scripted_server import Peer, scripted_server, whole
from tests.support.servers import RunningServer, serve

PATIENCE_S = 60.0
STATUS = 7
KEY, OTHER_KEY = "psk_the_first_of_two_keys", "psk_the_second_of_two_keys"
FOREIGN_KEY = "sk-ant-of-another-server"
OURS = ["-p", "two words", "--url", "it's theirs", "--help"]
RECORDER = f"""\
#!{sys.executable}
import json, os, sys
seen = {{"arguments": sys.argv[1:], "variables": dict(os.environ), "pid": os.getpid()}}
json.dump(seen, open(os.environ["RECORD"], "w"))
sys.exit({STATUS})
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose context is long enough and which needs no key."""
    with serve(engine="mock", engine_arg=[f"context_length={MIN_CONTEXT}"]) as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    """A server with a key, and a context that is too short by one token."""
    short = [f"context_length={MIN_CONTEXT - 1}"]
    with serve(engine="mock", engine_arg=short, api_key=[KEY]) as running:
        yield running


class Place:
    """A PATH with the stand-ins, an empty home folder, and commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.home.mkdir()
        self.bin.mkdir()
        self._record = folder / "record.json"

    def install(self, script: str, *names: str) -> None:
        for name in names:
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)

    def popen(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "ANTHROPIC"))}
        # `sh` and `env` come from the system, every program from the test.
        place = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home)}
        plain = {"TERM": "dumb", "COLUMNS": "200", "RECORD": str(self._record)}
        return subprocess.Popen(
            command,
            env=ours | place | plain | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Run `penstock launch`; return its status, standard output and standard error."""
        with self.popen(sys.executable, "-m", "penstock", "launch", *arguments, **variables) as run:
            said, errors = run.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in errors, errors
        return run.returncode, said, errors

    def recorded(self) -> dict[str, Any]:
        """Return what the stand-in recorded, once."""
        seen: dict[str, Any] = json.loads(self._record.read_text())
        self._record.unlink()
        return seen

    def nothing_ran(self) -> bool:
        return not self._record.exists()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.install(RECORDER, *PROGRAMS)
    return made


def request_of(program: str, seen: dict[str, Any]) -> httpx.Request:
    """Build a request as the program builds it from its arguments and variables."""
    variables = seen["variables"]
    hello = {"role": "user", "content": "Hello"}
    if program == "claude":
        assert seen["arguments"][0] == "--settings"
        # Claude Code takes these before the user's own settings, and those before variables.
        overriding = json.loads(seen["arguments"][1])["env"]
        assert overriding == {name: variables[name] for name in overriding}
        url = overriding["ANTHROPIC_BASE_URL"] + "/v1/messages"
        key = variables["ANTHROPIC_AUTH_TOKEN"]
        body = {"model": overriding["ANTHROPIC_MODEL"], "max_tokens": 5, "messages": [hello]}
    elif program == "codex":
        entries = seen["arguments"][1 : -len(OURS) : 2]
        assert seen["arguments"][0 : -len(OURS) : 2] == ["-c"] * len(entries)
        config = tomllib.loads("\n".join(entries))
        assert config["model_context_window"] >= MIN_CONTEXT - 1
        provider = config["model_providers"][config["model_provider"]]
        assert provider["wire_api"] == "responses"
        url = provider["base_url"] + "/responses"
        body = {"model": config["model"], "max_output_tokens": 5, "input": "Hello"}
        key = variables[provider["env_key"]] if "env_key" in provider else "none"
    else:
        config = json.loads(variables["OPENCODE_CONFIG_CONTENT"])
        name, _, model = config["model"].partition("/")
        provider = config["provider"][name]
        assert provider["models"][model]["limit"]["context"] >= MIN_CONTEXT - 1
        url = provider["options"]["baseURL"] + "/chat/completions"
        body = {"model": model, "max_tokens": 5, "messages": [hello]}
        reference = provider["options"].get("apiKey", "{env:NONE}")
        key = {"NONE": "none", **variables}[reference.removeprefix("{env:").removesuffix("}")]
    return httpx.Request("POST", url, json=body, headers={"Authorization": f"Bearer {key}"})


def reached(program: str, seen: dict[str, Any]) -> bool:
    """Return True if the program's request is answered."""
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        return client.send(request_of(program, seen)).status_code == 200


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_runs_with_its_own_arguments_and_reaches_the_server(
    place: Place, server: RunningServer, program: str
) -> None:
    status, said, errors = place.launch("--url", server.url + "/", program, *OURS)
    seen = place.recorded()
    assert status == STATUS, errors
    assert seen["arguments"][-len(OURS) :] == OURS
    assert reached(program, seen)
    assert said == ""
    assert len(errors.splitlines()) == 2
    assert server.url in errors
    assert f"{MIN_CONTEXT:,}" in errors
    assert list(place.home.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_key_goes_by_the_environment_and_is_never_shown(
    place: Place, guarded: RunningServer, program: str
) -> None:
    variables = {
        "PENSTOCK_API_KEY": f"{KEY},{OTHER_KEY}",
        "PENSTOCK_URL": guarded.url,
        "ANTHROPIC_API_KEY": FOREIGN_KEY,
    }
    status, _, errors = place.launch("--force", program, *OURS, **variables)
    launched = place.recorded()
    assert status == STATUS, errors
    assert reached(program, launched)
    assert "(your key)" in errors
    status, printed, more = place.launch("--force", "--print", program, *OURS, **variables)
    assert status == 0
    assert place.nothing_ran()
    for shown in (errors, printed, more, *launched["arguments"]):
        assert KEY not in shown
        assert OTHER_KEY not in shown
    # What is printed does the same in a shell.
    with place.popen("/bin/sh", "-c", printed, **variables) as shell:
        assert shell.wait(PATIENCE_S) == STATUS, printed
    in_shell = place.recorded()
    assert in_shell["arguments"] == launched["arguments"]
    of_shells = {"PWD", "OLDPWD", "SHLVL", "_"}
    for seen in (launched, in_shell):
        seen["variables"] = {k: v for k, v in seen["variables"].items() if k not in of_shells}
    assert in_shell["variables"] == launched["variables"]


def test_a_key_for_anthropic_does_not_go_to_the_server(place: Place, server: RunningServer) -> None:
    place.launch("--url", server.url, "claude", ANTHROPIC_API_KEY=FOREIGN_KEY)
    assert FOREIGN_KEY not in place.recorded()["variables"].values()


def test_the_program_takes_the_place_of_the_command(place: Place, server: RunningServer) -> None:
    command = (sys.executable, "-m", "penstock", "launch", "--url", server.url, "claude")
    with place.popen(*command) as run:
        assert run.wait(PATIENCE_S) == STATUS
    assert place.recorded()["pid"] == run.pid
    place.install("#!/bin/sh\ngrep SigIgn /proc/self/status\nkill -TERM $$\n", "claude")
    with place.popen(*command) as run:
        said, _ = run.communicate(timeout=PATIENCE_S)
    # Whoever runs the tests may ignore a signal, as nohup does.
    here = ignored(Path("/proc/self/status").read_text())
    # Python itself ignores these two; a program that it starts must not.
    assert ignored(said) == here - {signal.SIGPIPE, signal.SIGXFSZ}
    assert run.returncode == -15


def test_a_context_that_is_too_short_is_refused_and_the_flag_is_named(
    place: Place, guarded: RunningServer
) -> None:
    status, _, errors = place.launch("--url", guarded.url, "codex", PENSTOCK_API_KEY=KEY)
    assert status == 1
    assert place.nothing_ran()
    assert f"{MIN_CONTEXT - 1:,} tokens" in errors
    assert f"--context {MIN_CONTEXT}" in errors
    assert "--force" in errors


@pytest.mark.parametrize("key", ["", "psk_a_key_that_the_server_does_not_know"])
def test_a_server_that_does_not_know_the_key_is_named(
    place: Place, guarded: RunningServer, key: str
) -> None:
    status, _, errors = place.launch("--url", guarded.url, "claude", PENSTOCK_API_KEY=key)
    assert status == 1
    assert place.nothing_ran()
    assert "PENSTOCK_API_KEY" in errors
    assert not key or key not in errors


def test_a_program_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    place: Place,
) -> None:
    (place.bin / "codex").unlink()
    status, _, errors = place.launch("codex")
    assert status == 1
    assert PROGRAMS["codex"].install in errors


def test_an_unknown_program_is_refused_and_the_programs_are_named(place: Place) -> None:
    status, _, errors = place.launch("\x1b[31mvim")
    assert status == 1
    assert all(name in errors for name in PROGRAMS)
    assert "vim" not in errors


def test_without_a_program_the_programs_are_listed(place: Place) -> None:
    (place.bin / "codex").unlink()
    status, said, _ = place.launch()
    assert status == 0
    listed = {line.split()[0]: line for line in said.splitlines()}
    assert listed.keys() == PROGRAMS.keys()
    assert [name for name, line in listed.items() if line.endswith("installed")] == [
        name for name in PROGRAMS if name != "codex"
    ]
    assert listed["codex"].endswith(PROGRAMS["codex"].install)


def test_an_address_without_a_server_is_named(place: Place) -> None:
    status, _, errors = place.launch("--url", "http://127.0.0.1:1", "claude")
    assert status == 1
    assert "penstock serve" in errors


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": []}',
        b'{"data": [{"id": "a\\u001b[31m", "context_length": 99999}]}',
        b'{"data": [{"id": "a", "context_length": null}]}',
    ],
)
def test_an_answer_that_names_no_usable_model_is_refused(place: Place, body: bytes) -> None:
    def answer(peer: Peer) -> None:
        peer.send(whole(body))

    with scripted_server(answer) as scripted:
        status, _, errors = place.launch("--url", scripted.url, "claude")
    assert status == 1
    assert place.nothing_ran()
    assert "\x1b" not in errors
    assert len(errors) < 400


def ignored(status: str) -> set[int]:
    """Return the standard signals that a process ignores, from the lines of its `status`."""
    (mask,) = re.findall(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return {number for number in range(1, 32) if int(mask, 16) >> (number - 1) & 1}
