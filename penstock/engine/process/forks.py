"""Runs one function for each of many jobs, each in a forked process with limits of time and memory.

In: on the socket whose descriptor is the first argument, a message with a socket for each job. On
the job's socket: the job (its length, then its bytes). Out, on the job's socket: the result, then
one byte that says how the job ended. A job whose socket the other side closes is killed. Not known
here: what the function does.

The function is made once, before the first job. So a job starts within milliseconds with all that
the function has loaded, cannot spoil it, and gives back all its memory. This process has one
thread, which makes forking safe.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from setproctitle import setproctitle

from penstock.children import die_with_parent, leave_signals_to_parent

LENGTH = struct.Struct("<I")
# How a job ended, if no signal ended it.
DONE, FAILED, CRASHED, TOO_SLOW = 0, 253, 254, 255
Function = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Limits:
    """What a job may use: processor time, memory beside what the function has loaded, and time."""

    cpu_s: float
    memory_bytes: int
    wall_s: float


@dataclass
class _Job:
    socket: socket.socket
    deadline: float
    is_overdue: bool = False


class Forks:
    """The jobs under way; `control` brings the sockets of new jobs."""

    def __init__(self, control: socket.socket, function: Function, limits: Limits) -> None:
        self._control = control
        self._function = function
        self._limits = limits
        self._jobs: dict[int, _Job] = {}
        self._stderr = os.dup(2)
        # The kernel writes to this pipe when a child ends, which wakes `poll`.
        self._woken, waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)

    def run(self) -> None:
        """Run jobs until the other side closes `control`."""
        while self._wait():
            self._reap()

    def _wait(self) -> bool:
        """Wait for the next event and handle it. Return False when `control` is closed."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        for job in self._jobs.values():
            poll.register(job.socket, 0)  # reports only that the other side closed it
        now = time.monotonic()
        soonest = min((job.deadline for job in self._jobs.values()), default=None)
        events = dict(poll.poll(None if soonest is None else max(0, soonest - now) * 1000 + 1))
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        now = time.monotonic()
        for pid, job in self._jobs.items():
            if job.socket.fileno() in events or job.deadline <= now:
                job.is_overdue = job.deadline <= now
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so the id is still its own
        return self._control.fileno() not in events or self._begin()

    def _begin(self) -> bool:
        """Fork a process for the next job. Return False if there will be no more."""
        try:
            _, (descriptor, *_), _, _ = socket.recv_fds(self._control, 1, 1)
        except (ValueError, ConnectionError):
            return False
        job = socket.socket(fileno=descriptor)
        parent = os.getpid()
        if not (pid := os.fork()):
            self._be_child(job, parent)
        self._jobs[pid] = _Job(job, time.monotonic() + self._limits.wall_s)
        return True

    def _be_child(self, job: socket.socket, parent: int) -> None:
        status = FAILED
        try:
            die_with_parent(parent)
            self._control.close()
            for other in self._jobs.values():
                other.socket.close()
            data = receive(job)
            limit(self._limits)
            job.sendall(self._function(data))
            status = DONE
        except (MemoryError, RecursionError):
            status = CRASHED
        except Exception:  # a bug of the function's
            os.dup2(self._stderr, 2)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Tell the other side how each process ended that has ended."""
        for pid, job in list(self._jobs.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._jobs[pid]
            code = os.waitstatus_to_exitcode(status)
            how = TOO_SLOW if job.is_overdue else abs(code) % 256
            with job.socket, contextlib.suppress(OSError):
                job.socket.sendall(bytes((how,)))


def limit(limits: Limits) -> None:
    """Bound this process's processor time and memory. The kernel ends it beyond them."""
    for number in (signal.SIGPROF, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # an end for lack of memory writes there
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS does not enforce it
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no import here
            most = int(file.read().split()[0]) * resource.getpagesize() + limits.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def receive(job: socket.socket) -> bytes:
    """Return the bytes of a job."""
    (length,) = LENGTH.unpack(job.recv(LENGTH.size, socket.MSG_WAITALL))
    data = bytearray()
    while len(data) < length:
        if not (part := job.recv(min(length - len(data), 2**16))):
            raise ConnectionError
        data += part
    return bytes(data)


def main() -> None:
    """Run `python -m penstock.engine.process.forks FD PARENT_PID LIMITS MODULE:NAME OPTIONS`.

    `LIMITS` and `OPTIONS` are JSON. `OPTIONS` are the arguments with which the name is called to
    make the function.
    """
    descriptor, parent_pid, limits, target, options = sys.argv[1:]
    die_with_parent(int(parent_pid))
    setproctitle("penstock: compiler")
    leave_signals_to_parent()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)(**json.loads(options))
    gc.collect()
    gc.freeze()  # otherwise a collection in a child copies the pages
    control = socket.socket(fileno=int(descriptor))
    Forks(control, function, Limits(**json.loads(limits))).run()
    os._exit(0)  # the kernel kills the children


if __name__ == "__main__":
    main()
