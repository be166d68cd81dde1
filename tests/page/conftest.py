"""A real Chromium for the page: one browser per worker process, and a fresh context per test.

The tests use an installed browser: Debian's package `chromium`, or the program in
PENSTOCK_CHROMIUM. Without a browser the tests skip and say what to install; with
PENSTOCK_REQUIRE_BROWSER=1, as in CI, they fail.

The tests use Playwright's async API in the session's event loop. The sync API leaves a running
event loop behind, which breaks every other asyncio test in the same worker.
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
    "--no-sandbox",  # the sandbox is not available to root or in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

OpenPage = Callable[..., Awaitable[Page]]

expect.set_options(timeout=30_000)  # a limit for a busy machine, not a wait


def find_chromium() -> str | None:
    """Return the path of the browser, or None if no browser is installed."""
    named = os.environ.get("PENSTOCK_CHROMIUM")
    return next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of the browser; skip or fail the test if no browser is installed."""
    program = find_chromium()
    if program is None and os.environ.get("PENSTOCK_REQUIRE_BROWSER") == "1":
        pytest.fail(MISSING)
    return program or pytest.skip(MISSING)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """The browser that the tests of a worker share."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Return a function that opens a page in a new context.

    The test fails if a page threw, opened a dialog, violated the content security policy or could
    not load one of its scripts.
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
        page.on(
            "requestfailed",
            lambda failed: (
                complaints.append(f"not loaded: {failed.url} ({failed.failure})")
                if failed.resource_type == "script"
                else None
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
    """Serve a mock that repeats its text once, at 100 tokens per second."""
    with serve(engine="mock", mock_interval=0.01) as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(chromium: str) -> Iterator[RunningServer]:
    """Serve a mock whose answers last long enough to be stopped."""
    with serve(engine="mock", mock_interval=0.1, engine_arg=["length=2000"]) as server:
        yield server
