"""The files of the pages over a socket: compressed for those who take it, and the same bytes."""

import gzip
from collections.abc import Iterator

import pytest

from tests.support.raw import ask, request
from tests.support.servers import RunningServer, serve

PATH = "/page/base.css"


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningServer]:
    with serve(engine="mock") as server:
        yield server


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, gzip;q=0.8", True),
        ("gzip;q=0", False),
        ("br, gzip ; q=0.000, deflate", False),
        ("br", False),
        ("xgzip", False),
        ("", False),
    ],
)
def test_a_file_is_compressed_for_who_takes_it(
    plain: RunningServer, accepted: str, is_compressed: bool
) -> None:
    whole = ask(plain.port, request("GET", PATH))
    answer = ask(plain.port, request("GET", PATH, f"Accept-Encoding: {accepted}"))
    assert ("content-encoding" in answer.headers) == is_compressed
    assert "Accept-Encoding" in answer.headers["vary"]
    body = gzip.decompress(answer.body) if is_compressed else answer.body
    assert body == whole.body
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
