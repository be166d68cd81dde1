"""The servers that the tests share: one for each end and each set of flags."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.wire.ends import NAMES, End, serve_end

Ends = Callable[[str, dict[str, Any]], End]


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """Return a function that starts a server, or returns the one that has these flags already."""
    started: dict[tuple[str, str], End] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str, flags: dict[str, Any]) -> End:
            key = name, repr(flags)
            if key not in started:
                folder = tmp_path_factory.mktemp("tls")
                started[key] = stack.enter_context(serve_end(name, folder, **flags))
            return started[key]

        yield start
    for end in started.values():
        assert "Traceback" not in "".join(end.server.output)


@pytest.fixture(scope="module")
def flags() -> dict[str, Any]:
    """The server's flags, which a module may choose for itself."""
    return {}


@pytest.fixture(scope="module", params=NAMES)
def end(request: pytest.FixtureRequest, ends: Ends, flags: dict[str, Any]) -> End:
    """A server with the mock engine and short timeouts, at each of the two ends."""
    return ends(request.param, flags)
