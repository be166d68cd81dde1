"""Real upstreams for tests of the remote engine."""

import atexit
import contextlib
import functools

from tests.support.servers import serve


@functools.cache
def shared_upstream() -> str:
    """Return the URL of a Penstock with the built-in model, which runs until this process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serve(slots=8, max_queue=4096)).url
