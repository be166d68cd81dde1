"""A plain SSE client: a page that is opened from a file and reads `data:` lines."""

from pathlib import Path

import pytest
from playwright.async_api import expect

from penstock.engine.mock import TEXT
from tests.page.conftest import OpenPage
from tests.support.servers import serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CLIENT = """<!doctype html>
<meta charset="utf-8">
<textarea id="ask">What is water?</textarea>
<button id="streamed">streamed</button> <button id="whole">whole</button>
<pre id="said"></pre> <p id="state"></p>
<script>
const said = document.getElementById("said");
const state = document.getElementById("state");
async function post(stream) {
  const prompt = document.getElementById("ask").value;
  const fields = { prompt, max_tokens: 100, temperature: 0.7, top_p: 0.95, stream };
  said.textContent = "";
  return fetch("SERVER/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  });
}
document.getElementById("streamed").onclick = async () => {
  const body = (await post(true)).body.getReader();
  const utf8 = new TextDecoder();
  for (let read = await body.read(); !read.done; read = await body.read()) {
    for (const line of utf8.decode(read.value).split("\\n")) {
      if (!line.startsWith("data:") || !line.slice(5).trim()) continue;
      const { token, finished } = JSON.parse(line.slice(5));
      if (finished) state.textContent = "finished";
      else said.textContent += token;
    }
  }
};
document.getElementById("whole").onclick = async () => {
  said.textContent = (await (await post(false)).json()).text;
  state.textContent = "whole";
};
</script>
"""


async def test_a_page_opened_as_a_file_streams_and_completes(
    tmp_path: Path, open_page: OpenPage
) -> None:
    with serve(engine="mock", mock_interval=0.01, cors_origin=["null"]) as server:
        file = tmp_path / "client.html"
        file.write_text(CLIENT.replace("SERVER", server.url), encoding="utf-8")
        page = await open_page(file.as_uri())
        assert await page.evaluate("window.origin") == "null"
        said = page.locator("#said")
        await page.locator("#streamed").click()
        await expect(page.locator("#state")).to_have_text("finished")
        assert await said.text_content() == TEXT
        await page.locator("#whole").click()
        await expect(page.locator("#state")).to_have_text("whole")
        assert await said.text_content() == TEXT
