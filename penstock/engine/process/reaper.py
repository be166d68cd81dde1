"""Ends a process group, and what it leaves behind, when its leader is gone, however that came.

For engines that start processes of their own. The kernel ends the engine's process with the
server's (see `worker`), but what that had started would live on and hold the model's memory; and
processes that are killed leave files and shared memory. So two small processes outside the group
wait for its end: this file as a program, which kills the group and removes a folder, and Python's
own tracker of shared memory.
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


def end_with_me(folder: str) -> None:
    """From now on, whatever ends this process, which leads its group, ends the whole group and
    removes `folder` and the shared memory that processes of the group have made."""
    if os.getpgrp() != os.getpid():
        return  # the group's leader has not asked for this
    _start(["-S", __file__, str(os.getpid()), folder])
    # Python starts the tracker inside the group, where it is killed before it can do its work.
    reading, writing = os.pipe()
    tracker: Any = resource_tracker._resource_tracker
    tracker._pid = _start(
        ["-c", f"from multiprocessing.resource_tracker import main; main({reading})"], reading
    )
    tracker._fd = writing
    os.close(reading)


def _start(arguments: list[str], *descriptors: int) -> int:
    return subprocess.Popen(  # noqa: S603 - nobody's input
        [sys.executable, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=descriptors,
    ).pid


def wait_for_end(leader: int) -> None:
    """Return when the parent, `leader`, has ended."""
    with contextlib.suppress(AttributeError, OSError):  # not on macOS, nor on kernels before 5.3
        descriptor = os.pidfd_open(leader)
        if os.getppid() == leader:
            select.select([descriptor], [], [])
    while os.getppid() == leader:
        time.sleep(POLL_S)


def main() -> None:
    """`python group.py LEADER FOLDER`, as a child of the leader."""
    leader, folder = int(sys.argv[1]), sys.argv[2]
    wait_for_end(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
