"""Run an agent on the test's task with `penstock launch`, and record all that it sends.

The agent has a home folder and a working folder of its own, which are removed, and no process that
it has started outlives the run.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.agents.programs import Agent
from tests.agents.recorder import Recorded, recording
from tests.agents.task import DONE, FILE, finished
from tests.support.servers import serve

ENGINE = "tests.agents.scripted:Scripted"
MODEL = "scripted"
KEY = "psk_of_the_agents_in_the_test"
MAX_RUN_S = 300.0
"""An agent that takes longer is ended, and its task counts as failed."""
OUTPUT_CHARACTERS = 1500


@dataclass(frozen=True)
class Run:
    """What became of a task."""

    agent: Agent
    requests: list[Recorded]
    """All requests to the server, in order."""
    others: list[str]
    """The hosts of the requests to other servers, which were refused."""
    seconds: float
    faults: list[str]
    """What is wrong, in sentences; empty if the task ended as it should."""

    @property
    def turns(self) -> list[Recorded]:
        """Return the requests that offer the model tools: the turns of the task."""
        paths = (self.agent.path,)
        return [
            each
            for each in self.requests
            if each.path.partition("?")[0] in paths and each.body.get("tools")
        ]

    @property
    def errors(self) -> list[Recorded]:
        """Return the requests that the server did not answer with a success."""
        return [each for each in self.requests if each.status >= 400]

    @property
    def ignored(self) -> list[str]:
        """Return the fields that the server left out."""
        return sorted({name for each in self.requests for name in each.ignored})


def run_task(agent: Agent, commands: Path, num_turns: int) -> Run:
    """Run the task. `commands` is the folder with the agents' commands."""
    flags = {"engine": ENGINE, "engine_arg": [f"turns={num_turns}"], "model_name": MODEL}
    with (
        tempfile.TemporaryDirectory(prefix="penstock-agent-") as place,
        serve(api_key=[KEY], **flags) as server,
        recording(server.port) as recorder,
    ):
        home, work = Path(place, "home"), Path(place, "work")
        home.mkdir()
        work.mkdir()
        began = time.monotonic()
        status, output = _launch(agent, _environment(agent, commands, home, recorder.url), work)
        seconds = time.monotonic() - began
        written = work / FILE
        content = written.read_text() if written.exists() else ""
        run = Run(agent, recorder.requests, recorder.others, seconds, [])
        run.faults.extend(_faults(run, num_turns, status, output, content))
    return run


def _environment(agent: Agent, commands: Path, home: Path, url: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("LANG", "TERM", "TZ")}
    proxy = {name: url for each in ("HTTP_PROXY", "HTTPS_PROXY") for name in (each, each.lower())}
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    return {
        **kept,
        **proxy,
        **local,
        **agent.variables,
        "HOME": str(home),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path.cwd()),
        "PENSTOCK_URL": url,
        "PENSTOCK_API_KEY": KEY,
    }


def _launch(agent: Agent, environment: dict[str, str], work: Path) -> tuple[int | None, str]:
    """Return the agent's exit status, None if it was ended, and all that it printed."""
    command = [sys.executable, "-m", "penstock", "launch", agent.name, *agent.arguments]
    with _no_process_left(environment["HOME"]), tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        status: int | None = None
        try:
            status = process.wait(MAX_RUN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        return status, output.read()


@contextlib.contextmanager
def _no_process_left(home: str) -> Iterator[None]:
    """At the end, kill every process with this home folder, whatever its group or parent."""
    try:
        yield
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == home:
                    process.kill()


def _faults(
    run: Run, num_turns: int, status: int | None, output: str, content: str
) -> Iterator[str]:
    """Yield what is wrong with a run, in sentences."""
    end = output[-OUTPUT_CHARACTERS:]
    if status is None:
        yield f"It did not end within {MAX_RUN_S:.0f} s. It said: {end}"
    elif status != 0:
        yield f"It exited with status {status}. It said: {end}"
    elif DONE not in output:
        yield f"It did not print the answer. It said: {end}"
    if KEY in output:
        yield "It printed the key."
    if content != finished(num_turns):
        yield f"{FILE} has {max(0, content.count(chr(10)) - 1)} links, or wrong ones."
    if len(run.turns) != num_turns + 1:
        yield f"It sent {len(run.turns)} turns instead of {num_turns + 1}."
    if unexpected := set(run.others) - run.agent.asks:
        yield f"It asked other servers: {', '.join(sorted(unexpected))}."
    for each in run.errors:
        yield f"{each.method} {each.path} was answered {each.status}."
