"""Calls a function in processes with limits of time and memory (see `forks`).

In: the function's name, and jobs as bytes. Out: results as bytes, or an error that says whether the
job or the machine is at fault. Results are kept. Not known here: what the function does.
"""

import asyncio
import collections
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from penstock.engine.process.forks import CRASHED, DONE, FAILED, LENGTH, TOO_SLOW, Limits

MAX_AT_ONCE = 4
"""How many jobs run at once; the others wait in order."""
# Threads would make forking unsafe, and would count towards a job's memory.
FEW_THREADS = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MAX_KEPT = 512
MAX_KEPT_BYTES = 16 * 2**20
# Somebody else ended the process, not its limits.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class BeyondBoundsError(Exception):
    """The job needs more time or memory than it may have."""


class JobLostError(Exception):
    """The job's process ended through no fault of the job, or the machine is too busy."""


class BoundedFunction:
    """The function that `target` ("module:name") makes when it is called with `options`.

    The function's process starts with the first call, or with `start`. Both belong to the main
    thread, because Linux kills the process with the thread that started it.
    """

    def __init__(self, target: str, limits: Limits, **options: Any) -> None:
        self._arguments = json.dumps(asdict(limits)), target, json.dumps(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._turn = asyncio.Semaphore(MAX_AT_ONCE)
        self._kept = _Kept()

    async def __call__(self, job: bytes) -> bytes:
        """Return the result of a job. Raises BeyondBoundsError or JobLostError.

        If the caller is cancelled, the job's process is killed.
        """
        key = hashlib.sha256(job).digest()
        found = self._kept.find(key)
        if found is None:
            async with self._turn:
                found = await self._run(job)
            self._kept.keep(key, found)
        how, result = found[-1], found[:-1]
        if how != DONE:
            raise BeyondBoundsError
        return result

    def start(self) -> None:
        """Start the function's process, so that the first call need not wait for that."""
        self._started()

    def stop(self) -> None:
        """End the function's process, and with it every job."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _run(self, job: bytes) -> bytes:
        """Return the result and how the job ended. Raises JobLostError."""
        for _ in range(2):  # a job whose process somebody ends is run once more
            try:
                answer = await self._ask(job)
            except ConnectionError:
                continue
            if answer and answer[-1] in (TOO_SLOW, FAILED):
                break
            if answer and answer[-1] not in _FROM_OUTSIDE:
                return answer if answer[-1] == DONE else bytes((CRASHED,))
        raise JobLostError

    async def _ask(self, job: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._started(), [b"\0"], [theirs.fileno()])
            except OSError:
                ours.close()
                self.stop()
                raise ConnectionError from None
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            writer.write(LENGTH.pack(len(job)) + job)
            return await reader.read()
        finally:
            writer.transport.abort()

    def _started(self) -> socket.socket:
        """Return the socket for jobs, after starting the function's process if there is none."""
        if self._control is not None and self._process is not None:
            if self._process.poll() is None:
                return self._control
            self.stop()
        self._control, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - no outside input
                [
                    *(sys.executable, "-m", "penstock.engine.process.forks"),
                    *(str(descriptor), str(os.getpid()), *self._arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                env={**os.environ, **FEW_THREADS},
            )
        return self._control


class _Kept:
    """The latest results, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._results: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._num_bytes = 0

    def find(self, key: bytes) -> bytes | None:
        with contextlib.suppress(KeyError):
            self._results.move_to_end(key)
        return self._results.get(key)

    def keep(self, key: bytes, result: bytes) -> None:
        self._drop(key)
        self._results[key] = result
        self._num_bytes += len(result)
        while len(self._results) > MAX_KEPT or self._num_bytes > MAX_KEPT_BYTES:
            self._drop(next(iter(self._results)))

    def _drop(self, key: bytes) -> None:
        self._num_bytes -= len(self._results.pop(key, b""))
