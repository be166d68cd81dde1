"""Waiting for a condition that no event announces."""

import time
from collections.abc import Callable

PATIENCE_S = 30.0
SOON_S = 10.0
POLL_S = 0.01


def eventually(is_so: Callable[[], bool], within: float = PATIENCE_S) -> bool:
    """Return True as soon as `is_so` does, or False after `within` seconds."""
    deadline = time.monotonic() + within
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def soon(is_so: Callable[[], bool]) -> bool:
    """Return True if `is_so` comes true within 10 s: milliseconds, if the machine is not busy."""
    return eventually(is_so, SOON_S)
