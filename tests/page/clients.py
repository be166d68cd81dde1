"""Clients that read one long answer each, every one in its own way, and say what they have read.

In: a server's URL. Out: the whole text, and how often the client noticed a cut.
"""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from playwright.async_api import Page, expect

from penstock.client import AsyncClient, Client
from tests.docs.pages import ROOT
from tests.page.chat_steps import answers, send
from tests.page.conftest import OpenPage
from tests.page.event_source import Source, ids, messages
from tests.page.test_page import answer, state_is, text_of, words
from tests.page.test_resume import ask
from tests.support.proxies import replaced
from tests.support.raw import generate, open_stream

BEGUN = 3
"""After so many tokens, a client is in mid-sentence."""
PROTOCOL = ROOT / "docs" / "protocol.md"
RECIPE = re.compile(r"^## With OpenAI's client\n.*?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Reading(Protocol):
    """A client that has asked for its answer."""

    word: str
    """The word in each token."""

    async def begun(self) -> None:
        """Wait until the client has the first tokens."""

    async def ended(self) -> tuple[str, int]:
        """Wait for the end; return the whole text and the number of resumes. Raise if it failed."""


class ChatReading:
    """A person at the page for conversations."""

    word = "chat"

    async def open(self, url: str, open_page: OpenPage) -> "ChatReading":
        self._page = await open_page(url)
        await send(self._page, self.word)
        return self

    async def begun(self) -> None:
        await expect(answers(self._page)).to_have_text(words(BEGUN))

    async def ended(self) -> tuple[str, int]:
        await expect(self._page.locator(".turn").last).to_have_attribute("data-state", "finished")
        text = await answers(self._page).text_content() or ""
        return f"{text.rstrip()} ", await num_resumes(self._page)


class TextReading:
    """A person at the page for texts."""

    word = "text"

    async def open(self, url: str, open_page: OpenPage, num_tokens: int) -> "TextReading":
        self._page = await open_page(f"{url}/text")
        await ask(self._page, self.word, num_tokens)
        return self

    async def begun(self) -> None:
        await expect(answer(self._page)).to_have_text(words(BEGUN))

    async def ended(self) -> tuple[str, int]:
        await state_is(self._page, "finished")
        return await text_of(self._page), await num_resumes(self._page)


async def num_resumes(page: Page) -> int:
    """Return 1 if the page says that it resumed once, else 0."""
    return int("Resumed once." in (await page.locator("#status").text_content() or ""))


class EventSourceReading:
    """A browser's EventSource."""

    word = "source"

    async def open(self, url: str, open_page: OpenPage, num_tokens: int) -> "EventSourceReading":
        port = int(url.rpartition(":")[2])
        asked = generate(prompt=self.word, resumable=True, max_tokens=num_tokens)
        connection, stream_id = open_stream(port, asked)
        connection.close()
        self._source = Source(await open_page(f"{url}/health"))
        await self._source.open(f"/streams/{stream_id}")
        return self

    async def begun(self) -> None:
        await self._source.until_events(BEGUN)

    async def ended(self) -> tuple[str, int]:
        told = await self._source.until_over()
        assert ids(told) == list(range(len(messages(told))))
        events = [json.loads(each.data) for each in messages(told)]
        assert [event["finished"] for event in events].index(True) == len(events) - 1
        # The last answer is 204: the stream has ended, and the source has everything.
        assert self._source.statuses[-1] == 204
        return "".join(event["token"] for event in events), len(self._source.statuses) - 2


class ClientReading:
    """Penstock's own client, `Client` or `AsyncClient`."""

    def __init__(self, word: str, read: Callable[["ClientReading"], Awaitable[int]]) -> None:
        self.word = word
        self._texts: list[str] = []
        self._has_begun = asyncio.Event()
        self._task = asyncio.ensure_future(read(self))

    def got(self, text: str) -> None:
        self._texts.append(text)
        if len(self._texts) == BEGUN:
            self._has_begun.set()

    async def begun(self) -> None:
        begun = asyncio.ensure_future(self._has_begun.wait())
        await asyncio.wait({begun, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        await begun

    async def ended(self) -> tuple[str, int]:
        num_resumes = await self._task
        return "".join(self._texts), num_resumes


def client_reading(url: str, num_tokens: int) -> ClientReading:
    """Read with `Client`, in a thread."""
    loop = asyncio.get_running_loop()

    async def read(reading: ClientReading) -> int:
        def in_thread() -> int:
            with (
                Client(url) as client,
                client.stream(reading.word, max_tokens=num_tokens) as stream,
            ):
                for text in stream:
                    loop.call_soon_threadsafe(reading.got, text)
            return stream.num_resumes

        return await asyncio.to_thread(in_thread)

    return ClientReading("client", read)


def async_client_reading(url: str, num_tokens: int) -> ClientReading:
    """Read with `AsyncClient`."""

    async def read(reading: ClientReading) -> int:
        async with (
            AsyncClient(url) as client,
            client.stream(reading.word, max_tokens=num_tokens) as stream,
        ):
            async for text in stream:
                reading.got(text)
        return stream.num_resumes

    return ClientReading("async", read)


class RecipeReading:
    """The program with OpenAI's client that docs/protocol.md shows, in a process of its own."""

    word = "Once"

    async def open(self, url: str, folder: Path, num_tokens: int) -> "RecipeReading":
        found = RECIPE.search(PROTOCOL.read_text(encoding="utf-8"))
        assert found is not None
        program = replaced(found[1], "http://127.0.0.1:8000", url)
        program = replaced(program, "max_tokens=20", f"max_tokens={num_tokens}")
        file = folder / "recipe.py"
        file.write_text(program, encoding="utf-8")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(file),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return self

    async def begun(self) -> None:
        assert self._process.stdout is not None
        self._text = await self._process.stdout.readuntil(f":{BEGUN} ".encode())

    async def ended(self) -> tuple[str, int]:
        rest, errors = await self._process.communicate()
        assert self._process.returncode == 0, errors
        text = (self._text + rest).decode()
        return text.removesuffix("\n"), errors.count(b"Resuming")
