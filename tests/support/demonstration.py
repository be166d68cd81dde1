"""A server that lets its page break things: `--demo`, with the mock engine."""

from contextlib import AbstractContextManager

from tests.support.servers import RunningServer, serve


def demonstration(length: int) -> AbstractContextManager[RunningServer]:
    """Serve answers of `length` numbered tokens, 50 per second.

    A frozen engine is restarted after 3 seconds.
    """
    return serve(
        "--demo",
        engine="mock",
        mock_interval=0.02,
        engine_timeout=3,
        engine_arg=["numbered=true", f"length={length}"],
    )
