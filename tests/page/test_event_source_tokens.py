"""EventSource, which can send no key, reads from a server with keys by a token in its URL."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy
from tests.page.conftest import OpenPage
from tests.page.event_source import CLOSED, Source, ids, messages
from tests.support.keyed import Keys, reload_keys
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

BLANK = "/health"
FLAGS = {"engine": "mock", "mock_interval": 0.02, "engine_arg": ["numbered=true", "length=2000"]}
# As docs/protocol.md shows it: the key stays in the two requests, and the URL has the token.
BEGIN = """async ([server, key, body]) => {
  const headers = { "Authorization": `Bearer ${key}`, "Content-Type": "application/json" };
  const answer = await fetch(`${server}/generate`, { method: "POST", headers, body });
  const id = answer.headers.get("X-Stream-ID");
  const made = await fetch(`${server}/streams/${id}/token`, { method: "POST", headers });
  const { url } = await made.json();
  return [id, server + url];
}"""


@pytest.fixture(scope="module")
def host(chromium: str) -> Iterator[RunningServer]:
    """A server that gives pages another origin; none of its streams is read."""
    with serve(engine="mock") as server:
        yield server


def body(max_tokens: int) -> str:
    return json.dumps({"prompt": "a", "max_tokens": max_tokens, "resumable": True})


async def test_a_page_of_an_admitted_origin_reads_with_a_token(
    host: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice")
    with serve(**FLAGS, keys=keys.path, cors_origin=[host.url]) as server:
        page = await open_page(host.url + BLANK)
        begun = [server.url, keys.keys["alice"], body(20)]
        stream_id, url = await page.evaluate(BEGIN, begun)
        source = await Source(page).open(url)
        told = await source.until_over()
        assert ids(told) == list(range(21))
        assert {each.origin for each in messages(told)} == {server.url}
        assert source.statuses[-2:] == [200, 204]
        await source.open(f"{server.url}/streams/{stream_id}")  # without the token
        assert [each.state for each in await source.until_over()] == [CLOSED]
        assert source.statuses[-1] == 401


async def test_a_cut_source_comes_back_with_its_token_until_the_key_is_revoked(
    chromium: str, open_page: OpenPage, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice", "bob")
    with serve(**FLAGS, keys=keys.path) as server:
        async with Proxy(server.address) as proxy:
            at = f"http://127.0.0.1:{proxy.address[1]}"
            page = await open_page(at + BLANK)
            _, url = await page.evaluate(BEGIN, [at, keys.keys["alice"], body(2000)])
            source = await Source(page).open(url)
            before = ids(await source.until_events(5))
            await proxy.drop()
            told = ids(await source.until_events(len(before) + 50))
            assert told == list(range(len(told)))
            assert 401 not in source.statuses
            del keys.keys["alice"]
            keys.write()
            reload_keys(server)
            told = ids(await source.until_over())
            assert told == list(range(len(told)))
            assert len(told) < 2000
            assert source.statuses[-1] == 401
