"""page/client/sse.js finds the same events as the browser's own EventSource."""

from typing import Any

import pytest
from playwright.async_api import Route

from tests.page.conftest import OpenPage
from tests.support.servers import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

BODY = (
    b"\xef\xbb\xbfdata: after a byte order mark\n\n"
    b": ping\n\n"
    b"data: CRLF\r\ndata: and a second line\r\n\r\n"
    b"data: CR alone\rdata: again\r\r"
    b"data:no space\ndata:  two spaces\n\n"
    b"data\n\n"
    b"data\ndata\n\n"
    b"event: named\nid: 7\ndata: {}\n\n"
    b"id: not\0this\ndata: the id stays 7\nunknown: field\nretry: 9\n\n"
    b"event: without data\n\n"
    + "data: grün 水 🌊 \u2028 \ufeff inside\n\n".encode()
    + b"data: half a line\xff\n\r\n"
    b"id\ndata: the id is gone\n\n"
    b"data: never finished\n"
)
EVENTS = [
    ("message", "after a byte order mark", ""),
    ("message", "CRLF\nand a second line", ""),
    ("message", "CR alone\nagain", ""),
    ("message", "no space\n two spaces", ""),
    ("message", "", ""),
    ("message", "\n", ""),
    ("named", "{}", "7"),
    ("message", "the id stays 7", "7"),
    ("message", "grün 水 🌊 \u2028 \ufeff inside", "7"),
    ("message", "half a line\ufffd", "7"),
    ("message", "the id is gone", ""),
]

FEED_AT_EVERY_CUT = """async (numbers) => {
  const { EventParser } = await import("./page/client/sse.js");
  const bytes = new Uint8Array(numbers);
  const feed = (...cuts) => {
    const parser = new EventParser();
    const ends = [...cuts, bytes.length];
    const events = ends.flatMap((end, i) => parser.feed(bytes.subarray(ends[i - 1] ?? 0, end)));
    const shown = events.filter(({ type }) => type !== null); // EventSource shows no comments
    return shown.map(({ type, data, lastEventId }) => [type, data, lastEventId]);
  };
  const whole = feed();
  const wrong = [];
  const check = (...cuts) => {
    if (JSON.stringify(feed(...cuts)) !== JSON.stringify(whole)) wrong.push(cuts);
  };
  for (let a = 0; a <= bytes.length; a++) {
    check(a);
    for (let b = a; b <= Math.min(a + 4, bytes.length); b++) check(a, b);
  }
  check(...bytes.keys());
  return { whole, wrong };
}"""

ASK_EVENT_SOURCE = """() => new Promise((resolve) => {
  const events = [];
  const source = new EventSource("oracle");
  const note = ({ type, data, lastEventId }) => events.push([type, data, lastEventId]);
  for (const type of ["message", "named", "without data"]) source.addEventListener(type, note);
  source.onerror = () => { source.close(); resolve(events); };
})"""


def as_lists(events: list[tuple[str, str, str]]) -> list[list[str]]:
    return [list(event) for event in events]


async def test_the_parser_finds_the_same_events_wherever_the_bytes_are_cut(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(server.url)
    found: dict[str, Any] = await page.evaluate(FEED_AT_EVERY_CUT, list(BODY))
    assert found["whole"] == as_lists(EVENTS)
    assert found["wrong"] == []


async def test_the_parser_finds_what_the_browsers_own_event_source_finds(
    server: RunningServer, open_page: OpenPage
) -> None:
    async def answer(route: Route) -> None:
        await route.fulfill(body=BODY, headers={"Content-Type": "text/event-stream"})

    page = await open_page(server.url)
    await page.route("**/oracle", answer)
    assert await page.evaluate(ASK_EVENT_SOURCE) == as_lists(EVENTS)
