"""The live view and the pipe, in Chromium against real servers, as an operator uses them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from tests.faults.proxy import Proxy
from tests.page.chat_steps import send, state_is
from tests.page.conftest import OpenPage
from tests.page.test_chat import found_nothing
from tests.page.test_page import CONTRASTS
from tests.page.waiting import until
from tests.support.keyed import Keys
from tests.support.npm import npm_package
from tests.support.raw import Connection, ask, cancel_stream, generate, open_stream, request
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def server(chromium: str) -> Iterator[RunningServer]:
    """Serve two streams at once, whose answers last until they are cancelled."""
    with serve(engine="mock", mock_interval=0.02, slots=2, engine_arg=["length=100000"]) as server:
        yield server


@pytest.fixture
def streams(server: RunningServer) -> Iterator[list[str]]:
    """Open three streams: one waits for the others. Return their ids."""
    opened = [open_stream(server.port, endless()) for _ in range(3)]
    yield [stream_id for _, stream_id in opened]
    for connection, stream_id in opened:
        connection.close()
        cancel_stream(server.port, stream_id)


def endless(**fields: Any) -> bytes:
    return generate(max_tokens=100_000, **fields)


def row(page: Page, stream_id: str) -> Locator:
    return page.locator("#rows tr").filter(has_text=stream_id[:8])


async def pipe_shows(place: Locator, kind: str) -> None:
    await expect(place.locator(".pipe")).to_have_attribute("data-pipe", kind)


NOTE_PIPES = """() => {
  window.pipes = [];
  const note = ({ target }) => window.pipes.push(target.dataset.pipe);
  new MutationObserver((records) => records.forEach(note))
    .observe(document.body, { attributes: true, subtree: true, attributeFilter: ["data-pipe"] });
}"""


async def note_pipes(page: Page) -> None:
    """Note from now on what pipes show: a state may be over before a test looks."""
    await page.evaluate(NOTE_PIPES)


async def pipe_has_shown(page: Page, kind: str) -> None:
    await until(page, "window.pipes.includes(arg)", kind)


# --- The live view


async def test_streams_are_seen_in_their_states_and_one_is_cancelled_by_keyboard(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    page = await open_page(f"{server.url}/live")
    await expect(page.locator("#server")).to_have_text("mock · ready")
    await expect(page.locator("#rows tr")).to_have_count(3)
    await pipe_shows(row(page, streams[0]), "flowing")
    await pipe_shows(row(page, streams[2]), "queued")
    await expect(row(page, streams[2])).to_contain_text("waiting, place 1")
    await expect(row(page, streams[2]).locator(".line i")).to_have_count(1)
    await expect(page.locator("#waiting")).to_have_text("1")
    await expect(page.locator("#running")).to_have_text("2 of 2")

    await page.get_by_role("searchbox").focus()
    for _ in range(2):  # past the filter, to the first row's button
        await page.keyboard.press("Tab")
    first = page.get_by_role("button", name=f"Cancel stream {streams[0][:8]}")
    await expect(first).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(row(page, streams[0])).to_contain_text("running")  # it asks once more
    await page.keyboard.press("Enter")
    # Both at once: the row leaves after 5 seconds.
    ended = row(page, streams[0]).filter(has_text="ended: cancelled")
    await pipe_shows(ended, "ended")
    await pipe_shows(row(page, streams[2]), "flowing")  # its turn has come
    await expect(page.locator("#rows tr")).to_have_count(2)  # the ended one leaves by itself


async def test_the_filters_show_what_they_say(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    page = await open_page(f"{server.url}/live")
    rows = page.locator("#rows tr")
    await expect(rows).to_have_count(3)
    await page.get_by_label("Show").select_option("Waiting")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text(streams[2][:8])
    await page.get_by_label("Show").select_option("All")
    await page.get_by_role("searchbox").fill(streams[1][:8])
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text(streams[1][:8])
    await page.get_by_role("searchbox").fill("no such stream")
    await expect(page.get_by_text("No stream matches.")).to_be_visible()


async def test_a_cut_a_frozen_and_a_killed_engine_are_seen_and_the_streams_go_on(
    open_page: OpenPage, chromium: str
) -> None:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=100000"]) as server:
        page = await open_page(f"{server.url}/live")
        connection, stream_id = open_stream(server.port, endless(resumable=True))
        await pipe_shows(row(page, stream_id), "flowing")
        connection.close()
        await pipe_shows(row(page, stream_id), "cut")
        await note_pipes(page)
        with Connection(server.port) as again:
            again.send(request("GET", f"/streams/{stream_id}"))
            await pipe_has_shown(page, "resumed")
            await expect(row(page, stream_id).locator(".joint")).to_have_count(1)
            await pipe_shows(row(page, stream_id), "flowing")
            os.kill(server.engine_pid(), signal.SIGSTOP)
            await pipe_shows(row(page, stream_id), "stalled")
            os.kill(server.engine_pid(), signal.SIGKILL)
            await expect(
                page.get_by_text("The engine ended and was started again.")
            ).to_be_visible()
            await pipe_shows(row(page, stream_id), "flowing")
            await expect(row(page, stream_id)).to_contain_text("resumed once")
            await expect(page.locator("#engine")).to_have_text("ready, 1 restart")
            marks = page.get_by_role("img", name="Tokens/s").locator(".mark.engine")
            assert await marks.count() >= 2
            cancel_stream(server.port, stream_id)


async def test_with_keys_the_page_asks_for_an_admin_key_and_keeps_it_until_the_tab_is_closed(
    open_page: OpenPage, chromium: str, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice", "admin")
    with serve(
        engine="mock", mock_interval=0.02, engine_arg=["length=100000"], keys=keys.path
    ) as server:
        page = await open_page(f"{server.url}/live")
        field = page.get_by_label("Admin key")
        await expect(field).to_be_focused()
        await field.fill(keys.keys["alice"])
        await field.press("Enter")
        await expect(page.get_by_text("This is no admin key.")).to_be_visible()
        await field.fill(keys.keys["admin"])
        await field.press("Enter")
        await expect(page.locator("#server")).to_have_text("mock · ready")
        await expect(field).to_be_hidden()
        connection, stream_id = open_stream(server.port, keys.generate("alice", max_tokens=100_000))
        with connection:
            await expect(row(page, stream_id).locator(".key")).to_have_text("alice")
            await page.reload()
            await expect(row(page, stream_id)).to_be_visible()
            assert keys.keys["admin"] not in page.url
            assert await page.evaluate("localStorage.length") == 0
            cancel = page.get_by_role("button", name=f"Cancel stream {stream_id[:8]}")
            await cancel.click()
            await page.get_by_role("button", name="Really").click()
            await expect(row(page, stream_id)).to_contain_text("ended: cancelled")


async def test_the_page_finds_its_server_again(open_page: OpenPage, server: RunningServer) -> None:
    async with Proxy(("127.0.0.1", server.port)) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}/live")
        await expect(page.locator("#server")).to_have_text("mock · ready")
        await proxy.down()
        await proxy.drop()
        await expect(page.locator("#server")).to_have_text("The server cannot be reached.")
        await expect(page.locator("body[data-stale]")).to_have_count(1)
        await proxy.up()
        await expect(page.locator("#server")).to_have_text("mock · ready")
        await expect(page.locator("body[data-stale]")).to_have_count(0)


# --- The pipe of a conversation


async def test_a_conversation_s_pipe_shows_the_queue_the_flow_a_cut_and_the_end(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    async with Proxy(("127.0.0.1", server.port)) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}")
        desk = page.locator(".desk")
        await pipe_shows(desk, "idle")
        await send(page, "Hello")
        await pipe_shows(desk, "queued")
        await expect(desk.locator(".line i")).to_have_count(2)  # one waits before it
        for stream_id in streams:
            cancel_stream(server.port, stream_id)
        await pipe_shows(desk, "flowing")
        await proxy.down()
        await proxy.drop()
        await pipe_shows(desk, "cut")
        await note_pipes(page)
        await proxy.up()
        await pipe_has_shown(page, "resumed")
        await expect(desk.locator(".joint")).to_have_count(1)
        await pipe_shows(desk, "flowing")
        os.kill(server.engine_pid(), signal.SIGSTOP)
        await pipe_shows(desk, "stalled")
        os.kill(server.engine_pid(), signal.SIGCONT)
        await pipe_shows(desk, "flowing")
        await page.get_by_role("button", name="Stop").click()
        await state_is(page, "stopped")
        await expect(desk.locator(".pipe")).to_have_attribute("data-end", "stopped")


async def test_with_reduced_motion_nothing_moves(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    page = await open_page(f"{server.url}/live", reduced_motion="reduce")
    await pipe_shows(row(page, streams[0]), "flowing")
    assert await page.evaluate("document.getAnimations().length") == 0


# --- How all pages look

PAGES = ("/", "/text", "/live", "/docs")


async def test_axe_finds_nothing_serious_on_any_page_in_light_and_dark(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    axe = (npm_package("axe-core", "4.11.0") / "axe.min.js").read_text(encoding="utf-8")
    ready = {"/": "#server", "/text": "#server", "/live": "#rows tr", "/docs": "#api details"}
    for path in PAGES:
        page = await open_page(server.url + path, bypass_csp=True)
        await expect(page.locator(ready[path]).first).not_to_be_empty()
        await page.evaluate(axe)
        await found_nothing(page)
        await page.emulate_media(color_scheme="dark")
        await found_nothing(page, rules=["color-contrast"])
        await page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_words_of_every_state_have_enough_contrast(
    server: RunningServer, open_page: OpenPage, streams: list[str], scheme: Any
) -> None:
    page = await open_page(f"{server.url}/live", color_scheme=scheme)
    for stream_id in streams:
        await expect(row(page, stream_id)).to_have_count(1)
    for tone in ("", "warn", "bad"):
        await page.evaluate(
            "(tone) => document.querySelectorAll('tr').forEach((row) => row.dataset.tone = tone)",
            tone,
        )
        contrasts: list[tuple[str, float]] = await page.evaluate(CONTRASTS)
        assert len(contrasts) > 10
        assert [(name, found) for name, found in contrasts if found < 4.5] == []


@pytest.mark.parametrize("path", PAGES)
async def test_nothing_scrolls_sideways_on_a_phone_and_at_200_percent(
    server: RunningServer, open_page: OpenPage, streams: list[str], path: str
) -> None:
    """640 by 400 is a laptop's screen at 200 % zoom."""
    for width, height in ((360, 640), (640, 400)):
        page = await open_page(server.url + path, viewport={"width": width, "height": height})
        if path == "/live":
            await expect(page.locator("#rows tr")).to_have_count(3)
        elif path == "/docs":
            await expect(page.locator("#api details").first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.context.close()


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_is_small(server: RunningServer, open_page: OpenPage, path: str) -> None:
    """The files are compressed on the way, as browsers ask for it."""
    page = await open_page("about:blank")
    urls: list[str] = []
    page.on("request", lambda asked: urls.append(asked.url))
    await page.goto(server.url + path, wait_until="networkidle" if path != "/live" else "load")
    files = {url.removeprefix(server.url) for url in urls if "/page/" in url}
    assert "/page/base.css" in files
    headers = ("Accept: text/html", "Accept-Encoding: gzip, deflate, br, zstd")
    answers = [ask(server.port, request("GET", each, *headers)) for each in [path, *files]]
    assert all(each.headers["content-encoding"] == "gzip" for each in answers)
    size = sum(len(each.body) for each in answers)
    print(f"{path}: {size / 1024:.0f} KiB in {len(answers)} files")
    assert size < 150 * 1024


async def test_print_shows_the_streams_and_no_controls(
    server: RunningServer, open_page: OpenPage, streams: list[str]
) -> None:
    page = await open_page(f"{server.url}/live")
    await expect(page.locator("#rows tr")).to_have_count(3)
    await page.emulate_media(media="print")
    await expect(page.get_by_role("navigation")).to_be_hidden()
    await expect(page.get_by_role("searchbox")).to_be_hidden()
    await expect(row(page, streams[0]).locator(".pipe")).to_be_visible()
    await expect(page.get_by_role("button")).to_have_count(0)


async def test_the_settings_show_the_model_s_own_values(
    open_page: OpenPage, server: RunningServer
) -> None:
    own = ask(server.port, request("GET", "/props")).json()["default_generation_settings"]["params"]
    page = await open_page(server.url)
    await page.get_by_role("button", name="Settings").click()
    for label, name in (("Temperature", "temperature"), ("Top p", "top_p"), ("Top k", "top_k")):
        await expect(page.get_by_label(label)).to_have_attribute("placeholder", f"{own[name]:g}")
