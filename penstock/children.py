"""Child processes: a child ends with its parent and leaves signals to it; its end has a name."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends for any reason.

    Linux only. On other systems this process ends when it notices that the socket is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the call above
        os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and SIGTERM: the parent decides when this process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def manner_of(status: int | None) -> str:
    """Name an exit status as Python gives it; None for a process that has not ended."""
    if status is None:
        return "it does not talk any more"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal, or one that this Python does not know
        return f"signal {-status}"
