"""Take the screenshot for the README: the page with an answer of the built-in model.

python -m tests.page.screenshot docs/page.png [seed]
"""

import re
import sys

from playwright.sync_api import expect, sync_playwright

from tests.page.conftest import ARGS, MISSING, find_chromium
from tests.support.servers import serve

QUESTIONS = ("Hello! Who are you?", "Tell me a story about a river.")
LONG = re.compile(".{500}", re.DOTALL)


def main(path: str, seed: str) -> None:
    """Talk with the built-in model, and save a screenshot while it answers."""
    program = find_chromium()
    if program is None:
        raise SystemExit(MISSING)
    with serve(pace=None) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 680}, color_scheme="light")
        page.goto(server.url)
        expect(page.locator("#server")).to_have_text("rill · ready")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Seed").fill(seed)
        page.get_by_role("button", name="Done").click()
        for number, question in enumerate(QUESTIONS):
            page.get_by_role("textbox", name="Message").fill(question)
            page.keyboard.press("Enter")
            text = page.locator(".assistant .text").nth(number)
            if number < len(QUESTIONS) - 1:
                expect(page.locator("body")).to_have_attribute("data-state", "finished")
                expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(page.locator(".assistant .text").last).to_have_text(LONG, timeout=30_000)
        page.screenshot(path=path, animations="disabled")
        print(text.text_content())
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1")
