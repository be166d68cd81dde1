"""EventSource across origins: `--cors-origin` decides; and from a worker, and over TLS."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from playwright.async_api import Page

from tests.page.conftest import OpenPage
from tests.page.event_source import CLOSED, Source, begin, ids
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

BLANK = "/health"


def elsewhere(server: RunningServer) -> str:
    """Return the server's URL under another name, which is another origin."""
    return server.url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def host(chromium: str) -> Iterator[RunningServer]:
    """A server that gives pages an origin; none of its streams is read."""
    with serve(engine="mock") as server:
        yield server


def admitting(*origins: str) -> dict[str, object]:
    return {"engine": "mock", "mock_interval": 0.02, "cors_origin": list(origins)}


async def page_of(open_page: OpenPage, server: RunningServer) -> Page:
    return await open_page(elsewhere(server) + BLANK)


async def test_another_origin_s_page_gets_nothing(host: RunningServer, open_page: OpenPage) -> None:
    with serve(**admitting()) as server:
        source = Source(await page_of(open_page, host))
        await source.open(server.url + begin(server, max_tokens=3))
        told = await source.until_over()
    assert [(each.type, each.state) for each in told] == [("error", CLOSED)]


@pytest.mark.parametrize("is_any", [False, True])
async def test_an_admitted_page_reads_and_comes_back(
    host: RunningServer, open_page: OpenPage, is_any: bool
) -> None:
    """The request that comes back with Last-Event-ID has no preflight."""
    with serve(**admitting("*" if is_any else elsewhere(host))) as server:
        page = await page_of(open_page, host)
        methods: list[str] = []
        page.on("request", lambda request: methods.append(request.method))
        source = Source(page)
        await source.open(server.url + begin(server, max_tokens=5))
        told = await source.until_over()
    assert ids(told) == list(range(6))
    assert {each.origin for each in told if each.type == "message"} == {server.url}
    assert source.statuses == [200, 204]
    assert methods == ["GET", "GET"]


async def test_a_page_that_is_not_the_admitted_one_gets_nothing(
    host: RunningServer, open_page: OpenPage
) -> None:
    with serve(**admitting("http://localhost:1")) as server:
        source = Source(await page_of(open_page, host))
        await source.open(server.url + begin(server, max_tokens=3))
        told = await source.until_over()
    assert [(each.type, each.state) for each in told] == [("error", CLOSED)]


async def test_credentials_are_not_shared_across_origins(
    host: RunningServer, open_page: OpenPage
) -> None:
    """The server uses no cookies, so it does not let a page send any."""
    with serve(**admitting(elsewhere(host))) as server:
        source = Source(await page_of(open_page, host))
        url = server.url + begin(server, max_tokens=3)
        await source.open(url, withCredentials=True)
        told = await source.until_over()
    assert [(each.type, each.state) for each in told] == [("error", CLOSED)]


READ_IN_WORKER = """(url) => new Promise((resolve) => {
  const code = `const ids = [];
    const source = new EventSource(${JSON.stringify(location.origin + url)});
    source.onmessage = ({ lastEventId }) => ids.push(Number(lastEventId.split(".")[1]));
    source.onerror = () => { if (source.readyState === 2) postMessage(ids); };`;
  const worker = new Worker(URL.createObjectURL(new Blob([code])));
  worker.onmessage = ({ data }) => resolve(data);
})"""


async def test_a_worker_reads_a_stream(open_page: OpenPage, chromium: str) -> None:
    with serve(engine="mock", mock_interval=0.01) as server:
        page = await open_page(server.url + BLANK)
        assert await page.evaluate(READ_IN_WORKER, begin(server, max_tokens=5)) == list(range(6))


BEGIN = """async (body) => {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch("/generate", { method: "POST", headers, body });
  return "/streams/" + answer.headers.get("X-Stream-ID");
}"""


async def test_a_stream_over_tls(chromium: str, open_page: OpenPage, tmp_path: Path) -> None:
    """The browser chooses HTTP/2."""
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    with serve(engine="mock", mock_interval=0.01, tls_cert=certificate, tls_key=key) as server:
        page = await open_page(server.url + BLANK, ignore_https_errors=True)
        body = json.dumps({"prompt": "a", "max_tokens": 5, "resumable": True})
        source = await Source(page).open(await page.evaluate(BEGIN, body))
        assert ids(await source.until_over()) == list(range(6))
        assert source.statuses == [200, 204]
        protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert await page.evaluate(protocol) == "h2"
