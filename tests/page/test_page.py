"""The page in Chromium against a real server, used as a person uses it."""

import itertools
import json
import re
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Route, expect

from penstock.engine.mock import TEXT, split_words
from penstock.web.keys import new_key
from tests.page.conftest import OpenPage
from tests.support.raw import ask, generate, open_stream, request
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

NUM_TOKENS = len(split_words(TEXT))

# Records in order what a user could see: the states of the page and the growing answer.
RECORD = """() => {
  window.states = [];
  window.texts = [];
  const answer = () => document.querySelector(".turn:last-child .answer")?.textContent ?? "";
  new MutationObserver(() => window.states.push(document.body.dataset.state))
    .observe(document.body, { attributeFilter: ["data-state"] });
  new MutationObserver(() => answer() === window.texts.at(-1) || window.texts.push(answer()))
    .observe(document.getElementById("output"),
      { subtree: true, childList: true, characterData: true });
}"""


def state_is(page: Page, state: str) -> Any:
    return expect(page.locator("body")).to_have_attribute("data-state", state)


def answer(page: Page) -> Locator:
    return page.locator(".answer").last


def words(at_least: int) -> re.Pattern[str]:
    return re.compile(rf"(\S+\s+){{{at_least}}}")


async def text_of(page: Page) -> str:
    return await answer(page).text_content() or ""


def frames(*tokens: str, end: dict[str, Any] | None = None) -> str:
    """Return a streamed body with these tokens."""
    events: list[dict[str, Any]] = [
        {"token": token, "index": index, "finished": False} for index, token in enumerate(tokens)
    ]
    if end is not None:
        events.append({"token": "", "index": len(tokens), "finished": True, **end})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


async def answer_with(page: Page, body: str, status: int = 200, kind: str = "event-stream") -> None:
    """Answer the page's next requests with this body instead of passing them to the server."""
    type_ = "text/event-stream" if kind == "event-stream" else kind

    async def fulfil(route: Route) -> None:
        await route.fulfill(status=status, body=body, headers={"Content-Type": type_})

    await page.route("**/generate", fulfil)


async def test_streamed_tokens_appear_one_by_one(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text")
    await page.evaluate(RECORD)
    await page.get_by_label("Prompt").fill("Tell me about water.")
    await page.get_by_label("Max tokens").fill("40")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")

    assert await page.evaluate("window.states") == ["waiting", "streaming", "finished"]
    texts = [text for text in await page.evaluate("window.texts") if text]
    assert texts[-1] == "".join(split_words(TEXT)[:40])
    assert all(
        late.startswith(early) and late != early for early, late in itertools.pairwise(texts)
    )
    # Usually there are 40, and the first has a word, but a busy machine merges some.
    assert len(split_words(texts[0])) <= 20
    assert len(texts) > 5
    await expect(page.locator("#output")).to_have_text("Tell me about water." + texts[-1])


async def test_figures_are_measured_here_while_tokens_come_and_the_servers_own_at_the_end(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text")
    async with page.expect_response("**/generate") as sent:
        await page.get_by_role("button", name="Stream").click()
    for name in ("first", "rate", "tokens", "elapsed"):
        await expect(page.locator(f"#{name}")).to_have_text(re.compile(r"[1-9]"))
        await expect(page.locator(f"#{name}-source")).to_have_text("by this page")
    await page.get_by_role("button", name="Stop").click()
    await state_is(page, "stopped")
    end = json.loads((await (await sent.value).text()).strip().rpartition("data: ")[2])
    await expect(page.locator("#tokens")).to_have_text(str(end["usage"]["completion_tokens"]))
    await expect(page.locator("#tokens-source")).to_have_text("by the server")
    await expect(page.locator("#rate")).to_have_text(f"{end['timings']['tokens_per_second']:.1f}")
    await expect(page.locator("#tokens-prompt")).to_have_text("· prompt 4")
    for name in ("first", "rate", "elapsed"):
        await expect(page.locator(f"#{name}-source")).to_have_text("by the server")


async def test_a_stopped_stream_is_cancelled_on_the_server_and_keeps_its_text(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text")
    async with page.expect_response("**/generate") as sent:
        await page.get_by_role("button", name="Stream").click()
    await expect(answer(page)).to_have_text(words(3))
    async with page.expect_response("**/streams/*") as deleted:
        await page.get_by_role("button", name="Stop").click()
    await state_is(page, "stopped")

    assert (await deleted.value).ok
    body = await (await sent.value).text()
    assert json.loads(body.strip().rpartition("data: ")[2])["finish_reason"] == "cancelled"
    await expect(page.locator("#status")).to_have_text(
        re.compile(r"^Stopped by you after \d+ tokens\.$")
    )
    assert TEXT.startswith(await text_of(page))


async def test_a_stop_that_the_server_does_not_answer_hangs_up(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text")

    async def refuse(route: Route) -> None:
        await route.abort()

    await page.route("**/streams/*", refuse)
    await page.get_by_role("button", name="Stream").click()
    await expect(answer(page)).to_have_text(words(2))
    await page.get_by_role("button", name="Stop").click()
    await state_is(page, "stopped")
    await expect(page.locator("#status")).to_contain_text("The page closed the connection")


async def test_complete_brings_the_whole_answer_at_once(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.evaluate(RECORD)
    await page.get_by_role("button", name="Complete").click()
    await state_is(page, "finished")
    assert await page.evaluate("window.states") == ["waiting", "finished"]
    assert [text for text in await page.evaluate("window.texts") if text] == [TEXT]
    await expect(page.locator("#tokens")).to_have_text(str(NUM_TOKENS))


async def test_an_answer_that_reached_its_limit_says_so(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.get_by_label("Max tokens").fill("5")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")
    await expect(page.locator("#status")).to_have_text("Finished: the token limit was reached.")
    await expect(page.locator("#tokens")).to_have_text("5")


async def test_clear_empties_the_output_and_the_figures(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.get_by_role("button", name="Complete").click()
    await state_is(page, "finished")
    await page.get_by_role("button", name="Clear").click()
    await state_is(page, "ready")
    await expect(page.locator("#output")).to_be_empty()
    await expect(page.locator("#tokens")).to_have_text("–")  # noqa: RUF001 - no figure
    await expect(page.get_by_label("Prompt")).to_have_value("Once upon a time")


async def test_every_sampling_control_reaches_the_server(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    controls = {"Max tokens": "7", "Temperature": "0", "Top p": "1", "Top k": "0", "Seed": "42"}
    for label, value in controls.items():
        await page.get_by_label(label).fill(value)
    await page.get_by_label("Stop at").fill("END\n\\n\\n\n")
    async with page.expect_request("**/generate") as asked:
        await page.get_by_role("button", name="Stream").click()
    assert (await asked.value).post_data_json == {
        "prompt": "Once upon a time",
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 1,
        "top_k": 0,
        "seed": 42,
        "stop": ["END", "\n\n"],
        "queue_events": True,
        "stream": True,
        "resumable": True,
    }
    await state_is(page, "finished")


async def test_a_chat_goes_on_until_it_is_cleared(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.get_by_text("Chat turn").click()
    await page.get_by_label("Max tokens").fill("2")

    async def say(text: str) -> list[dict[str, str]]:
        await page.get_by_label("Prompt").fill(text)
        async with page.expect_request("**/generate") as asked:
            await page.get_by_role("button", name="Stream").click()
        await state_is(page, "finished")
        messages: list[dict[str, str]] = json.loads((await asked.value).post_data or "")["messages"]
        return messages

    first = {"role": "user", "content": "Hello"}
    reply = {"role": "assistant", "content": " Water comes"}
    assert await say("Hello") == [first]
    await expect(page.get_by_label("Prompt")).to_have_value("")
    assert await say("And?") == [first, reply, {"role": "user", "content": "And?"}]
    await expect(page.locator(".turn")).to_have_text(
        ["Hello", "Water comes", "And?", "Water comes"]
    )
    await page.get_by_role("button", name="Clear").click()
    assert await say("Hello") == [first]


async def test_a_field_out_of_bounds_is_refused_in_the_servers_words_beside_the_field(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.get_by_label("Max tokens").fill("0")
    async with page.expect_response("**/generate") as refused:
        await page.get_by_role("button", name="Stream").click()
    await state_is(page, "error")
    assert (await refused.value).status == 422
    problem = await (await refused.value).json()
    await expect(page.locator("#status")).to_have_text(problem["detail"])
    await expect(page.get_by_label("Max tokens")).to_have_attribute("aria-invalid", "true")

    await page.get_by_label("Max tokens").fill("3")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")
    await expect(page.locator("[aria-invalid]")).to_have_count(0)
    await expect(page.locator("#max_tokens-hint")).to_have_text("1 or more")


async def test_an_engine_that_fails_midway_is_an_error_in_its_own_words(
    open_page: OpenPage,
) -> None:
    with serve(engine="mock", mock_interval=0.01, engine_arg=["fail_at=6"]) as server:
        page = await open_page(f"{server.url}/text")
        await page.get_by_role("button", name="Stream").click()
        await state_is(page, "error")
        await expect(page.locator("#status")).to_have_text(
            "The mock engine was told to fail at this token. The text above is incomplete."
        )
        assert len(split_words(await text_of(page))) == 6
        await page.get_by_role("button", name="Complete").click()
        await expect(page.locator("#status")).to_have_text(
            "The mock engine was told to fail at this token."
        )


async def test_a_lost_connection_looks_like_one_and_not_like_an_end(open_page: OpenPage) -> None:
    with serve(engine="mock", mock_interval=0.05, engine_arg=["length=1000"]) as server:
        page = await open_page("about:blank")
        await page.clock.install()
        await page.goto(f"{server.url}/text")
        await expect(page.locator("#server")).to_have_text("mock · ready")
        await page.get_by_role("button", name="Stream").click()
        await expect(answer(page)).to_have_text(words(3))
        server.process.kill()
        await state_is(page, "resuming")
        await page.clock.fast_forward(60_000)
        await state_is(page, "lost")
        num_tokens = len(split_words(await text_of(page)))
        await expect(page.locator("#status")).to_have_text(
            f"The connection was lost after {num_tokens} tokens; the text above is incomplete."
        )
        await expect(page.locator("#tokens-source")).to_have_text("by this page")
        await expect(page.locator("#server")).to_have_text("not reachable")
        await page.get_by_role("button", name="Stream").click()
        await expect(page.locator("#status")).to_have_text(re.compile("cannot be reached"))


async def test_a_body_that_just_ends_is_a_lost_connection(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await answer_with(page, frames(" one", " two"))
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "lost")
    await expect(page.locator("#status")).to_contain_text("lost after 2 tokens")


async def test_an_answer_that_nobody_understands_is_an_error(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await answer_with(page, "data: {nonsense\n\n")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "error")
    await answer_with(page, "<h1>Bad gateway</h1>", status=502, kind="text/html")
    await page.get_by_role("button", name="Stream").click()
    await expect(page.locator("#status")).to_have_text(
        "The server returned status 502 without a reason."
    )


async def test_a_cancel_by_somebody_else_is_not_called_ours(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await answer_with(page, frames(" one", end={"finish_reason": "cancelled"}))
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "stopped")
    await expect(page.locator("#status")).to_have_text(
        "Cancelled by the server or another reader after 1 token."
    )


PAYLOADS = [
    "<img src=x onerror=alert(1)>",
    "<img src=x:x onerror\n=\nalert(1)//",
    "<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script src=//example.invalid/x.js></script>",
    "<svg/onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)>",
    "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "<style>*{display:none}@import'//example.invalid/x'</style>",
    "<link rel=stylesheet href=//example.invalid/x.css>",
    "<a href='javascript:alert(1)'>x</a>",
    "<form action=javascript:alert(1)><button autofocus>x</button></form>",
    "<details open ontoggle=alert(1)>x</details>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "<base href=//example.invalid/><meta http-equiv=refresh content='0;url=//example.invalid'>",
    "[a](javascript:alert(1)) ![b](https://example.invalid/beacon.png)",
    "&lt;b&gt; &#60;img src=x onerror=alert(1)&#62; \\u003cimg src=x onerror=alert(1)\\u003e",
    "\u202e\u2028\u2029<textarea autofocus onfocus=alert(1)>\x00\ufeff",
]
# Alone, breaking out of an attribute, and out of the elements into which the page puts text.
MARKUP = [
    before + each for before in ("", "\"'>", "</textarea></span></p>-->") for each in PAYLOADS
]


async def stays_text(page: Page, markup: str, piece: int) -> None:
    """Send `markup` as the prompt, in an answer of pieces of this size, and in its error."""
    tokens = [markup[at : at + piece] for at in range(0, len(markup), piece)]
    error = {"code": "x", "message": markup, "retry_safe": False}
    prompt = re.sub("[\x00\ufeff]", "", markup)
    await page.unroute("**/generate")
    await answer_with(page, frames(*tokens, end={"finish_reason": "error", "error": error}))
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "error")
    assert await text_of(page) == markup
    assert await page.locator(".asked").last.text_content() == prompt
    said = await page.locator("#status").text_content()
    assert said == f"{markup} The text above is incomplete."
    assert await page.locator("#output :not(.turn, .asked, .answer)").count() == 0
    await page.get_by_role("button", name="Clear").click()


@pytest.mark.parametrize("mode", ["continue", "chat"])
async def test_markup_in_prompt_output_error_and_name_is_text_however_it_is_split(
    server: RunningServer, open_page: OpenPage, mode: str
) -> None:
    async def name(route: Route) -> None:
        if "text/html" in route.request.headers.get("accept", ""):
            await route.continue_()
        else:
            await route.fulfill(json={"message": "", "model": MARKUP[0]})

    page = await open_page("about:blank")
    await page.route(f"{server.url}/", name)
    await page.goto(f"{server.url}/text")
    await expect(page.locator("#server")).to_have_text(f"{MARKUP[0]} · ready")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    elements = await page.locator("*").count()
    await page.locator(f"input[value={mode}]").check(force=True)
    for piece in (1, 3, 8, 10_000):
        await stays_text(page, "\n".join(MARKUP), piece)
    assert await page.locator("*").count() == elements
    assert {url.rpartition("/")[2] for url in requests} <= {"generate", "favicon.svg"}


async def test_the_page_names_the_model_and_says_when_it_is_ready(
    server: RunningServer, open_page: OpenPage
) -> None:
    async def loading(route: Route) -> None:
        await route.fulfill(status=503, json={"status": "loading"})

    page = await open_page("about:blank")
    await page.clock.install()
    await page.route("**/health/ready", loading)
    await page.goto(f"{server.url}/text")
    await expect(page.locator("#server")).to_have_text("mock · not ready yet")
    await page.unroute_all()
    await page.clock.fast_forward(3000)
    await expect(page.locator("#server")).to_have_text("mock · ready")


async def test_a_chat_turn_that_failed_comes_back_to_be_asked_again(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await page.get_by_text("Chat turn").click()
    await answer_with(page, frames(" half an"))
    await page.get_by_label("Prompt").fill("Hello")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "lost")
    await expect(page.get_by_label("Prompt")).to_have_value("Hello")
    async with page.expect_request("**/generate") as asked:
        await page.get_by_role("button", name="Stream").click()
    messages = json.loads((await asked.value).post_data or "")["messages"]
    assert messages == [{"role": "user", "content": "Hello"}]
    await state_is(page, "lost")


async def test_deltas_that_come_faster_than_frames_share_an_update(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    tokens = [f" {number}" for number in range(1000)]
    await answer_with(page, frames(*tokens, end={"finish_reason": "length"}))
    await page.evaluate(RECORD)
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")
    assert await text_of(page) == "".join(tokens)
    assert len(await page.evaluate("window.texts")) < 100
    nodes = "document.querySelector('.answer').childNodes.length"
    assert await page.evaluate(nodes) == 1


async def test_the_output_follows_its_end_unless_the_reader_scrolled_up(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text", viewport={"width": 1000, "height": 480})
    await page.get_by_label("Prompt").fill("A long prompt.\n" * 60)
    await page.get_by_label("Max tokens").fill("1024")
    to_end = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight"
    output = page.locator("#output")
    await page.get_by_role("button", name="Stream").click()
    await expect(answer(page)).to_have_text(words(3))
    assert await output.evaluate("(box) => box.scrollTop") > 100
    assert await output.evaluate(to_end) < 2
    await output.evaluate("(box) => { box.scrollTop = 10 }")
    seen = len(split_words(await text_of(page)))
    await expect(answer(page)).to_have_text(words(seen + 5))
    assert await output.evaluate("(box) => box.scrollTop") == 10
    await page.keyboard.press("Escape")
    await state_is(page, "stopped")


async def test_the_keyboard_alone_is_enough(
    slow_server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{slow_server.url}/text")
    reached = []
    for _ in range(18):
        await page.keyboard.press("Tab")
        reached.append(
            await page.evaluate(
                """() => {
                  const { activeElement: at } = document;
                  const shown = at.type === "radio" ? at.nextElementSibling : at;
                  return [at.id || at.value || at.localName, getComputedStyle(shown).outlineStyle];
                }"""
            )
        )
    names = [name for name, _ in reached]
    controls = ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop_strings"]
    buttons = ["stream", "complete", "stop", "clear"]
    names = names[3:]  # the first three lead to the pages
    assert names[:14] == ["continue", "prompt", *buttons, "summary", *controls, "output"]
    assert all(outline == "solid" for _, outline in reached[:17])

    await page.get_by_label("Prompt").focus()
    await page.keyboard.press("ControlOrMeta+Enter")
    await expect(answer(page)).to_have_text(words(2))
    await page.keyboard.press("Escape")
    await state_is(page, "stopped")

    await page.get_by_role("button", name="Stream").focus()
    await page.keyboard.press("Enter")
    await state_is(page, "streaming")
    await expect(page.get_by_role("button", name="Stream")).to_be_focused()
    await page.keyboard.press("Enter")  # a second press during a run does nothing
    await page.keyboard.press("Escape")
    await state_is(page, "stopped")
    await expect(page.locator(".turn")).to_have_count(1)


async def test_changes_of_state_are_announced_and_tokens_are_not(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text")
    await expect(page.locator("#status")).to_have_attribute("aria-live", "polite")
    live = page.locator("[aria-live], [role=status], [role=log], [role=alert], output")
    assert await live.evaluate_all("(all) => all.map((one) => one.id)") == ["server", "status"]
    assert await page.locator("#output").locator("xpath=ancestor::*[@aria-live]").count() == 0


@pytest.mark.parametrize("width", [320, 375, 600, 900])
async def test_nothing_scrolls_sideways(
    server: RunningServer, open_page: OpenPage, width: int
) -> None:
    page = await open_page(f"{server.url}/text", viewport={"width": width, "height": 667})
    await answer_with(
        page,
        frames(
            "W" * 500,
            end={
                "finish_reason": "error",
                "error": {"code": "x", "message": "E" * 300, "retry_safe": False},
            },
        ),
    )
    await page.locator("details").evaluate("(details) => { details.open = true }")
    await page.get_by_label("Prompt").fill("P" * 500)
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "error")
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    wide = """(all) => all
      .filter((one) => one.clientWidth > 1 && one.scrollWidth > one.clientWidth + 1)
      .map((one) => one.id || one.className || one.localName)"""
    assert await page.locator("main *:not(label, span, kbd, .unseen)").evaluate_all(wide) == []


async def test_a_laptops_first_screen_shows_prompt_buttons_output_and_figures(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text", viewport={"width": 1280, "height": 600})
    for id_ in ("prompt", "stream", "complete", "stop", "clear", "output", "status", "elapsed"):
        await expect(page.locator(f"#{id_}")).to_be_in_viewport(ratio=1)


# The contrast of each text with its background by WCAG 2, in the colours that the browser computes.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...rgba(colour)].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return rgba(colour)[3] === 255 ? colour : behind(one.parentElement);
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) =>
    one.matches("input, textarea") ||
    [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.filter((one) => one.checkVisibility()).map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [one.id || one.className || one.localName, contrast];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_has_enough_contrast_in_every_state(
    server: RunningServer, open_page: OpenPage, scheme: Any
) -> None:
    page = await open_page(f"{server.url}/text", color_scheme=scheme)
    await page.get_by_label("Max tokens").fill("2")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")
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
        await page.evaluate("(state) => { document.body.dataset.state = state }", state)
        contrasts: list[tuple[str, float]] = await page.evaluate(CONTRASTS)
        assert {"status", "answer", "asked", "stream", "keys"} <= {name for name, _ in contrasts}
        assert [pair for pair in contrasts if pair[1] < 4.5] == [], state


async def test_dark_and_light_follow_the_readers_system(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/text", color_scheme="light")
    colours = """() => {
      const { backgroundColor, color } = getComputedStyle(document.body);
      return [backgroundColor, color];
    }"""
    light = await page.evaluate(colours)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(colours)
    assert light[0] != dark[0]
    assert light[1] != dark[1]


async def test_the_page_asks_no_other_host_and_keeps_nothing(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page("about:blank")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    await page.goto(f"{server.url}/text")
    await page.get_by_role("button", name="Stream").click()
    await state_is(page, "finished")
    assert all(url.startswith(server.url) for url in urls)
    kept = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert await page.evaluate(kept) == [0, 0, ""]


async def test_the_page_asks_for_a_required_key_and_keeps_it_in_its_tab(
    chromium: str, open_page: OpenPage
) -> None:
    key = new_key()
    with serve(engine="mock", mock_interval=0.01, api_key=key) as server:
        page = await open_page("about:blank")
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        await page.goto(f"{server.url}/text")
        field = page.get_by_label("API key")
        await expect(field).to_be_hidden()
        await page.get_by_role("button", name="Stream").click()
        await state_is(page, "error")
        await expect(field).to_be_focused()
        await field.fill(key)
        await page.get_by_role("button", name="Stream").click()
        await state_is(page, "finished")
        await page.reload()
        await expect(field).to_have_value(key)
        await page.get_by_role("button", name="Complete").click()
        await state_is(page, "finished")
        assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert not any(key in url for url in urls)
        other = await page.context.new_page()
        await other.goto(f"{server.url}/text")
        await expect(other.get_by_label("API key")).to_have_value("")


async def test_a_queued_stream_shows_its_position(chromium: str, open_page: OpenPage) -> None:
    with serve("--slots=1", engine="mock", mock_interval=0.01, engine_arg=["hang_at=3"]) as server:
        holder, stream_id = open_stream(server.port, generate())
        with holder:
            page = await open_page(f"{server.url}/text")
            await page.get_by_role("button", name="Stream").click()
            await expect(page.locator("#status")).to_contain_text(
                "Waiting in the queue: position 1"
            )
            ask(server.port, request("DELETE", f"/streams/{stream_id}"))
            await state_is(page, "streaming")
            await page.get_by_role("button", name="Stop").click()
            await state_is(page, "stopped")
