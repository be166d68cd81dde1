"""A conversation on the page, in Chromium against a real server, used as a person uses it."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from penstock.web.keys import new_key
from tests.faults.proxy import Proxy
from tests.page.chat_steps import (
    answer_with,
    answers,
    message,
    press,
    reload,
    say,
    send,
    state_is,
    status,
)
from tests.page.conftest import OpenPage
from tests.page.test_page import CONTRASTS, MARKUP
from tests.page.waiting import until
from tests.support.npm import npm_package
from tests.support.ports import free_port
from tests.support.raw import ask, cancel_stream, generate, open_stream, request
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def numbered(chromium: str) -> Iterator[RunningServer]:
    """Serve known answers: token i is "<first word of the first message>:<i> ", 30 in all."""
    arguments = ["numbered=true", "length=30"]
    with serve(engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def endless(chromium: str) -> Iterator[RunningServer]:
    """Serve answers that last until they are stopped."""
    arguments = ["numbered=true", "length=100000"]
    with serve(engine="mock", mock_interval=0.05, engine_arg=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def rill(chromium: str) -> Iterator[RunningServer]:
    """Serve the built-in model."""
    with serve() as server:
        yield server


# Notes where a button says "Copied": it says so for a moment only.
NOTE_COPIES = """() => {
  window.copied = [];
  const note = ({ target }) => {
    if (target.textContent !== "Copied") return;
    window.copied.push(target.closest("figure.code") ? "code" : "turn");
  };
  new MutationObserver((records) => records.forEach(note))
    .observe(document.getElementById("turns"), { subtree: true, childList: true });
}"""


def numbers(word: str, count: int) -> str:
    return "".join(f"{word}:{n} " for n in range(count)).strip()


async def until_tokens(page: Page, count: int) -> None:
    """Wait until the last answer has so many tokens."""
    await expect(answers(page).last).to_have_text(re.compile(rf"(\S+:\d+\s*){{{count}}}"))


async def messages_of(page: Page, action: Any) -> list[dict[str, str]]:
    """Return the messages of the request that an action causes."""
    async with page.expect_request("**/chat/completions") as asked:
        await action
    fields: dict[str, Any] = json.loads((await asked.value).post_data or "")
    messages: list[dict[str, str]] = fields["messages"]
    return messages


# --- Talking


async def test_enter_sends_shift_enter_breaks_the_line_and_speakers_have_names(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await expect(message(page)).to_be_focused()
    await page.keyboard.type("Lake")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("and river")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
    you, model = page.get_by_role("article", name="You"), page.get_by_role("article", name="mock")
    await expect(you.locator(".text")).to_have_text("Lake\nand river")
    await expect(model.locator(".text")).to_have_text(numbers("Lake", 30))
    await expect(model.locator(".note")).to_have_text(
        re.compile(r"^30 tokens · [\d.]+ tokens/s · first after [\d.]+ m?s$")
    )
    await expect(message(page)).to_have_value("")
    await expect(message(page)).to_be_focused()
    live = page.locator("[aria-live], [role=status], [role=log], [role=alert], output")
    assert await live.evaluate_all("(all) => all.map((one) => one.id)") == ["server", "status"]


async def test_escape_stops_the_answer_on_the_server_and_keeps_its_text(
    endless: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(endless.url)
    await send(page, "Stop")
    await until_tokens(page, 3)
    async with page.expect_response("**/streams/*") as deleted:
        await page.keyboard.press("Escape")
    await state_is(page, "stopped")
    assert (await (await deleted.value).json())["finish_reason"] == "cancelled"
    text = await answers(page).text_content() or ""
    assert numbers("Stop", 1000).startswith(text.strip())
    await expect(page.locator(".assistant .note")).to_have_text(
        re.compile(r"^Stopped by you after \d+ tokens\.$")
    )
    await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_the_model_gets_the_conversation_the_system_prompt_and_the_sampling(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("System prompt").fill("Be brief.")
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Max tokens").fill("2")
    await page.get_by_role("button", name="Done").click()
    await say(page, "One")
    async with page.expect_request("**/chat/completions") as asked:
        await say(page, "Two")
    assert (await asked.value).post_data_json == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Be:0 Be:1 "},
            {"role": "user", "content": "Two"},
        ],
        "temperature": 0.5,
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await expect(page.locator(".note").last).to_contain_text("token limit reached")


async def test_a_value_that_the_server_refuses_is_marked_in_the_settings(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Temperature").fill("9")
    await page.get_by_role("button", name="Done").click()
    await send(page, "Hot")
    await expect(page.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#temperature-hint")).to_contain_text("less than or equal to 2")
    await page.get_by_label("Temperature").fill("1")
    await page.get_by_role("button", name="Done").click()
    await press(page, "Regenerate")
    await expect(answers(page)).to_have_text(numbers("Hot", 30))


async def test_an_answer_has_versions_and_a_message_can_be_edited(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await say(page, "First")
    await press(page, "Regenerate")
    await expect(page.locator(".version")).to_have_text("2/2")
    await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
    await press(page, "Earlier version")
    await expect(page.locator(".version")).to_have_text("1/2")
    await say(page, "More")

    await press(page, "Edit", 0)
    await page.get_by_label("Your message").fill("Other")
    asked = await messages_of(page, page.keyboard.press("Enter"))
    assert asked == [{"role": "user", "content": "Other"}]
    await expect(answers(page)).to_have_text([numbers("Other", 30)])
    await press(page, "Earlier version", 0)
    # The branch is as it was left: the first version of the answer, and what came after it.
    await expect(page.locator(".turn .text")).to_have_text(
        ["First", numbers("First", 30), "More", numbers("First", 30)]
    )
    await reload(page)
    await expect(page.locator(".version")).to_have_text(["1/2", "1/2"])


async def test_an_answer_goes_on_where_it_ended(rill: RunningServer, open_page: OpenPage) -> None:
    page = await open_page(rill.url)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Max tokens").fill("8")
    await page.get_by_label("Temperature").fill("0")  # otherwise the answer might end by chance
    await page.get_by_role("button", name="Done").click()
    before = await say(page, "Tell me a story about a river.")
    async with page.expect_request("**/chat/completions") as asked:
        await press(page, "Continue")
    fields = json.loads((await asked.value).post_data or "")
    assert fields["continue_final_message"] is True
    assert fields["messages"][-1]["role"] == "assistant"
    await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
    after = await answers(page).text_content() or ""
    assert after.startswith(before)
    assert len(after) > len(before)


async def test_a_turn_is_deleted_with_what_follows_it_after_a_second_press(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await say(page, "Keep")
    await say(page, "Drop")
    await press(page, "Delete", 2)
    await expect(page.locator(".turn")).to_have_count(4)
    await press(page, "Really delete?", 0)
    await expect(page.locator(".turn .text")).to_have_text(["Keep", numbers("Keep", 30)])
    await reload(page)
    await expect(page.locator(".turn .text")).to_have_text(["Keep", numbers("Keep", 30)])


async def test_copy_takes_the_markdown_of_an_answer_and_the_text_of_its_code(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url, permissions=["clipboard-read", "clipboard-write"])
    text = "Some **bold** text\n\n```py\nprint(1)\n```\n"
    await answer_with(page, *({"content": text[at : at + 3]} for at in range(0, len(text), 3)))
    await say(page, "Code")
    await page.evaluate(NOTE_COPIES)
    await page.locator("figure").get_by_role("button", name="Copy").click()
    await until(page, "window.copied.length === 1")
    assert await page.evaluate("navigator.clipboard.readText()") == "print(1)"
    await press(page, "Copy")
    await until(page, "window.copied.length === 2")
    assert await page.evaluate("window.copied") == ["code", "turn"]
    assert await page.evaluate("navigator.clipboard.readText()") == text


async def test_reasoning_is_folded_and_tool_calls_are_shown(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    call = {"index": 0, "id": "c1", "type": "function"}
    await answer_with(
        page,
        {"role": "assistant", "reasoning_content": "The river "},
        {"reasoning_content": "is *long*."},
        {"content": "Let me look."},
        {"tool_calls": [{**call, "function": {"name": "depth", "arguments": '{"of":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"lake"}'}}]},
    )
    assert await say(page, "How deep?") == "Let me look."
    thoughts = page.locator(".thoughts")
    await expect(thoughts).to_be_hidden()
    await page.get_by_text("Reasoning").click()
    await expect(thoughts).to_have_text("The river is long.")
    await page.get_by_text("Tool call depth").click()
    await expect(page.locator(".call pre")).to_have_text('{"of":"lake"}')
    await reload(page)
    await expect(page.locator(".thoughts")).to_have_text("The river is long.")
    await expect(page.locator(".call pre")).to_have_text('{"of":"lake"}')


async def test_markup_of_the_model_stays_text_however_it_is_split(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await expect(page.locator("#server")).to_have_text("mock · ready")
    text = "\n\n".join(MARKUP)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for piece in (1, 7, 100_000):
        parts = [text[at : at + piece] for at in range(0, len(text), piece)]
        call = {"index": 0, "function": {"name": text, "arguments": text}}
        await answer_with(
            page,
            {"reasoning_content": text},
            *({"content": part} for part in parts),
            {"tool_calls": [call]},
        )
        await say(page, re.sub("[\x00\ufeff]", "", text))
        inside = await page.locator(".turn *").evaluate_all(
            "(all) => [...new Set(all.map((one) => one.localName))].sort()"
        )
        assert set(inside) <= {
            *("h2", "h3", "div", "p", "pre", "span", "code", "a", "em", "strong", "button"),
            *(
                "details",
                "summary",
                "ul",
                "ol",
                "li",
                "figure",
                "figcaption",
                "hr",
                "br",
                "blockquote",
            ),
        }
        links = await page.locator(".turn a[href]").evaluate_all(
            "(all) => all.map((one) => one.protocol)"
        )
        assert set(links) <= {"http:", "https:", "mailto:"}
    assert {url.rpartition("/")[2] for url in requests} <= {"completions", "favicon.svg"}
    title = await page.locator("#conversations a").first.text_content()
    assert title == MARKUP[0].strip()[:60]


async def test_the_transcript_follows_the_answer_unless_the_reader_scrolled_up(
    endless: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(endless.url, viewport={"width": 900, "height": 480})
    transcript = page.locator("#transcript")
    to_end = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight"
    await send(page, "Scroll\n" + "line\n" * 40)
    await until_tokens(page, 3)
    assert await transcript.evaluate("(box) => box.scrollTop") > 100
    assert await transcript.evaluate(to_end) < 16
    await transcript.evaluate("(box) => { box.scrollTop = 10 }")
    await until_tokens(page, 20)
    assert await transcript.evaluate("(box) => box.scrollTop") == 10
    await page.keyboard.press("Escape")
    await state_is(page, "stopped")


# --- Cuts, reloads, other tabs, dead servers


async def test_a_reload_goes_on_with_the_answer_and_shows_each_token_once(
    endless: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(endless.url)
    await send(page, "Reload")
    await until_tokens(page, 5)
    await reload(page)
    await until_tokens(page, 15)
    await page.keyboard.press("Escape")
    await state_is(page, "stopped")
    text = (await answers(page).text_content() or "").strip()
    assert text == numbers("Reload", text.count(":"))
    await reload(page)
    await expect(answers(page)).to_have_text(text)


async def test_a_second_tab_follows_the_stream_and_can_stop_it(
    endless: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(endless.url)
    other = await page.context.new_page()
    await other.goto(endless.url)
    await send(page, "Two")
    await until_tokens(page, 3)
    await other.get_by_role("link", name="Two").click()
    await until_tokens(other, 8)
    await send(page, "ignored while the answer runs")
    await other.get_by_role("button", name="Stop").click()
    for tab in (page, other):
        await expect(tab.locator(".turn").last).to_have_attribute("data-state", "stopped")
    assert await answers(page).text_content() == await answers(other).text_content()

    # A tab that shows the conversation already sees the next answer begin.
    await message(other).fill("Again")
    await other.keyboard.press("Enter")
    await expect(answers(page)).to_have_count(2)
    await until_tokens(page, 3)
    await page.keyboard.press("Escape")
    await expect(other.locator(".turn").last).to_have_attribute("data-state", "stopped")


async def test_a_cut_stream_goes_on_in_place(endless: RunningServer, open_page: OpenPage) -> None:
    async with Proxy(("127.0.0.1", endless.port)) as proxy:
        page = await open_page(f"http://127.0.0.1:{proxy.address[1]}")
        await send(page, "Cut")
        await until_tokens(page, 3)
        await proxy.drop()
        await status(page).to_contain_text("Resumed once.")
        seen = (await answers(page).text_content() or "").count(":")
        await until_tokens(page, seen + 3)
        await page.keyboard.press("Escape")
        await state_is(page, "stopped")
        text = (await answers(page).text_content() or "").strip()
        assert text == numbers("Cut", text.count(":"))


async def test_a_conversation_survives_the_death_of_the_server(open_page: OpenPage) -> None:
    arguments: dict[str, Any] = {
        "engine": "mock",
        "port": free_port(),
        "mock_interval": 0.05,
        "engine_arg": ["numbered=true", "length=1000"],
    }
    with serve(**arguments) as first:
        page = await open_page(first.url)
        await send(page, "Survive")
        await until_tokens(page, 5)
        # The page keeps a running answer once a second.
        kept = """(await (await import("/page/store.js")).loadConversation(
          location.hash.slice(1))).turns.some(({ role, text }) => role === "assistant" && text)"""
        await until(page, kept)
        first.process.kill()
        first.process.wait()
        await state_is(page, "resuming")
    with serve(**arguments):
        await expect(page.locator(".turn").last).to_have_attribute("data-state", "lost")
        await expect(page.locator(".assistant .note")).to_have_text(
            "The server no longer has the rest of this answer."
        )
        text = await answers(page).text_content() or ""
        assert text.strip() == numbers("Survive", text.count(":"))
        await reload(page)
        await expect(answers(page)).to_have_text(text)
        await press(page, "Regenerate")
        await until_tokens(page, 3)


# --- Many conversations


async def test_conversations_are_listed_found_and_deleted(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    entries = page.locator("#conversations a")
    for text in ("Lake", "River"):
        await page.get_by_role("button", name="New conversation").click()
        await say(page, text)
    await expect(entries).to_have_text(["River", "Lake"])
    await expect(page.locator("#conversations [aria-current]")).to_have_text("River")
    await page.get_by_label("Search").fill("lake:29")  # in the answer
    await expect(entries).to_have_text(["Lake"])
    await entries.click()
    await expect(page.locator(".turn .text")).to_have_text(["Lake", numbers("Lake", 30)])
    await page.get_by_label("Search").fill("")
    await page.get_by_role("button", name="Delete River").click()
    await page.get_by_role("button", name="Really delete River?").click()
    await expect(entries).to_have_text(["Lake"])
    await expect(page.locator(".turn")).to_have_count(2)
    await page.go_back()
    await reload(page)
    await expect(entries).to_have_text(["Lake"])


async def test_an_export_is_imported_again(
    numbered: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    page = await open_page(numbered.url)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("System prompt").fill("Be kind.")
    await page.get_by_role("button", name="Done").click()
    await say(page, "Export\n## me")
    await press(page, "Regenerate")
    await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
    turns = await page.locator(".turn .text").all_text_contents()
    for button, versions in (("Save as JSON", 2), ("Save as Markdown", 1)):
        async with page.expect_download() as downloading:
            await page.get_by_role("button", name=button, exact=True).click()
        download = await downloading.value
        path = tmp_path / download.suggested_filename
        await download.save_as(path)
        other = await open_page(numbered.url)
        await other.locator("#file").set_input_files(path)
        await expect(other.locator(".turn .text")).to_have_text([each.strip() for each in turns])
        await expect(other.locator(".version")).to_have_text(["2/2"] if versions == 2 else [])
        await other.get_by_role("button", name="Settings").click()
        await expect(other.get_by_label("System prompt")).to_have_value("Be kind.")
        await other.get_by_role("button", name="Done").click()
    assert path.suffix == ".md"
    assert "\n## mock\n" in path.read_text()
    broken = tmp_path / "broken.json"
    broken.write_text('{"penstock": 1, "conversations": 3}')
    await other.locator("#file").set_input_files(broken)
    await status(other).to_have_text("The file is not an export of this page.")


# --- Keys, the queue, what is loaded


async def test_a_required_key_is_asked_for_and_never_kept_in_the_database(
    open_page: OpenPage,
) -> None:
    key = new_key()
    with serve(engine="mock", mock_interval=0, api_key=key) as server:
        page = await open_page(server.url)
        await send(page, "Hello")
        await expect(page.get_by_label("API key")).to_be_focused()
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator(".turn").last).to_have_attribute("data-state", "finished")
        await reload(page)
        await expect(page.get_by_label("API key")).to_have_value(key)
        everything = """async () => {
          const { listConversations, loadConversation } = await import("/page/store.js");
          const metas = await listConversations();
          return JSON.stringify(await Promise.all(metas.map(({ id }) => loadConversation(id))));
        }"""
        assert key not in await page.evaluate(everything)
        assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


async def test_a_queued_message_shows_its_position(chromium: str, open_page: OpenPage) -> None:
    with serve("--slots=1", engine="mock", mock_interval=0.01, engine_arg=["hang_at=3"]) as server:
        holder, stream_id = open_stream(server.port, generate())
        with holder:
            page = await open_page(server.url)
            await send(page, "Wait")
            await status(page).to_contain_text("Waiting in the queue: position 1")
            cancel_stream(server.port, stream_id)
            await state_is(page, "streaming")
            await page.keyboard.press("Escape")
            await state_is(page, "stopped")


async def test_the_page_is_small_and_loads_nothing_from_another_host(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page("about:blank")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    await page.goto(numbered.url)
    await say(page, "Hello")
    assert all(url.startswith((numbered.url, "blob:")) for url in urls)
    files = {url for url in urls if "/page/" in url}
    assert "chat.js" in {url.rpartition("/")[2] for url in files}
    bodies = [
        ask(numbered.port, request("GET", url.removeprefix(numbered.url), "Accept-Encoding: gzip"))
        for url in files
    ]
    assert sum(len(response.body) for response in bodies) < 75 * 1024
    assert sum(len(gzip.decompress(response.body)) for response in bodies) < 200 * 1024


# --- How it looks


async def test_axe_finds_nothing_serious(numbered: RunningServer, open_page: OpenPage) -> None:
    axe = (npm_package("axe-core", "4.11.0") / "axe.min.js").read_text(encoding="utf-8")
    text = (
        "# Head\n\n- [x] a `b`\n\n| a | b |\n|---|---|\n| [l](https://example.org) | $x_1$ |\n"
        "\n```py\ndef f(): return 1 # c\n```\n"
    )
    phone = {"width": 360, "height": 640}
    for options in ({}, {"color_scheme": "dark"}, {"viewport": phone}):
        page = await open_page(numbered.url, bypass_csp=True, **options)
        await page.evaluate(axe)
        await answer_with(page, {"reasoning_content": "Hm."}, {"content": text})
        await found_nothing(page)
        await say(page, "Hello")
        await page.get_by_text("Reasoning").click()
        await press(page, "Regenerate")
        await expect(page.locator(".version")).to_have_text("2/2")
        await state_is(page, "finished")
        await found_nothing(page)
        await page.get_by_role("button", name="Settings").click()
        await found_nothing(page)


async def found_nothing(page: Page, rules: list[str] | None = None) -> None:
    """Run axe, with all of its rules or only with these."""
    found: list[dict[str, Any]] = await page.evaluate(
        "async (runOnly) => (await axe.run(runOnly ? { runOnly } : {})).violations", rules
    )
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []


@pytest.mark.parametrize(
    ("width", "height"), [(360, 640), (320, 568), (640, 360), (640, 400)], ids=str
)
async def test_stop_is_in_reach_and_nothing_scrolls_sideways_on_small_screens(
    endless: RunningServer, open_page: OpenPage, width: int, height: int
) -> None:
    """640 by 400 is a laptop's screen at 200 % zoom."""
    page = await open_page(endless.url, viewport={"width": width, "height": height})
    await send(page, "W" * 300 + "\n" * 30)
    await expect(answers(page)).to_contain_text("WW:1")
    await message(page).fill("A long draft\n" * 30)
    await expect(page.get_by_role("button", name="Stop")).to_be_in_viewport(ratio=1)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        await page.locator("#transcript").evaluate("(box) => box.scrollWidth - box.clientWidth")
        <= 0
    )
    assert await page.locator("#transcript").evaluate("(box) => box.clientHeight") >= 60
    await page.get_by_role("button", name="Stop").click()
    await state_is(page, "stopped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_has_enough_contrast_in_every_state(
    numbered: RunningServer, open_page: OpenPage, scheme: Any
) -> None:
    page = await open_page(numbered.url, color_scheme=scheme)
    code = "Hi\n\n```py\n# c\ndef f(): return 'a' + 1\n```\n> quote <b>\n"
    await answer_with(page, {"content": code})
    await say(page, "Hello")
    for state in (
        "ready",
        "waiting",
        "streaming",
        "resuming",
        "finished",
        "stopped",
        "error",
        "lost",
    ):
        await page.evaluate(
            """(state) => {
              document.body.dataset.state = state;
              document.querySelector(".turn:last-child").dataset.state = state;
            }""",
            state,
        )
        contrasts: list[tuple[str, float]] = await page.evaluate(CONTRASTS)
        assert {"status", "text", "note", "send", "comment", "keyword"} <= {
            name for name, _ in contrasts
        }
        assert [pair for pair in contrasts if pair[1] < 4.5] == [], state


async def test_print_shows_the_whole_conversation_and_no_controls(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    for text in ("One", "Two", "Three"):
        await say(page, text)
    await page.emulate_media(media="print")
    for hidden in ("#composer", "#list", "header", ".tools >> nth=0"):
        await expect(page.locator(hidden)).to_be_hidden()
    for turn in await page.locator(".turn .text").all():
        await expect(turn).to_be_visible()
    # Nothing scrolls, so nothing is cut off.
    assert (
        await page.locator("#transcript").evaluate("(box) => box.scrollHeight - box.clientHeight")
        <= 0
    )


async def test_a_text_from_right_to_left_is_shown_so(
    numbered: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(numbered.url)
    await answer_with(page, {"content": "מה שלומך?\n\n```py\nx = 1\n```\n"})
    await say(page, "שלום?")
    for box in (page.locator(".user .text"), answers(page)):
        assert await box.evaluate("(box) => getComputedStyle(box).direction") == "rtl"
    assert (
        await page.locator("figure").evaluate("(box) => getComputedStyle(box).direction") == "ltr"
    )
