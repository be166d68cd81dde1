"""The locks by which replicas of one folder see who is alive."""

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from penstock.store.sqlite.folder import HeldLock, OthersLock

NUM_THREADS = 4
NUM_ROUNDS = 300


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Let Python change between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_hasty_threads")
def test_threads_that_look_at_once_close_the_file_of_a_lock_once(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    HeldLock(path).release()
    errors: list[OSError] = []
    held: list[bool] = []
    start = threading.Barrier(NUM_THREADS)

    def look(locks: list[OthersLock]) -> None:
        for lock in locks:
            start.wait()
            try:
                held.append(lock.is_held())
                lock.close()
            except OSError as error:
                errors.append(error)

    locks = [OthersLock(path) for _ in range(NUM_ROUNDS)]
    gc.collect()  # so that nothing of other tests closes its files meanwhile
    num_open = psutil.Process().num_fds()
    threads = [threading.Thread(target=look, args=(locks,)) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert held == [False] * NUM_ROUNDS * NUM_THREADS
    assert psutil.Process().num_fds() == num_open
