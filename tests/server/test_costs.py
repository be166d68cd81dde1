"""The cost of a token and of a request in a real server, as counts that noise cannot change.

The server runs in its own process, over real sockets, with a zero-cost engine, in lockstep: each
token is one event (see benchmarks.peers). If a test fails here, the server does more than it did.
Raise a bound only if it has to, and say in docs/performance.md what the cost buys. Lower the bound
when the server does less: `pytest -s` prints the counts.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the client needs epoll, and strace Linux", allow_module_level=True)

from benchmarks.overhead.client import BODY_END, ClientStreams, first_token
from tests.support.counting import CountedServer, counting_server
from tests.support.programs import find_program
from tests.support.raw import post
from tests.support.waiting import eventually

NATIVE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
RESPONSES = "/v1/responses"

# Upper bounds. Calls: of Python and C functions, in the main thread. Objects: what a token or a
# request has left behind (a token its event and its text; a request the name of its stream, for
# some time). System calls: of all threads of the server's process, without `TIMED`. The server's
# timers fall into the window as well, the more the busier the machine is: hence 2.5% of slack.
CALLS_PER_TOKEN = {NATIVE: 13.5, COMPLETIONS: 13.5, CHAT: 13.5, RESPONSES: 14.5}
OBJECTS_PER_TOKEN = {NATIVE: 2.1, COMPLETIONS: 2.1, CHAT: 3.1, RESPONSES: 3.1}
SYSTEM_CALLS_PER_TOKEN = {NATIVE: 1.2, COMPLETIONS: 1.2, CHAT: 1.2, RESPONSES: 1.2}
CALLS_PER_REQUEST = {NATIVE: 808.0, COMPLETIONS: 985.0, CHAT: 1045.0, RESPONSES: 1142.0}
OBJECTS_PER_REQUEST = {NATIVE: 12.0, COMPLETIONS: 12.0, CHAT: 12.0, RESPONSES: 12.0}
SYSTEM_CALLS_PER_REQUEST = {NATIVE: 25.0, COMPLETIONS: 25.0, CHAT: 25.0, RESPONSES: 25.0}

# Waits: how often a thread finds nothing to do is a matter of time.
TIMED = {"futex", "sched_yield", "epoll_wait", "epoll_pwait"}

NUM_STREAMS, NUM_STEPS, NUM_WARM_STEPS = 16, 100, 10
NUM_REQUESTS = 100
PROMPTS: dict[str, dict[str, object]] = {
    NATIVE: {"prompt": "x"},
    COMPLETIONS: {"prompt": "x"},
    CHAT: {"messages": [{"role": "user", "content": "x"}]},
    RESPONSES: {"input": "x", "store": False},
}

Window = Callable[[Callable[[], object]], dict[str, float]]
"""Runs what it is given, and returns what the server did meanwhile."""

routes = pytest.mark.parametrize("route", [NATIVE, COMPLETIONS, CHAT, RESPONSES])


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("engine") / "step")


@pytest.fixture(scope="module")
def server(step: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountedServer]:
    with counting_server(
        tmp_path_factory.mktemp("counts"),
        engine="benchmarks.overhead.engine:Stepped",
        engine_arg=[f"socket={step}", "eager=true"],
    ) as server:
        yield server


@pytest.fixture
def strace() -> str:
    return find_program("strace", "strace", "PENSTOCK_REQUIRE_STRACE")


@routes
def test_a_token_takes_no_more_calls_and_objects_than_it_did(
    server: CountedServer, step: str, route: str
) -> None:
    counts = per_token(server, step, route, server.counted)
    assert 1 < counts["calls"] <= CALLS_PER_TOKEN[route]
    assert 0.9 < counts["objects"] <= OBJECTS_PER_TOKEN[route]


@routes
def test_a_token_takes_no_more_system_calls_than_it_did(
    server: CountedServer, step: str, route: str, strace: str, tmp_path: Path
) -> None:
    counts = per_token(server, step, route, lambda run: traced(strace, server.pid, tmp_path, run))
    assert 0.9 < total(counts) <= SYSTEM_CALLS_PER_TOKEN[route], counts


@routes
def test_a_request_takes_no_more_calls_and_objects_than_it_did(
    server: CountedServer, route: str
) -> None:
    counts = per_request(server, route, server.counted)
    assert 1 < counts["calls"] <= CALLS_PER_REQUEST[route]
    assert counts["objects"] <= OBJECTS_PER_REQUEST[route]


@routes
def test_a_request_takes_no_more_system_calls_than_it_did(
    server: CountedServer, route: str, strace: str, tmp_path: Path
) -> None:
    counts = per_request(server, route, lambda run: traced(strace, server.pid, tmp_path, run))
    assert 1 < total(counts) <= SYSTEM_CALLS_PER_REQUEST[route], counts


def ask(route: str, max_tokens: int) -> bytes:
    limit = "max_output_tokens" if route == RESPONSES else "max_tokens"
    fields = {**PROMPTS[route], "stream": True, limit: max_tokens}
    return post(json.dumps(fields).encode(), path=route)


def per_token(server: CountedServer, step: str, route: str, window: Window) -> dict[str, float]:
    """Return what the server does for a token of many streams, in lockstep."""
    max_tokens = NUM_WARM_STEPS + NUM_STEPS + 2  # the first and the last are in no step of these
    streams = ClientStreams(server.port, NUM_STREAMS, ask(route, max_tokens), eager=True)
    streams.lockstep(step, NUM_WARM_STEPS)
    counts = window(lambda: streams.lockstep(step, NUM_STEPS))
    streams.finish(step)
    streams.close()
    return shown(f"{route}, a token", counts, NUM_STREAMS * NUM_STEPS)


def per_request(server: CountedServer, route: str, window: Window) -> dict[str, float]:
    """Return what the server does for a request for one token, on a connection of its own."""

    def run() -> None:
        for _ in range(NUM_REQUESTS):
            first_token(server.port, ask(route, 1), BODY_END)

    window(run)  # what is made on first use, counted or not, is no cost of a request
    return shown(f"{route}, a request", window(run), NUM_REQUESTS)


def shown(title: str, counts: dict[str, float], number: int) -> dict[str, float]:
    """Divide counts by a number, and print them."""
    each = {name: round(count / number, 3) for name, count in counts.items()}
    print(f"{title}: {each}, in all {total(each):.3f}")
    return each


def total(system_calls: dict[str, float]) -> float:
    return sum(count for name, count in system_calls.items() if name not in TIMED)


def traced(strace: str, pid: int, folder: Path, run: Callable[[], object]) -> dict[str, float]:
    """Return the numbers of the system calls that a process makes during `run`, by name."""
    table = folder / "strace"
    process = subprocess.Popen(
        [strace, "-f", "-c", "-qq", "-o", str(table), "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )

    def is_attached() -> bool:
        threads = Path(f"/proc/{pid}/task").iterdir()
        return all(f"TracerPid:\t{process.pid}\n" in (e / "status").read_text() for e in threads)

    try:
        assert eventually(lambda: process.poll() is not None or is_attached())
        if process.poll() is None:
            run()
    finally:
        process.send_signal(signal.SIGINT)  # strace leaves the server and writes its table
        _, said = process.communicate()
    assert table.exists(), said
    # The columns: % time, seconds, usecs/call, calls, errors (or nothing), name.
    row = re.compile(r" *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)")
    found = map(row.fullmatch, table.read_text(encoding="utf-8").splitlines())
    counts = {each[2]: float(each[1]) for each in found if each and each[2] != "total"}
    assert counts, said
    return counts
