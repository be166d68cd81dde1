"""fetch-event-source, which sends its POST again after a cut, continues its stream (npm, 2.0.1)."""

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route

from tests.docs.pages import ROOT, blocks_of
from tests.faults.proxy import CutError, Fault, Faults, FaultsOf, Proxy, Push, cut
from tests.page.conftest import OpenPage
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(120),
]

PACKAGE = "@microsoft/fetch-event-source"
NO_NPM = "no npm found: install it (Debian, Ubuntu: apt-get install npm)"
LENGTH = 60
END_OF_EVENT = b"\n\n"
PLAIN = """
  const { fetchEventSource } = await import("/library/index");
  let isFinished = false;
  await fetchEventSource("/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: "Once upon a time", max_tokens: 20, resumable: true }),
    openWhenHidden: true,
    onmessage({ data }) {
      const { token, finished } = JSON.parse(data);
      isFinished = finished;
      if (!finished) document.body.append(token);
    },
    onclose() {
      if (!isFinished) throw new Error("The connection was cut.");
    },
  });
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package; return the folder of its modules for browsers."""
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("PENSTOCK_REQUIRE_NPM") == "1":
            pytest.fail(NO_NPM)
        pytest.skip(NO_NPM)
    folder = tmp_path_factory.mktemp("npm")
    quiet = ["--no-audit", "--no-fund", "--silent"]
    subprocess.run([npm, "install", "--prefix", folder, *quiet, f"{PACKAGE}@2.0.1"], check=True)
    return folder / "node_modules" / PACKAGE / "lib" / "esm"


@pytest.fixture(scope="module")
def numbered(chromium: str) -> Iterator[RunningServer]:
    """Serve answers in which every token is different."""
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve(engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
        yield server


class Visit:
    """A page on the proxy's origin that has the library, and the POSTs that it has sent."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.posts: list[dict[str, str]] = []
        page.on("request", lambda request: self._note(request.method, request.headers))

    def _note(self, method: str, headers: dict[str, str]) -> None:
        if method == "POST":
            self.posts.append(headers)

    async def text(self) -> str:
        """Return the text that the page shows."""
        return str(await self.page.evaluate("document.body.textContent"))

    async def run(self, code: str, **fields: Any) -> str:
        """Run code of the page that fills the body; return the text in it."""
        await self.page.evaluate("document.body.replaceChildren()")
        asked = json.dumps({"prompt": "lake says", "max_tokens": LENGTH, **fields})
        code, count = re.subn(r"JSON\.stringify\(\{.*?\}\)", lambda _: f"'{asked}'", code)
        assert count == 1
        await self.page.evaluate(f"async () => {{ {code} }}")
        return await self.text()


async def visit(open_page: OpenPage, proxy: Proxy, library: Path) -> Visit:
    page = await open_page(f"http://127.0.0.1:{proxy.address[1]}/health")

    async def module(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        code = (library / f"{name}.js").read_text(encoding="utf-8")
        await route.fulfill(body=code, content_type="text/javascript")

    await page.route("**/library/*", module)
    return Visit(page)


def recipe() -> str:
    """Return the code of docs/protocol.md, with the library where the test has it."""
    page = ROOT / "docs" / "protocol.md"
    (block,) = [block for block in blocks_of(page) if PACKAGE in block.code]
    code = block.code.replace("import {", "const {").replace(
        f'from "{PACKAGE}"', '= await import("/library/index")'
    )
    assert "import {" not in code
    return code


def num_started(server: RunningServer) -> float:
    return Scrape(server)("penstock_streams_started_total")


def numbered_text() -> str:
    return "".join(f"lake:{number} " for number in range(LENGTH))


def cut_after_events(count: int) -> Fault:
    """End the connection after so many events, never within an event."""

    def link(push: Push) -> Push:
        body = b""

        async def cutting(data: bytes) -> None:
            nonlocal body
            passed = len(body)
            body += data
            pieces = body.split(END_OF_EVENT)
            if len(pieces) <= count:
                await push(data)
                return
            end = len(END_OF_EVENT.join(pieces[:count]) + END_OF_EVENT)
            await push(body[passed:end])
            raise CutError("FIN")

        return cutting

    return link


def faults_in_turn(*down: Fault) -> FaultsOf:
    """Choose a fault for the answers of each connection with a POST, none after the last of them.

    The browser may have other connections: for its icon, or one that it opens and does not need.
    """
    left = iter(down)

    def faults_of(_: random.Random) -> Faults:
        has_post = False

        def watch(push: Push) -> Push:
            async def watching(data: bytes) -> None:
                nonlocal has_post
                has_post = has_post or data.startswith(b"POST ")
                await push(data)

            return watching

        def fault(push: Push) -> Push:
            chosen: Push | None = None

            async def passing(data: bytes) -> None:
                nonlocal chosen
                if chosen is None and has_post:
                    given = next(left, None)
                    chosen = push if given is None else given(push)
                await (chosen or push)(data)

            return passing

        return Faults(up=[watch], down=[fault])

    return faults_of


async def test_cuts_between_events_lose_and_repeat_nothing(
    numbered: RunningServer, open_page: OpenPage, library: Path
) -> None:
    async with Proxy(numbered.address) as proxy:
        visited = await visit(open_page, proxy, library)
        started = num_started(numbered)
        proxy.faults_of = faults_in_turn(cut_after_events(8), cut_after_events(17))
        await proxy.drop()  # a connection that is kept alive would have no faults
        text = await visited.run(PLAIN, resumable=True)
    assert text == numbered_text()
    assert num_started(numbered) == started + 1
    assert ["last-event-id" in headers for headers in visited.posts] == [False, True, True]


async def test_the_recipe_loses_and_repeats_nothing_wherever_the_cut_is(
    numbered: RunningServer, open_page: OpenPage, library: Path
) -> None:
    """Also before the first event, and within an event."""
    code = recipe()
    for seed in range(3):
        chance = random.Random(seed)
        async with Proxy(numbered.address) as proxy:
            visited = await visit(open_page, proxy, library)
            cuts = chance.randrange(1, 600), chance.randrange(600, 3000)
            started = num_started(numbered)
            proxy.faults_of = faults_in_turn(*map(cut, cuts))
            await proxy.drop()  # a connection that is kept alive would have no faults
            text = await visited.run(code, resumable=True)
            assert text == numbered_text(), f"with seed {seed}"
            assert num_started(numbered) == started + 1
            assert len(visited.posts) >= 2
