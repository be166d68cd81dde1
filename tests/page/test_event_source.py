"""The browser's own EventSource reads resumable streams as the WHATWG's standard has it.

The cases are those of the Web Platform Tests that concern the server: the others are about the
browser's parser.
"""

import asyncio
import itertools
import json
from collections.abc import Iterator

import pytest

from penstock.api.answering import RETRY_MS
from tests.faults.proxy import Faults, Proxy, cut
from tests.page.conftest import OpenPage
from tests.page.event_source import (
    CLOSED,
    CONNECTING,
    OPENED,
    Source,
    begin,
    begin_chat,
    ids,
    messages,
)
from tests.support.raw import cancel_stream
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.waiting import soon

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

# Not our own page: its policy and its scripts are of no concern here.
BLANK = "/health"
NUM_RETURNS = 3
TEXTS = [" plain", "\n", "\r", "\r\n", "\n\n", "\0", "\ufeff", "\u2028", "\u2029", "\x85", "\t"]
TEXTS += ["水🌊", "e\u0301", "data: x", "\n\ndata: x\n\n", ":", "id: 7", '"', "\\", "</script>"]


@pytest.fixture(scope="module")
def live(chromium: str) -> Iterator[RunningServer]:
    """Serve known answers slowly enough to cut them."""
    arguments = ["numbered=true", "length=2000"]
    with serve(engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def silent(chromium: str) -> Iterator[RunningServer]:
    """Serve with one slot and an engine that never makes its first token."""
    with serve(
        engine="mock", mock_interval=0, heartbeat=0.1, engine_arg=["slots=1", "prefill=600"]
    ) as server:
        yield server


# --- a stream that nothing disturbs


async def test_events_have_their_type_data_id_and_origin(
    live: RunningServer, open_page: OpenPage
) -> None:
    source = Source(page := await open_page(live.url + BLANK))
    await source.open(url := begin(live, max_tokens=5))
    told = await source.until_over()
    assert [each.type for each in told] == ["open", *["message"] * 6, "error", "error"]
    assert ids(told) == list(range(6))
    assert [json.loads(each.data)["index"] for each in messages(told)] == list(range(6))
    assert {each.origin for each in messages(told)} == {live.url}
    assert [each.state for each in told] == [OPENED] * 7 + [CONNECTING, CLOSED]
    assert source.statuses == [200, 204]
    assert await page.evaluate("source.url") == live.url + url


async def test_it_opens_before_the_first_token_and_comments_are_no_events(
    silent: RunningServer, open_page: OpenPage
) -> None:
    source = Source(await open_page(silent.url + BLANK))
    await source.open(url := begin(silent))
    assert [each.type for each in await source.until("record.length")] == ["open"]
    cancel_stream(silent.port, url.rpartition("/")[2])
    told = await source.until_over()
    assert [each.type for each in told] == ["open", "message", "error", "error"]
    assert json.loads(messages(told)[0].data)["finish_reason"] == "cancelled"


async def test_a_stream_in_the_queue_opens_and_its_place_is_no_event(
    silent: RunningServer, open_page: OpenPage
) -> None:
    running, waiting = begin(silent), begin(silent, queue_events=True)
    source = Source(await open_page(silent.url + BLANK))
    await source.open(waiting)
    await source.until("record.length")
    for url in (waiting, running):
        cancel_stream(silent.port, url.rpartition("/")[2])
    told = await source.until_over()
    assert [each.type for each in told] == ["open", "message", "error", "error"]


async def test_any_text_arrives_as_it_is(chromium: str, open_page: OpenPage) -> None:
    text = "".join(f" {text}" for text in TEXTS)
    argument = "text=" + json.dumps(text, ensure_ascii=False)
    with serve(engine="mock", mock_interval=0, engine_arg=[argument]) as server:
        source = Source(await open_page(server.url + BLANK))
        await source.open(begin(server, max_tokens=1000))
        told = messages(await source.until_over())
    assert "".join(json.loads(each.data)["token"] for each in told) == text


async def test_events_of_many_kilobytes_arrive_whole(chromium: str, open_page: OpenPage) -> None:
    words = "".join(" " + letter * 30_000 for letter in "abc")
    with serve(engine="mock", mock_interval=0, engine_arg=[f"text={json.dumps(words)}"]) as server:
        source = Source(await open_page(server.url + BLANK))
        await source.open(begin(server))
        told = messages(await source.until_over())
    assert "".join(json.loads(each.data)["token"] for each in told) == words


async def test_two_sources_get_the_same_events(live: RunningServer, open_page: OpenPage) -> None:
    url = begin(live, max_tokens=30)
    sources = [Source(await open_page(live.url + BLANK)) for _ in range(2)]
    for source in sources:
        await source.open(url)
    first, second = [messages(await source.until_over()) for source in sources]
    assert [(each.id, each.data) for each in first] == [(each.id, each.data) for each in second]
    assert len(first) == 31


async def test_chunks_of_openai_have_ids_as_well(live: RunningServer, open_page: OpenPage) -> None:
    body = json.dumps(
        {
            "model": "mock",
            "messages": [{"role": "user", "content": "lake"}],
            "max_tokens": 5,
            "stream": True,
        }
    )
    source = Source(await open_page(live.url + BLANK))
    await source.open(begin_chat(live, body.encode()))
    told = messages(await source.until_over())
    assert told[-1].data == "[DONE]"
    assert [json.loads(each.data)["object"] for each in told[:-1]] == (
        ["chat.completion.chunk"] * (len(told) - 1)
    )
    assert source.statuses == [200, 204]


# --- it comes back


async def test_it_comes_back_with_its_last_id_after_the_time_that_the_server_chose(
    live: RunningServer, open_page: OpenPage
) -> None:
    async with Proxy(live.address) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}{BLANK}")
        source = await Source(page).open(url := begin(live, max_tokens=2000))
        before = await source.until_events(5)
        async with page.expect_request("**/streams/*") as sent:
            await proxy.drop()
        for count in range(2, NUM_RETURNS + 1):
            await source.until_opened(count)
            await proxy.drop()
        await source.until_opened(NUM_RETURNS + 1)
        cancel_stream(live.port, url.rpartition("/")[2])
        told = await source.until_over()
        headers = await (await sent.value).all_headers()
    assert headers["accept"] == "text/event-stream"
    stream_id, _, number = headers["last-event-id"].rpartition(".")
    assert messages(before)[-1].id.startswith(f"{stream_id}.")
    assert int(number) >= ids(before)[-1]
    assert ids(told) == list(range(len(ids(told))))
    errors = [each.time for each in told if each.type == "error"]
    opened = [each.time for each in told if each.type == "open"]
    waits = [back - cut for cut, back in zip(errors, opened[1:], strict=False)]
    assert len(waits) == NUM_RETURNS
    # Chromium's own wait is 3 seconds. A busy machine adds to one, but not so much to every one.
    assert RETRY_MS[0] * 0.9 < min(waits) < RETRY_MS[1] + 1000
    assert source.statuses == [200] * (NUM_RETURNS + 1) + [204]


async def test_it_comes_back_without_an_id_if_no_event_has_come(
    silent: RunningServer, open_page: OpenPage
) -> None:
    url = begin(silent)
    async with Proxy(silent.address) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}{BLANK}")
        source = await Source(page).open(url)
        await source.until("record.length")
        async with page.expect_request("**/streams/*") as sent:
            await proxy.drop()
        assert "last-event-id" not in await (await sent.value).all_headers()
        await source.until_opened(2)
        cancel_stream(silent.port, url.rpartition("/")[2])
        assert ids(await source.until_over()) == [0]


async def test_half_an_event_is_dropped_and_comes_again_whole(
    live: RunningServer, open_page: OpenPage
) -> None:
    """Every connection is cut at another place, most of them within an event.

    No head is cut, though the browser may have asked for its icon on the same connection: it takes
    half a head for a whole one.
    """
    places = itertools.count(820, 97)
    async with Proxy(live.address) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}{BLANK}")
        proxy.faults_of = lambda _: Faults(down=[cut(min(next(places), 1300))])
        await proxy.drop()
        source = await Source(page).open(begin(live, max_tokens=60))
        told = await source.until_opened(4)
        proxy.faults_of = lambda _: Faults()
        await proxy.drop()
        told = await source.until_over()
    assert ids(told) == list(range(61))
    texts = [json.loads(each.data)["token"] for each in messages(told)]
    assert texts == [f"Hello:{n} " for n in range(60)] + [""]


async def test_it_waits_for_a_server_that_is_away(live: RunningServer, open_page: OpenPage) -> None:
    async with Proxy(live.address) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}{BLANK}")
        source = await Source(page).open(begin(live, max_tokens=400))
        await source.until_events(3)
        await proxy.down()
        await proxy.drop()
        await source.until("record.filter((e) => e.type === 'error').length >= 2")
        assert (await source.record())[-1].state == CONNECTING
        await proxy.up()
        assert ids(await source.until_over()) == list(range(401))


# --- it stops


@pytest.mark.parametrize("path", ["/streams/unknown", "/health", "/nope", "/streams/a?after=x"])
async def test_what_is_no_stream_is_given_up_at_once(
    live: RunningServer, open_page: OpenPage, path: str
) -> None:
    source = await Source(await open_page(live.url + BLANK)).open(path)
    told = await source.until_over()
    assert [(each.type, each.state) for each in told] == [("error", CLOSED)]


async def test_a_broken_id_is_given_up_at_once(live: RunningServer, open_page: OpenPage) -> None:
    source = Source(await open_page(live.url + BLANK))
    await source.open(begin(live, max_tokens=3) + "?after=many")
    assert [each.state for each in await source.until_over()] == [CLOSED]
    assert source.statuses == [400]


async def test_a_stream_that_is_gone_is_given_up_at_once(
    chromium: str, open_page: OpenPage
) -> None:
    with serve(engine="mock", mock_interval=0, retain_bytes=0) as server:
        url = begin(server, max_tokens=3)
        assert soon(lambda: Scrape(server)("penstock_streams_running") == 0)
        source = await Source(await open_page(server.url + BLANK)).open(url)
        assert [each.state for each in await source.until_over()] == [CLOSED]
        assert source.statuses in ([410], [404])


async def test_a_key_is_asked_for(chromium: str, open_page: OpenPage) -> None:
    """An EventSource cannot send one: it is refused, and does not come back."""
    with serve(engine="mock", api_key="secret-secret-secret") as server:
        source = await Source(await open_page(server.url + BLANK)).open("/streams/a")
        assert [each.state for each in await source.until_over()] == [CLOSED]
        assert source.statuses == [401]


async def test_an_ended_stream_is_read_once_from_its_start(
    live: RunningServer, open_page: OpenPage
) -> None:
    url = begin(live, max_tokens=3)
    assert soon(lambda: Scrape(live)("penstock_streams_running") == 0)
    source = Source(await open_page(live.url + BLANK))
    for expected in ([0, 1, 2, 3], [0, 1, 2, 3]):  # no cache keeps the second from the server
        assert ids(await (await source.open(url)).until_over()) == expected
    assert ids(await (await source.open(url + "?after=1")).until_over()) == [2, 3]
    assert source.statuses == [200, 204] * 3


async def test_a_source_after_the_last_event_gets_nothing(
    live: RunningServer, open_page: OpenPage
) -> None:
    url = begin(live, max_tokens=3)
    assert soon(lambda: Scrape(live)("penstock_streams_running") == 0)
    source = await Source(await open_page(live.url + BLANK)).open(url + "?after=3")
    told = await source.until_over()
    assert [(each.type, each.state) for each in told] == [("error", CLOSED)]
    assert source.statuses == [204]


async def test_close_ends_the_reading_at_once_and_the_stream_goes_on(
    live: RunningServer, open_page: OpenPage
) -> None:
    source = Source(await open_page(live.url + BLANK))
    await source.open(url := begin(live, max_tokens=2000))
    await source.until_events(3)
    await source.close()
    told = await source.record()
    assert soon(lambda: Scrape(live)("penstock_readers") == 0)
    assert await source.record() == told, "an event came after close()"
    assert Scrape(live)("penstock_streams_running") == 1
    last = ids(told)[-1]
    await source.open(f"{url}?after={last}")
    assert ids(await source.until_events(3))[:3] == [last + 1, last + 2, last + 3]
    await source.close()
    cancel_stream(live.port, url.rpartition("/")[2])


async def test_a_stream_that_another_cancels_ends_for_the_source(
    live: RunningServer, open_page: OpenPage
) -> None:
    source = Source(await open_page(live.url + BLANK))
    await source.open(url := begin(live, max_tokens=1000))
    await source.until_events(3)
    await asyncio.to_thread(cancel_stream, live.port, url.rpartition("/")[2])
    told = messages(await source.until_over())
    assert json.loads(told[-1].data)["finish_reason"] == "cancelled"
    assert source.statuses == [200, 204]
