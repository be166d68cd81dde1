"""A real Chromium for the page: one per worker process, a fresh context per test.

The browser is the machine's own (Debian's package `chromium`; any Chrome named in
PENSTOCK_CHROMIUM). Without one the tests skip and say what to install; with
PENSTOCK_REQUIRE_BROWSER=1, as in CI, they fail instead.

Playwright's async API, because its sync one leaves a running event loop behind, and every other
asyncio test of the same worker would fail. All of these tests share the session's loop with it.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.servers import RunningServer, serve

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
MISSING = (
    "no Chromium found: install one (Debian, Ubuntu: apt-get install chromium) "
    "or name its program in PENSTOCK_CHROMIUM"
)
ARGS = [
    "--no-sandbox",  # as root, and in containers, there is none to be had
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

OpenPage = Callable[..., Awaitable[Page]]

expect.set_options(timeout=15_000)  # a limit for a busy machine, not a wait


def find_chromium() -> str | None:
    """The program to run, if this machine has one."""
    named = os.environ.get("PENSTOCK_CHROMIUM")
    return next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program, or the end of the test."""
    program = find_chromium()
    if program is None and os.environ.get("PENSTOCK_REQUIRE_BROWSER") == "1":
        pytest.fail(MISSING)
    return program or pytest.skip(MISSING)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """The browser of this worker."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Opens a page in a context of its own.

    At the end of the test: nothing may have thrown, opened a dialog, or tried what the content
    security policy forbids.
    """
    contexts = []
    complaints: list[str] = []

    async def open_at(url: str, **options: Any) -> Page:
        context = await browser.new_context(**options)
        contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"thrown: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "console",
            lambda line: (
                complaints.append(line.text) if "Content Security Policy" in line.text else None
            ),
        )
        await page.goto(url)
        return page

    yield open_at
    for context in contexts:
        await context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def server(chromium: str) -> Iterator[RunningServer]:
    """A mock that says its text once, fast enough to be quick and slow enough to be watched."""
    with serve(engine="mock", mock_interval=0.01) as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(chromium: str) -> Iterator[RunningServer]:
    """A mock that goes on for long enough to be stopped."""
    with serve(engine="mock", mock_interval=0.1, engine_arg=["length=2000"]) as server:
        yield server
