"""Standard error that is closed, full or without a reader (fault D13): the server goes on."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.honest import STEADY, honest_client
from tests.support.ports import free_port
from tests.support.raw import Connection, ask, request
from tests.support.servers import RunningServer
from tests.support.waiting import eventually

HEALTH = request("GET", "/health")
NUM_REQUESTS = 60
"""More log lines than a pipe of one page holds."""
PIPE_BYTES = 4096


@contextlib.contextmanager
def full_pipe() -> Iterator[dict[str, Any]]:
    """A pipe that is full from the beginning, whose reader does not read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 512)
    os.set_blocking(writing, True)
    yield {"stderr": writing}
    os.close(writing)
    os.close(reading)


@contextlib.contextmanager
def filling_pipe() -> Iterator[dict[str, Any]]:
    """A pipe with room for some lines, whose reader does not read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield {"stderr": writing}
    os.close(writing)
    os.close(reading)


@contextlib.contextmanager
def pipe_without_reader() -> Iterator[dict[str, Any]]:
    reading, writing = os.pipe()
    os.close(reading)
    yield {"stderr": writing}
    os.close(writing)


@contextlib.contextmanager
def full_disk() -> Iterator[dict[str, Any]]:
    with Path("/dev/full").open("wb") as file:
        yield {"stderr": file, "stdout": file}


def closing(*descriptors: int) -> Callable[[], "contextlib.AbstractContextManager[dict[str, Any]]"]:
    """Return what closes these standard files before the server begins."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return lambda: contextlib.nullcontext({"preexec_fn": close})


FORMS = {
    "full": full_pipe,
    "filling": filling_pipe,
    "without a reader": pipe_without_reader,
    "full disk": full_disk,
    "closed": closing(2),
    "all closed": closing(0, 1, 2),
}


@contextlib.contextmanager
def served(form: str, log_format: str) -> Iterator[RunningServer]:
    """Yield a server with this form of standard error, and check how it ends."""
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", "--port", str(port)]
    command += ["--log-format", log_format, "--engine", "mock", "--mock-interval", "0.02"]
    for argument in STEADY["engine_arg"]:
        command += ["--engine-arg", argument]
    with FORMS[form]() as files, subprocess.Popen(command, **files) as process:
        try:
            assert eventually(lambda: process.poll() is not None or answers(port))
            yield RunningServer(f"http://127.0.0.1:{port}", process, [])
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20):
        return ask(port, request("GET", "/health/ready")).status == 200
    return False


@pytest.mark.parametrize(
    ("form", "log_format"),
    [*((form, "text") for form in FORMS), ("full", "json"), ("closed", "json")],
)
def test_no_form_of_standard_error_ends_the_server(form: str, log_format: str) -> None:
    with served(form, log_format) as server, honest_client(server):
        with Connection(server.port) as connection:
            for _ in range(NUM_REQUESTS):
                connection.send(HEALTH)
                assert connection.response().status == 200
                connection.send(request("GET", "/nope"))  # a line in the log
                assert connection.response().status == 404
        assert server.process.poll() is None
