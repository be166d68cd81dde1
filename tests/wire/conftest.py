"""The server that the tests of a module share, once for each end."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wire.ends import NAMES, End, serve_end


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    """The server's flags, which a module may choose for itself."""
    return {}


@pytest.fixture(scope="module", params=NAMES)
def end(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    flags: dict[str, Any],
) -> Iterator[End]:
    """A server with the mock engine and short timeouts, at each of the two ends."""
    with serve_end(request.param, tmp_path_factory.mktemp("tls"), **flags) as end:
        yield end
        assert "Traceback" not in "".join(end.server.output)
