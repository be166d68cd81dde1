"""The JavaScript client in a page of another origin: cuts, a killed engine, keys, stops."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route

from tests.faults.proxy import Faults, Proxy, cut
from tests.javascript.programs import HERE, Told, asked
from tests.page.conftest import OpenPage
from tests.page.test_event_source_origins import elsewhere
from tests.support.keyed import Keys
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LONG = 300
"""Tokens that take 6 seconds: on a busy machine, too, the engine is killed in the midst of them."""
READ = """async ([url, asked]) => {
  const client = await import(`${url}/page/client/index.js`);
  const { read } = await import("/reader.js");
  await read(client, asked, (told) => window.tell(JSON.stringify(told)));
}"""


class Reading:
    """A page of another origin that reads an answer."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.told = Told()
        self._more = asyncio.Event()

    async def prepare(self) -> None:
        await self._page.expose_function("tell", self._hear)

    def _hear(self, line: str) -> None:
        self.told.everything.append(tuple(json.loads(line)))
        self._more.set()

    async def run(self, url: str, what: dict[str, Any]) -> None:
        await self._page.evaluate(READ, [url, what])

    async def until_deltas(self, count: int) -> None:
        while len(self.told.of("delta")) < count:
            self._more.clear()
            await self._more.wait()


async def reading(open_page: OpenPage, host: RunningServer) -> Reading:
    page = await open_page(f"{elsewhere(host)}/health")

    async def reader(route: Route) -> None:
        code = (HERE / "reader.js").read_text(encoding="utf-8")
        await route.fulfill(body=code, content_type="text/javascript")

    await page.route("**/reader.js", reader)
    made = Reading(page)
    await made.prepare()
    return made


@pytest.fixture(scope="module")
def admitting(server: RunningServer) -> Iterator[RunningServer]:
    """Serve known answers to pages of another origin, that of `server`."""
    origins = [elsewhere(server)]
    arguments = ["numbered=true", "length=2000"]
    with serve(
        engine="mock", mock_interval=0.01, engine_arg=arguments, cors_origin=origins
    ) as other:
        yield other


def numbered(word: str, count: int) -> str:
    return "".join(f"{word}:{number} " for number in range(count))


async def test_cuts_and_a_killed_engine_lose_and_repeat_nothing(
    server: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys.toml", "page")
    flags: dict[str, Any] = {"cors_origin": [elsewhere(server)], "keys": keys.path}
    arguments = ["numbered=true", f"length={LONG}"]
    with serve(engine="mock", mock_interval=0.02, engine_arg=arguments, **flags) as keyed:
        async with Proxy(keyed.address) as proxy:
            url = f"http://127.0.0.1:{proxy.address[1]}"
            page = await reading(open_page, server)
            request = {"prompt": "Cut", "max_tokens": LONG}
            what = asked(url, "stream", request, key=keys.keys["page"])
            run = asyncio.ensure_future(page.run(url, what))
            await page.until_deltas(5)
            os.kill(keyed.engine_pid(), signal.SIGKILL)
            await page.until_deltas(20)
            proxy.faults_of = lambda chance: Faults(down=[cut(chance.randint(2000, 4000))])
            await proxy.drop()
            await run
        refused = await reading(open_page, server)
        await refused.run(keyed.url, asked(keyed.url, key="wrong"))
    assert page.told.text == page.told.end["text"] == numbered("Cut", LONG)
    assert page.told.end["numResumes"] >= 2
    assert page.told.names[:3] == ["begin", "cut", "resume"]
    error = refused.told.error
    assert (error["name"], error["status"], error["code"]) == (
        *("RefusedError", 401),
        "invalid_api_key",
    )
    assert error["requestId"]


async def test_a_stream_that_a_page_leaves_ends(
    server: RunningServer, open_page: OpenPage, admitting: RunningServer
) -> None:
    for how, name in (("cancel", "end"), ("break", "end"), ("abort", "error")):
        page = await reading(open_page, server)
        request = {"prompt": "Left", "max_tokens": 2000}
        what = asked(admitting.url, "stream", request, stops={2: how})
        await page.run(admitting.url, what)
        assert page.told.names == ["begin", name]
        again = await reading(open_page, server)
        await again.run(admitting.url, asked(admitting.url, "resume", page.told.of("begin")[0]))
        assert again.told.end["finishReason"] == "cancelled"
