"""HTTP/2, over TLS and without: odd and malformed requests, each with its outcome."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.http2 import Http2
from tests.wire.cases.http2 import AUTHORITY, CASES, METHOD, PATH, SCHEME, Case
from tests.wire.ends import End, serve_end

NAMED = {case.name: case for case in CASES}
GOOD = [METHOD, PATH, SCHEME, AUTHORITY]


@pytest.fixture(scope="module", params=["TLS", "h2c"])
def end(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[End]:
    folder = tmp_path_factory.mktemp("tls")
    arguments = ["--http2"] if request.param == "h2c" else []
    name = "own" if request.param == "h2c" else "granian"
    # All cases run at once, which may take longer than a head may take in `short`.
    with serve_end(name, folder, *arguments, protocol="h2", module="penstock") as end:
        yield end
        assert "Traceback" not in "".join(end.server.output)


async def outcome_of(case: Case, end: End) -> str:
    async with end.connect() as wire:
        client = Http2(wire)
        if case.trailers is not None:
            client.begin(1, case.headers, case.body or b"")
            client.send_trailers(1, case.trailers)
        else:
            client.ask(1, case.headers, body=case.body)
        outcome = await client.outcome(1)
        if client.is_over:
            return outcome
        client.ask(3, GOOD)
        following = await client.outcome(3)
        assert following in ("200", "over")
        return f"{outcome} next" if following == "200" else outcome


async def outcomes_of(end: End) -> dict[str, str]:
    async def outcome(case: Case) -> str:
        try:
            return await outcome_of(case, end)
        except Exception as error:  # the others go on
            return f"{type(error).__name__}: {error}"

    return dict(zip(NAMED, await asyncio.gather(*map(outcome, CASES)), strict=True))


@pytest.fixture(scope="module")
def outcomes(end: End) -> dict[str, str]:
    """The outcome of every case."""
    return asyncio.run(outcomes_of(end))


@pytest.mark.parametrize("name", NAMED)
def test_a_request_has_its_outcome(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] in NAMED[name].right
