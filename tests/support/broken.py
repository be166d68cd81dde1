"""A server with a bug in one of its long-lived tasks.

BROKEN=liveness python -m tests.support.broken serve ...      fails twice
BROKEN=http python -m tests.support.broken serve ...          its HTTP server ends
"""

import asyncio
import os
import sys

from penstock.cli.main import main
from penstock.web.http1.server import Http1Server
from penstock.web.liveness import Liveness

run = Liveness.run
num_runs = 0


async def fail_twice(self: Liveness) -> None:
    """Run as it should from the third time on."""
    global num_runs
    num_runs += 1
    if num_runs <= 2:
        raise LookupError("a bug")
    await run(self)


async def end_soon(self: Http1Server, stop: asyncio.Event) -> None:
    """Serve nothing, and end."""
    await asyncio.sleep(1)
    raise LookupError("a bug")


if __name__ == "__main__":
    if os.environ["BROKEN"] == "liveness":
        Liveness.run = fail_twice  # type: ignore[method-assign] # that is the bug
    else:
        Http1Server.serve_until = end_soon  # type: ignore[method-assign] # that is the bug
    sys.argv[0] = "penstock"
    main()
