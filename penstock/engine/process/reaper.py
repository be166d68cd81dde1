"""Kills a process group and removes its files when the group's leader ends for any reason.

Engines that start processes of their own need this. The kernel kills the engine's process when the
server ends (see `worker`), but not the processes that the engine has started: they would keep the
model's memory. Killed processes also leave files and shared memory behind. So two small processes
outside the group wait for the leader's end: this file as a program, which kills the group and
removes a folder, and Python's own tracker of shared memory.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from typing import Any

POLL_S = 0.2


def kill_group_at_exit(folder: str) -> None:
    """Kill this process's group as soon as this process ends for any reason.

    Also removes `folder` and the shared memory that processes of the group have made. Does nothing
    unless this process leads its group.
    """
    if os.getpgrp() != os.getpid():
        return
    _start(["-S", __file__, str(os.getpid()), folder])
    # Python starts its tracker inside the group, where it is killed before it removes anything.
    reading, writing = os.pipe()
    tracker: Any = resource_tracker._resource_tracker
    tracker._pid = _start(
        ["-c", f"from multiprocessing.resource_tracker import main; main({reading})"], reading
    )
    tracker._fd = writing
    os.close(reading)


def _start(arguments: list[str], *descriptors: int) -> int:
    return subprocess.Popen(  # noqa: S603 - no outside input
        [sys.executable, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=descriptors,
    ).pid


def wait_for_end(leader: int) -> None:
    """Wait until the parent process, `leader`, has ended."""
    with contextlib.suppress(AttributeError, OSError):  # missing on macOS and on Linux before 5.3
        descriptor = os.pidfd_open(leader)
        if os.getppid() == leader:
            select.select([descriptor], [], [])
    while os.getppid() == leader:
        time.sleep(POLL_S)


def main() -> None:
    """Run `python reaper.py LEADER FOLDER`, as a child of the leader."""
    leader, folder = int(sys.argv[1]), sys.argv[2]
    wait_for_end(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
