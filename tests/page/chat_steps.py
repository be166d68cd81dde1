"""What a person does and sees in a conversation on the page."""

import json
from typing import Any

from playwright.async_api import Locator, Page, Route, expect


def message(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def answers(page: Page) -> Locator:
    """Return the texts of the model's turns."""
    return page.locator(".turn.assistant .text")


def status(page: Page) -> Any:
    return expect(page.locator("#status"))


def press(page: Page, name: str, nth: int = -1) -> Any:
    """Press a button of a turn; by default the last one with that name."""
    return page.locator("#turns").get_by_role("button", name=name, exact=True).nth(nth).click()


async def send(page: Page, text: str) -> None:
    await message(page).fill(text)
    await message(page).press("Enter")


# Transactions end in the order in which they began. A change takes two of them at most: the second
# begins when the first has ended.
KEEP = """async () => {
  const { listConversations } = await import("/page/store.js");
  await listConversations();
  await listConversations();
}"""


async def reload(page: Page) -> None:
    """Reload the page once it has kept what it shows: a transaction of the old page may be lost."""
    await page.evaluate(KEEP)
    await page.reload()


async def state_is(page: Page, state: str) -> None:
    await expect(page.locator("body")).to_have_attribute("data-state", state)


async def say(page: Page, text: str) -> str:
    """Send a message and return the whole answer, as the page shows it."""
    count = await answers(page).count()
    await send(page, text)
    await expect(answers(page)).to_have_count(count + 1)
    await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
    return await answers(page).last.text_content() or ""


def chunks(*deltas: dict[str, Any], reason: str = "stop") -> str:
    """Return the body of a streamed chat with these deltas."""
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    events.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(deltas)}})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


async def answer_with(page: Page, *deltas: dict[str, Any]) -> None:
    """Answer the page's next chats with these deltas instead of passing them to the server."""

    async def fulfil(route: Route) -> None:
        headers = {"Content-Type": "text/event-stream", "X-Stream-ID": "A" * 22}
        await route.fulfill(body=chunks(*deltas), headers=headers)

    await page.unroute("**/chat/completions")
    await page.route("**/chat/completions", fulfil)
