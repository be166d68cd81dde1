"""The page after cuts and reloads, in Chromium behind a proxy that cuts connections."""

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.faults.proxy import Faults, Proxy, cut, none, silence_from
from tests.page.conftest import OpenPage
from tests.page.test_page import MARKUP, RECORD, answer, state_is, text_of, words
from tests.support.hurried import ENGINE, Hurry
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


LONG = 900
"""Tokens of an answer that is not over before a test is in a hurry: half a minute."""


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Hurry:
    return Hurry(tmp_path_factory.mktemp("hurry") / "hurry")


@pytest.fixture(scope="module")
def numbered_server(chromium: str, hurry: Hurry) -> Iterator[RunningServer]:
    """Serve known answers: token i of a request is "<first word of its prompt>:<i> "."""
    arguments = [hurry.argument, "interval=0.03", "numbered=true", "length=2000", "name=mock"]
    with serve(engine=ENGINE, engine_arg=arguments) as server:
        yield server


@pytest.fixture(autouse=True)
def slow(hurry: Hurry) -> Iterator[None]:
    with hurry.over():
        yield


def proxied(server: RunningServer) -> Proxy:
    return Proxy(("127.0.0.1", server.port))


def url_of(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.address[1]}"


def numbered(word: str, count: int) -> str:
    return "".join(f"{word}:{n} " for n in range(count))


async def ask(page: Page, prompt: str, max_tokens: int) -> None:
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_label("Max tokens").fill(str(max_tokens))
    await page.get_by_role("button", name="Stream").click()


def status(page: Page) -> Any:
    return expect(page.locator("#status"))


async def kept(page: Page) -> list[int]:
    lengths: list[int] = await page.evaluate("[localStorage.length, sessionStorage.length]")
    return lengths


# --- cuts


async def test_a_cut_stream_goes_on_in_place_and_shows_every_token_once(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page(f"{url_of(proxy)}/text")
        await page.evaluate(RECORD)
        await ask(page, "Cut", LONG)
        for number, often in enumerate(("once", "twice"), 1):
            await expect(answer(page)).to_have_text(words(20 * number))
            await proxy.drop()
            await status(page).to_have_text(f"Streaming… Resumed {often}.")
        hurry.now()
        await state_is(page, "finished")
        assert await text_of(page) == numbered("Cut", LONG)
        texts = await page.evaluate("window.texts")
        assert all(late.startswith(early) for early, late in itertools.pairwise(texts))
        assert await page.evaluate("window.states") == [
            *["waiting", "streaming", "resuming", "streaming", "resuming", "streaming"],
            "finished",
        ]
        await status(page).to_have_text("Finished: the token limit was reached. Resumed twice.")
        await expect(page.locator("#tokens")).to_have_text(str(LONG))
        await expect(page.locator("#tokens-source")).to_have_text("by the server")
        assert await kept(page) == [0, 0]


async def test_a_stream_cut_over_and_over_at_any_byte_is_whole(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page(f"{url_of(proxy)}/text")
        await expect(page.locator("#server")).to_have_text("mock · ready")
        proxy.faults_of = lambda chance: Faults(
            # With fewer bytes a reset can discard all of them: no progress, and ever longer waits.
            down=[cut(chance.randint(8000, 12_000), chance.choice(["FIN", "RST"]))]
        )
        await proxy.drop()  # from now on, connections have these faults
        await ask(page, "Often", 500)  # more than 40,000 bytes: at least three cuts
        # The server sets each wait with `retry:`.
        body = page.locator("body")
        await expect(body).to_have_attribute("data-state", "finished", timeout=60_000)
        assert await text_of(page) == numbered("Often", 500)
        await status(page).to_have_text(re.compile(r"Resumed \d+ times\.$"))


async def test_a_connection_that_falls_silent_is_a_cut(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page("about:blank")
        await page.clock.install()
        await page.goto(f"{url_of(proxy)}/text")
        await expect(page.locator("#server")).to_have_text("mock · ready")
        silent = asyncio.Event()
        proxy.faults_of = lambda _: Faults(down=[silence_from(silent)])
        await proxy.drop()
        await ask(page, "Quiet", LONG)
        await expect(answer(page)).to_have_text(words(5))
        proxy.faults_of = none
        silent.set()
        await page.clock.fast_forward(46_000)
        await status(page).to_contain_text("Resumed once.")
        # Chromium may have opened two connections and still use the silent connection.
        await proxy.drop()
        hurry.now()
        await state_is(page, "finished")
        assert await text_of(page) == numbered("Quiet", LONG)


async def test_while_it_resumes_the_page_says_so_and_can_be_stopped(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page(f"{url_of(proxy)}/text")
        await ask(page, "Stop", 1000)
        await expect(answer(page)).to_have_text(words(3))
        await proxy.down()
        await proxy.drop()
        await state_is(page, "resuming")
        await status(page).to_have_text("Connection lost; resuming…")
        await expect(page.locator("#server")).to_have_text("not reachable")
        await expect(page.get_by_role("button", name="Stop")).to_have_attribute(
            "aria-disabled", "false"
        )
        await page.get_by_role("button", name="Stop").click()
        await state_is(page, "stopped")
        await status(page).to_contain_text("The page closed the connection")
        assert await kept(page) == [0, 0]


async def test_a_stop_between_two_connections_fetches_the_end_at_once(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    asked: list[str] = []

    async def later(route: Route) -> None:
        asked.append(route.request.method)
        if asked == ["GET"]:
            await route.fulfill(status=503, headers={"Retry-After": "40"}, json={"detail": "Wait."})
        else:
            await route.continue_()

    async with proxied(numbered_server) as proxy:
        page = await open_page(f"{url_of(proxy)}/text")
        await page.route("**/streams/*", later)
        await ask(page, "Stop", 1000)
        await expect(answer(page)).to_have_text(words(3))
        async with page.expect_response(lambda response: response.status == 503):
            await proxy.drop()
        await state_is(page, "resuming")
        await page.get_by_role("button", name="Stop").click()
        await state_is(page, "stopped")
        await status(page).to_have_text(re.compile(r"^Stopped by you after \d+ tokens\. Resumed"))
        assert numbered("Stop", 1000).startswith(await text_of(page))
        assert asked == ["GET", "DELETE", "GET"]


async def test_a_server_that_stays_away_is_given_up_and_found_by_a_reload(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page("about:blank")
        await page.clock.install()
        await page.goto(f"{url_of(proxy)}/text")
        await ask(page, "Away", LONG)
        await expect(answer(page)).to_have_text(words(3))
        await proxy.down()
        await proxy.drop()
        await state_is(page, "resuming")
        await page.clock.fast_forward(60_000)
        await state_is(page, "lost")
        await status(page).to_have_text(
            re.compile(
                r"^The connection was lost after \d+ tokens; the text above is incomplete\.$"
            )
        )
        await proxy.up()
        await page.reload()
        hurry.now()
        await state_is(page, "finished")
        assert await text_of(page) == numbered("Away", LONG)


async def test_a_stop_before_the_head_of_the_stream_ends_it_when_it_has_a_name(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    held: asyncio.Queue[Route] = asyncio.Queue()
    await page.route("**/generate", held.put)
    await ask(page, "Early", 1000)
    route = await held.get()
    await page.get_by_role("button", name="Stop").click()
    async with page.expect_response("**/streams/*") as deleted:
        await route.continue_()
    assert (await deleted.value).request.method == "DELETE"
    await state_is(page, "stopped")


# --- reloads


async def test_a_reload_shows_the_prompt_and_the_whole_answer_once(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    await ask(page, "Again and again", LONG)
    await expect(answer(page)).to_have_text(words(20))
    await page.reload()
    await expect(page.locator(".asked")).to_have_text("Again and again")
    await expect(page.get_by_label("Prompt")).to_have_value("Again and again")
    await expect(answer(page)).to_have_text(words(20))
    await state_is(page, "streaming")
    await page.reload()  # once more
    hurry.now()
    await state_is(page, "finished")
    assert await text_of(page) == numbered("Again", LONG)
    await expect(page.locator(".turn")).to_have_count(1)
    await expect(page.locator("#tokens")).to_have_text(str(LONG))
    await status(page).to_have_text("Finished: the token limit was reached.")
    assert await kept(page) == [0, 0]
    await page.reload()
    await state_is(page, "ready")
    await expect(page.locator("#output")).to_be_empty()


async def test_an_answer_that_ended_meanwhile_is_read_after_a_reload(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    async with page.expect_response("**/generate") as sent:
        await ask(page, "Meanwhile", LONG)
    stream_id = (await sent.value).headers["x-stream-id"]
    await expect(answer(page)).to_have_text(words(3))
    await page.goto("about:blank")  # the tab keeps the session storage of the page
    hurry.now()
    other = await open_page(f"{numbered_server.url}/text")
    count = await other.evaluate(
        """async (id) => (await (await fetch(`streams/${id}`)).text()).split("data:").length - 1""",
        stream_id,
    )
    assert count == LONG + 1  # the stream has ended
    await page.goto(f"{numbered_server.url}/text")
    await state_is(page, "finished")
    assert await text_of(page) == numbered("Meanwhile", LONG)


async def test_figures_after_a_reload_are_the_servers_or_none(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    await ask(page, "Figures", LONG)
    await expect(answer(page)).to_have_text(words(20))
    await page.reload()
    await expect(page.locator("#tokens-source")).to_have_text("by this page")
    for name in ("first", "rate", "elapsed"):
        await expect(page.locator(f"#{name}")).to_have_text("–")  # noqa: RUF001 - no figure
    hurry.now()
    await state_is(page, "finished")
    for name in ("first", "rate", "tokens", "elapsed"):
        await expect(page.locator(f"#{name}-source")).to_have_text("by the server")


async def test_a_reload_in_a_chat_keeps_the_turns_before(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    await page.get_by_text("Chat turn").click()
    await ask(page, "Hello", 2)
    await state_is(page, "finished")
    await ask(page, "And", LONG)
    await expect(answer(page)).to_have_text(words(5))
    await page.reload()
    hurry.now()
    await state_is(page, "finished")
    await expect(page.get_by_label("Chat turn")).to_be_checked()
    await expect(page.locator(".turn")).to_have_text(
        ["Hello", re.compile(r"^\S+:0 \S+:1 $"), "And", re.compile(rf"^\S+:0 .* \S+:{LONG - 1} $")]
    )
    async with page.expect_request("**/generate") as asked:
        await ask(page, "Third", 1)
    messages = json.loads((await asked.value).post_data or "")["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2 + ["user"]
    assert [each["content"] for each in messages[::2]] == ["Hello", "And", "Third"]
    await state_is(page, "finished")


@pytest.mark.parametrize("code", [404, 410])
async def test_what_the_server_no_longer_has_is_said_plainly_and_forgotten(
    numbered_server: RunningServer, open_page: OpenPage, code: int
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    run = {"id": "gone", "mode": "continue", "asked": "Old", "messages": [], "limit": 9}
    await page.evaluate("(run) => sessionStorage.setItem('penstock.running', run)", json.dumps(run))

    async def gone(route: Route) -> None:
        await route.fulfill(status=code, json={"detail": "It is no longer kept."})

    if code == 410:
        await page.route("**/streams/*", gone)
    await page.reload()
    await state_is(page, "lost")
    await status(page).to_have_text("The server no longer has this answer.")
    await expect(page.locator(".asked")).to_have_text("Old")
    assert await kept(page) == [0, 0]


async def test_a_reload_before_the_server_is_back_waits_for_it(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    await ask(page, "Back", LONG)
    await expect(answer(page)).to_have_text(words(5))
    held: asyncio.Queue[Route] = asyncio.Queue()
    await page.route("**/streams/*", held.put)
    await page.reload()
    await (await held.get()).fulfill(status=503, json={"detail": "Draining."})
    await state_is(page, "resuming")
    await (await held.get()).abort()
    await (await held.get()).continue_()
    hurry.now()
    await state_is(page, "finished")
    assert await text_of(page) == numbered("Back", LONG)


async def test_markup_is_text_after_a_reload_too(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    markup = re.sub("[\x00\ufeff]", "", "\n".join(MARKUP))
    turns = [{"role": role, "content": markup} for role in ("user", "assistant")]
    run = {"id": "x", "mode": "chat", "asked": markup, "messages": turns, "limit": 9}
    event = {"token": markup, "index": 0, "finished": False}
    end = {"token": "", "index": 1, "finished": True, "finish_reason": "stop"}
    body = "".join(f"id: {n}\ndata: {json.dumps(each)}\n\n" for n, each in enumerate((event, end)))

    async def rest(route: Route) -> None:
        await route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    await page.route("**/streams/*", rest)
    await page.evaluate("(run) => sessionStorage.setItem('penstock.running', run)", json.dumps(run))
    await page.reload()
    await state_is(page, "finished")
    turns_seen = await page.locator(".turn").all_text_contents()
    assert turns_seen == [markup] * 4
    assert await page.locator("#output :not(.turn, .asked, .answer)").count() == 0


async def test_a_gap_between_two_connections_is_an_error(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    end = {"token": "", "index": 7, "finished": True, "finish_reason": "stop"}

    async def wrong(route: Route) -> None:
        if route.request.method == "GET":
            body = f"id: 7\ndata: {json.dumps(end)}\n\n"
            await route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})
        else:
            await route.continue_()

    await page.evaluate(
        "(run) => sessionStorage.setItem('penstock.running', run)",
        json.dumps({"id": "x", "mode": "continue", "asked": "A", "messages": [], "limit": 9}),
    )
    await page.route("**/streams/*", wrong)
    await page.reload()
    await state_is(page, "error")
    await status(page).to_contain_text("A part of the answer was lost on the way.")


# --- the browser's own EventSource

READ_WITH_EVENT_SOURCE = """(url) => new Promise((resolve) => {
  const [data, opened] = [[], []];
  const source = new EventSource(url);
  source.onopen = () => opened.push(data.length);
  source.onmessage = (event) => data.push([event.lastEventId, JSON.parse(event.data)]);
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) resolve({ data, opened });
  };
})"""


@pytest.mark.parametrize("query", ["", "?after=9"])
async def test_a_plain_event_source_reads_a_stream_and_stops_at_its_end(
    numbered_server: RunningServer, open_page: OpenPage, hurry: Hurry, query: str
) -> None:
    async with proxied(numbered_server) as proxy:
        page = await open_page(f"{url_of(proxy)}/text")
        async with page.expect_response("**/generate") as sent:
            await ask(page, "Source", LONG)
        stream_id = (await sent.value).headers["x-stream-id"]
        await expect(answer(page)).to_have_text(words(12))
        await page.goto(f"{url_of(proxy)}/text" + "/health")  # the same origin without our page
        statuses: list[int] = []
        page.on(
            "response",
            lambda response: (
                statuses.append(response.status) if "/streams/" in response.url else None
            ),
        )
        reading = asyncio.ensure_future(
            page.evaluate(READ_WITH_EVENT_SOURCE, f"/streams/{stream_id}{query}")
        )
        async with page.expect_response("**/streams/*"):
            pass
        await proxy.drop()  # in mid-stream: EventSource reconnects by itself
        hurry.now()
        seen = await reading
    first = 10 if query else 0
    assert [event_id for event_id, _ in seen["data"]] == [
        f"{stream_id}.{n}" for n in range(first, LONG + 1)
    ]
    assert [event["index"] for _, event in seen["data"]] == list(range(first, LONG + 1))
    text = "".join(event["token"] for _, event in seen["data"])
    assert text == numbered("Source", LONG)[len(numbered("Source", first)) :]
    assert statuses == [200, 200, 204]


# --- the client's resume.js by itself

WAITS = """async ([chance, limit]) => {
  const { Patience } = await import("./page/client/resume.js");
  let time = 1000;
  const patience = new Patience({ limit, now: () => time, chance: () => chance });
  const waits = [];
  for (let wait; (wait = patience.wait()) !== null; time += wait) waits.push(wait);
  return waits;
}"""

FACTS = """async () => {
  const { Patience, meaningOf } = await import("./page/client/resume.js");
  const { retryAfter } = await import("./page/client/responses.js");
  let time = 0;
  const make = (limit) => new Patience({ limit, now: () => time, chance: () => 1 });
  const held = make(10_000); // cut again and again, with long connections in between
  const firsts = [];
  for (let i = 0; i < 5; i++) { firsts.push(held.wait()); held.resumed(); time += 60_000; }
  held.progressed();
  firsts.push(held.wait());
  const asked = make(10_000);
  return {
    firsts,
    asked: [asked.wait(7000), asked.wait(11_000)],
    meanings: [200, 204, 400, 404, 408, 409, 410, 429, 500, 503].map(meaningOf),
    delays: [null, "5", "0", "soon", "", "-1", "1.5", "Thu, 01 Jan 1970 00:17:00 GMT"]
      .map((value) => retryAfter(value, 1_000_000)),
  };
}"""


async def test_the_page_waits_as_the_python_client_does(
    numbered_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{numbered_server.url}/text")
    assert await page.evaluate(WAITS, [1, 20_000]) == [250, 500, 1000, 2000, 4000, 5000, 5000, 2250]
    assert (await page.evaluate(WAITS, [0, 20_000]))[:4] == [125, 250, 500, 1000]
    facts = await page.evaluate(FACTS)
    assert facts["firsts"] == [250, 500, 1000, 2000, 4000, 250]
    assert facts["asked"] == [7000, None]
    assert facts["meanings"] == [
        *["rest", "no", "no", "forgotten", "later", "no", "forgotten", "later", "later", "later"]
    ]
    assert facts["delays"] == [0, 5000, 0, 0, 0, 0, 0, 20_000]
