"""The containers of deploy/docker/compose.yaml, which run by the commands of docs/docker.md."""

import json
import queue
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.compose.machine import REPOSITORY, Machine
from tests.docs.pages import blocks_of
from tests.image.build import ROOT

FOLDER = f"{REPOSITORY}/deploy/docker"
REPLICAS = ("one", "two", "three")
URL = "http://127.0.0.1:8000"
KEY = re.compile(r"psk_[\w-]+")
# 20 tokens per second. Each token of an answer names the prompt and its own number.
SETTINGS = """\
engine = "mock"
mock_interval = 0.05
engine_arg = ["numbered=true", "length=100000"]
"""
RUNNING = "penstock_streams_running "


def documented(words: str) -> str:
    """Return the one block of docs/docker.md in which these words stand."""
    (block,) = [each for each in blocks_of(ROOT / "docs" / "docker.md") if words in each.code]
    return block.code


class Answer:
    """An answer that `penstock generate`, our Client, reads through HAProxy."""

    def __init__(self, program: subprocess.Popen[str], prompt: str, num_tokens: int) -> None:
        self._program = program
        self._expected = [f"{prompt}:{number} " for number in range(num_tokens)]
        self._tokens: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Always, because a client that can't write stops reading, and is dropped.
        threading.Thread(target=self._take_lines, daemon=True).start()

    def read(self, num_tokens: int) -> None:
        """Wait for so many further tokens."""
        for _ in range(num_tokens):
            event = self._event()
            assert event, f"cut after {len(self._tokens)} tokens"
            assert not event["finished"], event
            self._tokens.append(event["token"])

    def is_running(self) -> bool:
        """Return whether the client still reads."""
        return self._program.poll() is None

    def check(self) -> None:
        """Read to the end: each token must have come once, and in order."""
        while (event := self._event()) and not event["finished"]:
            self._tokens.append(event["token"])
        assert event, f"cut after {len(self._tokens)} tokens"
        assert self._tokens == self._expected
        assert self._program.wait(30) == 0

    def _event(self) -> dict[str, Any] | None:
        line = self._lines.get()
        event: dict[str, Any] | None = json.loads(line) if line else None
        return event

    def leave(self) -> None:
        """End the client, wherever it is."""
        self._program.kill()
        self._program.wait()

    def _take_lines(self) -> None:
        """Take what the client writes, and an empty line at its end."""
        assert self._program.stdout
        with self._program.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")


class ComposeSet:
    """The set, with its key and its store's password. Logs of clients go to `folder`."""

    def __init__(self, machine: Machine, key: str, password: str, folder: Path) -> None:
        self.machine = machine
        self.key = key
        self.password = password
        self._folder = folder
        self._num_answers = 0

    def run(self, command: str) -> str:
        """Run a command in the folder of the compose file; return what it writes."""
        return self.machine.run(command, FOLDER)

    def up(self, before: str = "") -> None:
        """Start what does not run, and replace what has changed. `before` sets variables."""
        self.run(f"{before} docker compose up --detach --wait")

    def inside(self, service: str, command: str) -> tuple[int, str]:
        """Run a command in a container; return its status and what it writes."""
        return self.machine.try_to_run(f"docker compose exec -T {service} {command}", FOLDER)

    def kill(self, service: str, title: str) -> None:
        """Kill the process with this title in a container."""
        its_command = f'grep -q "^{title}" $process/cmdline && kill -9 ${{process#/proc/}}'
        status, said = self.inside(
            service,
            f"bash -c 'for process in /proc/[0-9]*; do {its_command} && exit 0; done; exit 1'",
        )
        assert status == 0, said

    def states(self) -> dict[str, dict[str, Any]]:
        """Return what `docker compose ps` says of each service, stopped ones too."""
        lines = self.run("docker compose ps --all --format json").splitlines()
        return {each["Service"]: each for each in map(json.loads, lines)}

    def inspect(self, service: str) -> dict[str, Any]:
        """Return all that Docker says of a container."""
        said = self.run(f"docker inspect $(docker compose ps --all --quiet {service})")
        (found,) = json.loads(said)
        assert isinstance(found, dict)
        return found

    def streams(self) -> Counter[str]:
        """Return how many streams each replica runs."""
        counted: Counter[str] = Counter()
        for replica in REPLICAS:
            status, said = self.inside(replica, f"python3 -c '{ASK_METRICS}'")
            assert status == 0, said
            (line,) = [each for each in said.splitlines() if each.startswith(RUNNING)]
            counted[replica] = int(float(line.removeprefix(RUNNING)))
        return counted

    @contextmanager
    def answers(self, num_answers: int, num_tokens: int) -> Iterator[list[Answer]]:
        """Yield clients of as many answers, each of which has read five tokens."""
        begun: list[Answer] = []
        try:
            begun.extend(self._ask(num_tokens) for _ in range(num_answers))
            for answer in begun:
                answer.read(5)
            yield begun
        finally:
            for answer in begun:
                answer.leave()

    def _ask(self, num_tokens: int) -> Answer:
        self._num_answers += 1
        prompt = f"Answer{self._num_answers}"
        command = [
            str(Path(sys.executable).parent / "penstock"),
            "generate",
            "--json",
            f"--url={URL}",
        ]
        program = self.machine.start(
            *command,
            f"--max-tokens={num_tokens}",
            prompt,
            variables={"PENSTOCK_API_KEY": self.key},
            errors=self._folder / f"{prompt}.log",
        )
        return Answer(program, prompt, num_tokens)


ASK_METRICS = (
    'import urllib.request as r; print(r.urlopen("http://127.0.0.1:9000/metrics").read().decode())'
)


@contextmanager
def composed(machine: Machine, folder: Path) -> Iterator[ComposeSet]:
    """Yield the set as docs/docker.md starts it; remove it, with all that it keeps, at the end."""
    machine.run(f"mkdir -p penstock && printf %s '{SETTINGS}' > penstock/penstock.toml", FOLDER)
    try:
        said = machine.run(documented("docker compose up --detach --wait"))
        (key,) = set(KEY.findall(said))
        password = machine.run("cat secrets/valkey-password", FOLDER).strip()
        yield ComposeSet(machine, key, password, folder)
    finally:
        machine.run("docker compose --profile monitoring down --volumes --timeout 5", FOLDER)
        machine.run("rm -rf penstock secrets .env", FOLDER)
