"""The description of the API at `/docs`, in Chromium."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, expect

from penstock.web.keys import key_table, new_key
from tests.page.conftest import OpenPage
from tests.support.raw import ask, request
from tests.support.servers import RunningServer, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_docs_shows_every_route_and_schema_without_another_host(
    server: RunningServer, browser: Browser
) -> None:
    described = ask(server.port, request("GET", "/openapi.json")).json()
    page = await browser.new_page()
    hosts: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda asked: hosts.append(urlsplit(asked.url).netloc))
    page.on("console", lambda line: complaints.append(line.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(f"{server.url}/docs")
    await expect(page.locator("#version")).to_have_text(f"version {described['info']['version']}")

    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            shown = page.locator(f"details#{operation['operationId']}")
            summary = f"{method.upper()}{path}{operation['summary']}"
            await expect(shown.locator("summary")).to_have_text(summary)
            text = await shown.text_content() or ""
            for said in [*operation["responses"], *(p["name"] for p in operation["parameters"])]:
                assert said in text
    for name, schema in described["components"]["schemas"].items():
        text = await page.locator(f"details#{name}").text_content() or ""
        assert all(field in text for field in schema.get("properties", ()))
    assert "undefined" not in (await page.locator("body").text_content() or "")
    assert set(hosts) == {urlsplit(server.url).netloc}
    assert complaints == []
    await page.close()


async def test_docs_opens_the_schema_that_a_link_names(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = await open_page(f"{server.url}/docs#generate")
    schema = page.locator("details#GenerateRequest")
    await expect(schema).not_to_have_attribute("open", "")
    await page.locator("details#generate").get_by_role("link", name="GenerateRequest").click()
    await expect(schema).to_have_attribute("open", "")


async def test_docs_asks_for_the_key_that_the_description_needs(
    chromium: str, open_page: OpenPage, tmp_path: Path
) -> None:
    key = new_key()
    (tmp_path / "keys.toml").write_text(key_table("ann", key, is_admin=False))
    with serve(engine="mock", keys=tmp_path / "keys.toml") as server:
        page = await open_page(f"{server.url}/docs")
        field = page.get_by_label("API key")
        await field.fill("wrong")
        await page.get_by_role("button", name="Show the API").click()
        await expect(page.locator("#status")).to_contain_text("needs a valid API key")
        await field.fill(key)
        await field.press("Enter")
        await expect(page.locator("details#generate")).to_be_visible()
        await expect(field).to_be_hidden()
        await page.reload()  # the tab keeps the key
        await expect(page.locator("details#generate")).to_be_visible()
        assert json.dumps(key) not in (await page.content())
