"""The browser's own EventSource, with a record of all that it tells its page."""

from dataclasses import dataclass
from typing import Any

from playwright.async_api import Page

from tests.page.waiting import until
from tests.support.raw import generate, open_stream, post
from tests.support.servers import RunningServer

OPEN = """([url, options]) => {
  const record = (window.record = []);
  const source = (window.source = new EventSource(url, options));
  const note = (event) => record.push({
    type: event.type,
    data: event.data ?? "",
    id: event.lastEventId ?? "",
    origin: event.origin ?? "",
    state: source.readyState,
    time: performance.now(),
  });
  for (const type of ["open", "message", "queue", "error"]) source.addEventListener(type, note);
}"""
CONNECTING, OPENED, CLOSED = 0, 1, 2


@dataclass
class Told:
    """An event that the page was told, and the source's state then."""

    type: str
    data: str
    id: str
    origin: str
    state: int
    time: float
    """In milliseconds."""


class Source:
    """An EventSource in a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.statuses: list[int] = []
        """The statuses of all answers of `/streams`."""
        page.on("response", lambda response: self._note(response.url, response.status))

    def _note(self, url: str, status: int) -> None:
        if "/streams/" in url:
            self.statuses.append(status)

    async def open(self, url: str, **options: bool) -> "Source":
        await self._page.evaluate(OPEN, [url, options])
        return self

    async def close(self) -> None:
        await self._page.evaluate("source.close()")

    async def until(self, condition: str) -> list[Told]:
        """Wait for a condition in JavaScript about `record` and `source`; return the record."""
        await until(self._page, condition)
        return await self.record()

    async def until_over(self) -> list[Told]:
        """Wait until the source gives up for good."""
        return await self.until("source.readyState === 2")

    async def until_events(self, count: int) -> list[Told]:
        """Wait for so many messages."""
        return await self.until(f"record.filter((e) => e.type === 'message').length >= {count}")

    async def until_opened(self, count: int) -> list[Told]:
        """Wait until the source has opened so many connections."""
        return await self.until(f"record.filter((e) => e.type === 'open').length >= {count}")

    async def record(self) -> list[Told]:
        told: list[dict[str, Any]] = await self._page.evaluate("record")
        return [Told(**each) for each in told]


def messages(told: list[Told]) -> list[Told]:
    return [each for each in told if each.type == "message"]


def ids(told: list[Told]) -> list[int]:
    """Return the numbers in the ids of the messages."""
    return [int(each.id.rpartition(".")[2]) for each in messages(told)]


def begin(server: RunningServer, **fields: object) -> str:
    """Open a resumable stream and leave it; return its URL."""
    connection, stream_id = open_stream(server.port, generate(resumable=True, **fields))  # type: ignore[arg-type] # a prompt is among the fields
    connection.close()
    return f"/streams/{stream_id}"


def begin_chat(server: RunningServer, body: bytes) -> str:
    """Open a resumable stream of OpenAI's API and leave it; return its URL."""
    sent = post(body, "X-Penstock-Resumable: true", path="/v1/chat/completions")
    connection, stream_id = open_stream(server.port, sent)
    connection.close()
    return f"/streams/{stream_id}"
