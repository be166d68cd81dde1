"""Keeps the long-lived tasks of this process running.

In: a task's name and its coroutine function. Out: a task that starts it again whenever it fails.
Every failure is logged and counted in `failures`. A task that fails `MAX_FAILURES` times in a row
cannot be helped: then the log gets the reason and the process ends with `EXIT_STATUS`, so that the
service manager starts it afresh. Not known here: what the tasks do.
"""

import asyncio
import collections
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

# The wait before each start, by the number of failures in a row.
DELAYS_S = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)
# A failure after so long a run is the first of a row.
CALM_S = 60.0
MAX_FAILURES = 10
EXIT_STATUS = 70  # EX_SOFTWARE in sysexits.h

failures: collections.Counter[str] = collections.Counter()
"""How often each task of this process has failed, by its name; 0 for a task that never has."""


def keep(
    name: str, run: Callable[[], Coroutine[Any, Any, None]], *, is_essential: bool = True
) -> asyncio.Task[None]:
    """Start a task that runs `run` until it returns, again whenever it raises.

    Cancel the task to end it. The server goes on without a task that is not `is_essential`: it is
    started again for ever.
    """
    failures[name] += 0
    return asyncio.create_task(_run_again(name, run, is_essential), name=name)


async def _run_again(
    name: str, run: Callable[[], Coroutine[Any, Any, None]], is_essential: bool
) -> None:
    num_in_a_row = 0
    while True:
        began = time.monotonic()
        try:
            await run()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            cause: BaseException = error  # something that `run` awaited was cancelled
        except Exception as error:
            cause = error
        else:
            return
        num_in_a_row = 1 if time.monotonic() - began > CALM_S else num_in_a_row + 1
        failures[name] += 1
        log.error("the task '%s' failed; it starts again", name, exc_info=cause)
        if is_essential and num_in_a_row >= MAX_FAILURES:
            end_process(f"the task '{name}' failed {num_in_a_row} times in a row")
        await asyncio.sleep(DELAYS_S[min(num_in_a_row, len(DELAYS_S)) - 1])


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_process(reason: str) -> None:
    """Log the reason, wait until the log is written, and end the process with `EXIT_STATUS`."""
    log.critical("%s; the process ends", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_STATUS)
