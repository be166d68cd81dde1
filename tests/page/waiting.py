"""Waits for what a page's own JavaScript can see."""

import asyncio
from typing import Any

from playwright.async_api import Page

PATIENCE_S = 60.0


async def until(page: Page, condition: str, arg: Any = None) -> None:
    """Wait until an expression of JavaScript, which may read `arg`, is true.

    Playwright's `wait_for_function` has the page evaluate a text, again and again. The policy of
    our pages forbids that, so it fails unless its first look, which is none of the page's, finds
    the condition true.
    """
    looks = f"""async (arg) => {{
      while (!({condition})) await new Promise((next) => setTimeout(next, 20));
    }}"""
    async with asyncio.timeout(PATIENCE_S):
        await page.evaluate(looks, arg)
