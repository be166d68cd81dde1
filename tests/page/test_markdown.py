"""The page's Markdown in Chromium: CommonMark's own examples, every prefix, and constant cost."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from tests.page.conftest import OpenPage
from tests.support.npm import npm_package
from tests.support.servers import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

HELPERS = (Path(__file__).parent / "markdown.js").read_text()
EXAMPLE = re.compile(r"^`{32} example\n(.*?)^\.\n(.*?)^`{32}$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Return CommonMark's examples: Markdown, and its HTML."""
    spec = (npm_package("commonmark-spec", "0.31.2") / "spec.txt").read_text(encoding="utf-8")
    found = [(a.replace("→", "\t"), b.replace("→", "\t")) for a, b in EXAMPLE.findall(spec)]
    assert len(found) == 652
    return found


async def run(page: Page, body: str, argument: Any = None) -> Any:
    """Run JavaScript with the helpers of markdown.js and one argument."""
    script = f"async (given) => {{ const helpers = await (async () => {{ {HELPERS} }})();"
    script += "const { Markdown, render, asExample, normal } = helpers;" + body + "}"
    return await page.evaluate(script, argument)


async def test_commonmarks_own_examples_are_rendered_as_it_says(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/health")
    wrong: list[list[Any]] = await run(
        page,
        """return given.flatMap(([text, html], at) => {
          const [got, wanted] = [normal(asExample(render([text]))), normal(html)];
          return got === wanted ? [] : [[at + 1, text, wanted, got]];
        });""",
        examples(),
    )
    assert wrong == []


async def test_every_prefix_of_every_example_is_rendered_and_pieces_give_the_same_as_the_whole(
    server: RunningServer, open_page: OpenPage
) -> None:
    """Each character arrives alone: so every prefix of every example was on the screen once."""
    page = await open_page(f"{server.url}/health")
    different: list[str] = await run(
        page,
        """return given.flatMap(([text]) => {
          const [whole, pieces] = [render([text]), render([...text])];
          return whole.innerHTML === pieces.innerHTML ? [] : [text];
        });""",
        examples(),
    )
    assert different == []


EXTENSIONS = {
    "| a | b |\n|:--|--:|\n| `x\\|y` | **2** |\n": (
        '<table><thead><tr><th class="left">a</th><th class="right">b</th></tr></thead><tbody><tr>'
        '<td class="left"><code>x|y</code></td><td class="right"><strong>2</strong></td></tr>'
        "</tbody></table>"
    ),
    "~~gone~~ and ~gone~ but ~~~not~~~": "<p><del>gone</del> and <del>gone</del> but ~~~not~~~</p>",
    "- [ ] to do\n- [x] done": (
        '<ul><li><input type="checkbox" disabled aria-label="To do">to do</li>'
        '<li><input type="checkbox" disabled aria-label="Done" checked>done</li></ul>'
    ),
    "It costs $5 and $10, but $a_1 * b_1$ stays.": (
        '<p>It costs $5 and $10, but <span class="math">$a_1 * b_1$</span> stays.</p>'
    ),
    "$$\n+ x_1\n= *y*\n$$\nEnd": '<pre class="math">+ x_1\n= *y*</pre><p>End</p>',
    "\\[ a_1 + b_1 \\]": '<p><span class="math">\\[ a_1 + b_1 \\]</span></p>',
}


async def test_tables_strikethrough_task_lists_and_math_are_shown(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/health")
    plain = """return given.map(([text, html]) => {
      const box = render([text]);
      box.querySelectorAll("[dir], [tabindex]").forEach((each) => {
        each.removeAttribute("dir");
        each.removeAttribute("tabindex");
      });
      box.querySelectorAll("div.table").forEach((each) => each.replaceWith(...each.childNodes));
      return [normal(asExample(box)), normal(html)];
    });"""
    for got, wanted in await run(page, plain, list(EXTENSIONS.items())):
        assert got == wanted


async def test_only_links_to_the_web_and_to_mail_addresses_are_links(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/health")
    addresses = {
        "[a](https://example.org/x)": "https://example.org/x",
        "<mailto:a@example.org>": "mailto:a@example.org",
        "[a](javascript:alert(1))": None,
        "[a](JaVaScRiPt:alert(1))": None,
        "[a](&#106;avascript:alert(1))": None,
        "[a](\\javascript:alert(1))": None,
        "<javascript:alert(1)>": None,
        "[a](data:text/html,x)": None,
        "[a](/streams/x)": None,
        "[a](//example.org)": None,
        "![a](https://example.org/beacon.png)": "https://example.org/beacon.png",
        "[a]: vbscript:x\n\n[a]": None,
    }
    found = await run(
        page,
        """return given.map((text) => {
          const box = render([text]);
          const [link] = box.querySelectorAll("a");
          const loads = box.querySelectorAll("img, script, style, iframe, link, [src]").length;
          return [link?.getAttribute("href") ?? null, link?.rel ?? "", loads];
        });""",
        list(addresses),
    )
    for (text, address), (href, rel, loads) in zip(addresses.items(), found, strict=True):
        assert href == address, text
        assert rel == ("noopener noreferrer" if address else ""), text
        assert loads == 0


async def test_open_marks_never_flicker(server: RunningServer, open_page: OpenPage) -> None:
    """The marks of emphasis, code, headings, lists and tables are never on the screen.

    The brackets of a link are, until its parenthesis begins: [1] may be a text.
    """
    page = await open_page(f"{server.url}/health")
    text = (
        "# Head\n\nSome **bold *and* text** with `code` and ~~old~~ [a link](https://example.org/a).\n"
        "\n- one **two**\n- three\n\n| a | b |\n|---|---|\n| **1** | 2 |\n\n"
        "```js\nlet a = `b`;\n```\nEnd\n"
    )
    shown: list[str] = await run(
        page,
        """return [...given].map((_, at) => {
          const box = render([given.slice(0, at + 1)], false);
          box.querySelectorAll("pre").forEach((each) => each.remove());
          return box.textContent;
        });""",
        text,
    )
    assert len(shown) == len(text)
    assert [each for each in shown if re.search(r"[*#~|`(]|https", each)] == []


async def test_a_long_answer_costs_the_same_per_token_at_its_end_and_touches_no_closed_block(
    server: RunningServer, open_page: OpenPage
) -> None:
    """20,000 tokens in three shapes: paragraphs, one list, one block of code."""
    page = await open_page(f"{server.url}/health")
    shapes = {
        "paragraphs": "Some **bold** text and `code` here.\n\n",
        "list": "- an **item** of a long list\n",
        "code": "const a = 1; // of a long program\n",
    }
    for shape, unit in shapes.items():
        tokens = re.findall(r"\s*\S+|\s+", unit)
        text = tokens * (20_000 // len(tokens))
        before = ["```js\n"] if shape == "code" else []
        early, late, changed = await run(
            page,
            """const box = document.createElement("div");
            document.body.replaceChildren(box);
            const markdown = new Markdown(box);
            const show = (tokens) => {
              const begin = performance.now();
              for (const token of tokens) {
                markdown.append(token);
                markdown.flush();
              }
              return performance.now() - begin;
            };
            show(given.slice(0, 2000));
            const early = show(given.slice(2000, 4000));
            show(given.slice(4000, -2000));
            const changed = new Set();
            const closed = [...box.querySelectorAll("p, li, pre > code > *")].slice(0, -3);
            const note = (all) => all.forEach(({ target }) => changed.add(target));
            const observer = new MutationObserver(note);
            const every = { childList: true, characterData: true, attributes: true };
            observer.observe(box, { subtree: true, ...every });
            const late = show(given.slice(-2000));
            note(observer.takeRecords());
            return [early, late, closed.filter((each) => changed.has(each)).length];""",
            before + text,
        )
        assert late < 10 * early + 2000, shape
        assert changed == 0, shape


async def test_a_selection_survives_while_the_text_grows(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/health")
    selected = await run(
        page,
        """const box = document.createElement("div");
        document.body.replaceChildren(box);
        const markdown = new Markdown(box);
        markdown.append("- Water **comes** down from the hi");
        markdown.flush();
        const range = document.createRange();
        range.selectNodeContents(box.querySelector("strong"));
        getSelection().addRange(range);
        const rest = ["lls", ", and `then`", " all at *once*", "\\n- Second\\n\\n", "More"];
        for (const token of rest) {
          markdown.append(token);
          markdown.flush();
        }
        return getSelection().toString();""",
    )
    assert selected == "comes"
