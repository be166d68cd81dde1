"""Runs a script in headless Chromium, on an empty page of the server, and prints the page's text.

It is a program of its own because Playwright's blocking API needs a process without an event loop.
"""

import contextlib
import re
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tests.page.conftest import ARGS

QUIET_MS = 500  # the script is taken for finished when the page has not changed for so long
PATIENCE_MS = 30_000  # until the first text, which is late on a busy machine


def main(chromium: str, url: str, script: str) -> None:
    """Run the script, and exit with what it throws."""
    code = Path(script).read_text(encoding="utf-8")
    thrown: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        page = browser.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(f"{url}/health/live")
        page.evaluate("document.body.replaceChildren()")
        page.evaluate(f"async () => {{\n{code}\n}}")
        with contextlib.suppress(AssertionError):
            expect(page.locator("body")).to_have_text(re.compile(r"\S"), timeout=PATIENCE_MS)
        text = None
        while text is None or text != page.inner_text("body"):
            text = page.inner_text("body")
            page.wait_for_timeout(QUIET_MS)
        browser.close()
    print(text)
    if thrown:
        sys.exit("\n".join(thrown))
    if not text:
        sys.exit("the script put nothing on the page")


if __name__ == "__main__":
    main(*sys.argv[1:])
