"""Take the screenshot for the README: the page with an answer of the built-in model.

python -m tests.page.screenshot docs/page.png [seed]
"""

import sys

from playwright.sync_api import expect, sync_playwright

from tests.page.conftest import ARGS, MISSING, find_chromium
from tests.support.servers import serve


def main(path: str, seed: str) -> None:
    """Stream a story and save a screenshot of it."""
    program = find_chromium()
    if program is None:
        raise SystemExit(MISSING)
    with serve() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 680}, color_scheme="light")
        page.goto(server.url)
        expect(page.locator("#server")).to_have_text("rill · ready")
        page.get_by_label("Max tokens").fill("200")
        page.get_by_label("Seed").fill(seed)
        page.get_by_role("button", name="Stream").click()
        expect(page.locator("body")).to_have_attribute("data-state", "finished", timeout=60_000)
        page.locator("#output").blur()
        page.screenshot(path=path, animations="disabled")
        print(page.locator("#output").text_content())
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1")
