"""The server that the tests of a module share, once for each end."""

from collections.abc import Iterator

import pytest

from tests.wire.ends import NAMES, End, serve_end


@pytest.fixture(scope="module", params=NAMES)
def end(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[End]:
    """A server with the mock engine; at the end of the module it still answers."""
    with serve_end(request.param, tmp_path_factory.mktemp("tls")) as end:
        yield end
        assert "Traceback" not in "".join(end.server.output)
