"""The stage on the page: a person breaks things, and no word is lost."""

import asyncio
import re
from collections.abc import Iterator
from functools import partial

import psutil
import pytest
from playwright.async_api import Locator, Page, expect

from tests.page.chat_steps import answers, send, state_is, status
from tests.page.conftest import OpenPage
from tests.page.test_chat import numbers, until_tokens
from tests.support.hurried import ENGINE, Hurry
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LENGTH = 1000
FROZEN_S = 12
# Notes each status with the state of the page: a restart may be over before a test looks.
NOTE = """() => {
  const [said, { dataset }] = [document.getElementById("status"), document.body];
  window.noted = [];
  new MutationObserver(() => window.noted.push(`${dataset.state}: ${said.textContent}`))
    .observe(document.body, { attributes: true, subtree: true, childList: true,
      characterData: true });
}"""


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Hurry:
    return Hurry(tmp_path_factory.mktemp("hurry") / "hurry")


@pytest.fixture(scope="module")
def demo(chromium: str, hurry: Hurry) -> Iterator[RunningServer]:
    """Serve a demonstration, 50 tokens per second until a test is in a hurry."""
    arguments = [hurry.argument, "interval=0.02", "numbered=true", f"length={LENGTH}"]
    with serve("--demo", engine=ENGINE, engine_timeout=FROZEN_S, engine_arg=arguments) as server:
        yield server


@pytest.fixture(autouse=True)
def slow(hurry: Hurry) -> Iterator[None]:
    with hurry.over():
        yield


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name="Break it").get_by_role("button", name=name)


async def begun(page: Page) -> None:
    """Open the stage, and ask for an answer."""
    await page.get_by_role("button", name="Break it").click()
    await send(page, "Hi")
    await until_tokens(page, 10)


async def is_whole(page: Page, hurry: Hurry) -> None:
    hurry.now()
    await state_is(page, "finished")
    await expect(answers(page).last).to_have_text(numbers("Hi", LENGTH))


async def test_a_killed_engine_is_seen_and_survived(
    demo: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(demo.url)
    await begun(page)
    before = demo.engine_pid()
    await page.evaluate(NOTE)
    await button(page, "Kill the engine").click()
    await status(page).to_have_text("Streaming… The engine was restarted once.")
    noted = "\n".join(await page.evaluate("window.noted"))
    assert re.search(r"^resuming: The engine died and is restarting… [1-9]\d+ tok", noted, re.M)
    await is_whole(page, hurry)
    await status(page).to_have_text("Finished. The engine was restarted once.")
    assert not psutil.pid_exists(before)


async def test_a_frozen_engine_is_waited_for_and_may_be_thawed(
    demo: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(demo.url)
    await begun(page)
    engine = psutil.Process(demo.engine_pid())
    await button(page, "Freeze the engine").click()
    stopped = partial(eventually, lambda: engine.status() == psutil.STATUS_STOPPED)
    assert await asyncio.to_thread(stopped)
    await status(page).to_have_text(
        re.compile(
            rf"^The engine has been silent for \d s\. It is restarted after {FROZEN_S} s\. \d+ tok"
        )
    )
    await button(page, "Thaw it").click()
    await status(page).to_have_text("Streaming…")
    await is_whole(page, hurry)
    assert demo.engine_pid() == engine.pid


async def test_a_cut_connection_is_resumed(
    demo: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(demo.url)
    await begun(page)
    await button(page, "Cut my connection").click()
    await status(page).to_have_text("Streaming… Resumed once.")
    await is_whole(page, hurry)


async def test_a_page_that_reads_slowly_keeps_nobody_waiting(
    demo: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(demo.url)
    await begun(page)
    slow = button(page, "Read slowly")
    await slow.click()
    await expect(slow).to_have_attribute("aria-pressed", "true")
    await status(page).to_have_text(re.compile("The engine does not wait for it"))
    # The engine is done with the answer while the page still reads it.
    hurry.now()
    idle = partial(scrape_until, demo, lambda scrape: scrape("penstock_streams_running") == 0)
    await asyncio.to_thread(idle)
    assert len((await answers(page).last.text_content() or "").split()) < LENGTH
    await slow.click()
    await is_whole(page, hurry)


async def test_without_an_answer_there_is_nothing_to_cut(
    demo: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(demo.url)
    await page.get_by_role("button", name="Break it").click()
    await button(page, "Cut my connection").click()
    await status(page).to_have_text(re.compile("^There is no running answer"))


async def test_a_server_that_is_no_demonstration_shows_no_stage(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(server.url)
    await expect(page.locator("#server")).to_have_text("mock · ready")
    await expect(page.get_by_role("button", name="Break it")).to_be_hidden()
