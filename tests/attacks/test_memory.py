"""Memory: it is counted as it is held, bounded, and shared between owners."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attacks.honest import STEADY, honest_client
from tests.store.servers import RedisServer
from tests.support.raw import Connection, Response, ask, generate, open_stream, post, request
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

MIB = 1024 * 1024
FACTOR = 1.5
LIMIT = 256 * MIB


@pytest.fixture(scope="module")
def holding() -> dict[str, Any]:
    """The figures of a process that holds more than 200 MB (see `holding`)."""
    command = [sys.executable, "-m", "tests.attacks.holding"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_what_streams_hold_is_what_the_process_has_grown_by(holding: dict[str, Any]) -> None:
    kinds = holding["kinds"]
    assert sum(each["growth"] for each in kinds.values()) > 200 * MIB
    for name, each in kinds.items():
        assert 1 / FACTOR < each["growth"] / each["counted"] < FACTOR, (name, each)


def test_streams_that_have_ended_hold_nothing(holding: dict[str, Any]) -> None:
    assert holding["left"] == 0


def test_open_connections_are_counted_too() -> None:
    with serve(**STEADY) as server, contextlib.ExitStack() as stack:
        asked = generate("Hello " * 3000, max_tokens=100_000)
        for _ in range(50):  # warm
            stack.enter_context(open_stream(server.port, asked)[0])
        before, counted = rss(server), held(server)
        for _ in range(400):
            stack.enter_context(open_stream(server.port, asked)[0])
        growth, more = rss(server) - before, held(server) - counted
        assert 1 / FACTOR < growth / more < FACTOR


LARGE = generate("Hello " * 20_000, max_tokens=100_000, stream=True, resumable=True)


def test_streams_of_other_servers_are_counted_too(tmp_path: Path) -> None:
    flags = {**STEADY, "mock_interval": 1, "log": str(tmp_path / "log")}
    with serve(**flags) as owner, serve(**flags) as server, contextlib.ExitStack() as stack:

        def read_here(num: int) -> None:
            for _ in range(num):
                connection, stream_id = open_stream(owner.port, LARGE)
                stack.enter_context(connection)
                read = request("GET", f"/streams/{stream_id}")
                stack.enter_context(open_stream(server.port, read)[0])

        read_here(20)  # warm
        before, counted = rss(server), held(server)
        read_here(60)
        growth, more = rss(server) - before, held(server) - counted
        assert 1 / FACTOR < growth / more < FACTOR
        assert held(server, kind="followed") > 0.9 * more


def test_what_waits_for_the_store_is_counted_too(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    with serve(log=redis.url, log_timeout=600, **STEADY) as server, contextlib.ExitStack() as stack:
        for _ in range(20):  # warm
            stack.enter_context(open_stream(server.port, LARGE)[0])
        before, counted = rss(server), held(server)
        for _ in range(50):
            stack.enter_context(open_stream(server.port, LARGE)[0])
        redis.signal(signal.SIGSTOP)
        try:
            scrape_until(server, lambda scrape: kind_of(scrape, "stored") > 20 * MIB)
            growth, more = rss(server) - before, held(server) - counted
        finally:
            redis.signal(signal.SIGCONT)
        assert 1 / FACTOR < growth / more < FACTOR
    redis.kill()


# The limit.


@pytest.fixture
def limited() -> Iterator[RunningServer]:
    """A server that may use 256 MiB, and would keep more than that."""
    with serve(memory_limit="256M", retain_bytes=2**40, slots=8, **STEADY) as server:
        yield server


def test_a_full_memory_drops_kept_streams_the_oldest_first(limited: RunningServer) -> None:
    server = limited
    kept = echo("a" * 4_000_000)
    with honest_client(server):
        first, second = opened_id(server, kept), opened_id(server, kept)
        for _ in range(50):
            answer = ask(server.port, kept)
            assert answer.status == 200 or is_full(answer)
        assert rss(server) < LIMIT
        assert eventually(lambda: ask(server.port, kept).status == 200)
        for lost in (first, second):
            assert ask(server.port, request("GET", f"/streams/{lost}")).status == 410


def test_a_full_memory_refuses_new_requests_and_says_so(limited: RunningServer) -> None:
    server = limited
    asked = generate("a" * 2_000_000, max_tokens=100_000)
    with honest_client(server):
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                connection = stack.enter_context(Connection(server.port))
                answer = connection.send(asked).head()
                if answer.status == 503:
                    break
            else:
                raise AssertionError("the server takes everything")
            ready = ask(server.port, request("GET", "/health/ready"))
            assert (ready.status, ready.json()) == (503, {"status": "memory full"})
            assert is_full(ask(server.port, generate()))
            scrape = Scrape(server)
            assert scrape("penstock_memory_limit_bytes") == LIMIT
            assert scrape("penstock_memory_used_bytes") > 0.7 * LIMIT
            assert scrape("penstock_memory_held_bytes", kind="waiting") > 0.1 * LIMIT
            assert rss(server) < LIMIT
        assert eventually(lambda: server.readiness() == 200)
        assert ask(server.port, generate(max_tokens=1, stream=False)).status == 200


def test_one_owner_s_kept_streams_never_evict_another_owner_s(tmp_path: Path) -> None:
    keys = keys_file(tmp_path, "victim", "flood")
    with serve(keys=keys, retain_bytes=20 * MIB, **STEADY) as server:
        kept = echo("a" * 1_000_000, "Authorization: Bearer victim")
        ids = [opened_id(server, kept) for _ in range(5)]
        flood = echo("b" * 1_000_000, "Authorization: Bearer flood")
        flooded = [opened_id(server, flood) for _ in range(40)]
        for each in ids:
            read = request("GET", f"/streams/{each}", "Authorization: Bearer victim")
            assert ask(server.port, read).status == 200
        read = request("GET", f"/streams/{flooded[0]}", "Authorization: Bearer flood")
        assert ask(server.port, read).status == 410
        read = request("GET", f"/streams/{flooded[-1]}", "Authorization: Bearer flood")
        assert ask(server.port, read).status == 200


def rss(server: RunningServer) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


def held(server: RunningServer, **labels: str) -> float:
    return Scrape(server)("penstock_memory_held_bytes", **labels)


def kind_of(scrape: Scrape, kind: str) -> float:
    return scrape("penstock_memory_held_bytes", kind=kind)


def is_full(answer: Response) -> bool:
    """Return True for the refusal of a server whose memory is full."""
    return (
        answer.status == 503
        and b'"memory_full"' in answer.body
        and int(answer.headers["retry-after"]) > 0
    )


def echo(prompt: str, *headers: str) -> bytes:
    """Return a request whose answer, the prompt and one token, is kept."""
    fields = {"prompt": prompt, "max_tokens": 1, "echo": True, "stream": True}
    data = json.dumps(fields).encode()
    return post(data, "X-Penstock-Resumable: true", *headers, path="/v1/completions")


def opened_id(server: RunningServer, data: bytes) -> str:
    answer = ask(server.port, data)
    assert answer.status == 200
    return answer.headers["x-stream-id"]


def keys_file(folder: Path, *names: str) -> Path:
    """Write a file of keys, each of which is its own name."""
    path = folder / "keys.toml"
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    path.write_text("".join(f'[keys.{n}]\nhash = "sha256:{h}"\n' for n, h in hashes.items()))
    return path
