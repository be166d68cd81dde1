"""Record `kill -9` in mid-sentence for the README, on the page and under an OpenAI program.

python -m tests.page.recording docs/kill.webp [seed]   (or: make recording)

The server, the page, the program and the kill are real, and the picture runs at their speed. Only
the terminal is drawn: it shows what the program prints. The file is about 500 KB.
"""

import asyncio
import base64
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from playwright.async_api import Page, ViewportSize, async_playwright, expect

from tests.page.conftest import ARGS, MISSING, find_chromium
from tests.support.servers import RunningServer, serve

QUESTION = "Tell me a story about a river."
PROGRAM_QUESTION = "Tell me a story about a fox."
PROGRAM = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
messages = [{{"role": "user", "content": "{question}"}}]
for chunk in client.chat.completions.create(
    model="rill", messages=messages, seed={seed}, stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print("\\n\\nDone, without an error.")
"""
TERMINAL = """\
<!doctype html><meta charset="utf-8"><style>
  body { margin: 0; padding: 16px 18px; box-sizing: border-box; height: 100vh; background: #10191d;
         color: #d6e2e4; font: 13px/1.5 "DejaVu Sans Mono", monospace; display: flex;
         flex-direction: column; gap: 12px; }
  pre { margin: 0; font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
  #program { color: #7f989e; } #output { flex: 1; min-height: 0; overflow: hidden; }
  #other { border-top: 1px solid #33474d; padding-top: 10px; min-height: 3em; color: #ffb86b; }
  b { color: #7fd4c1; font-weight: 400; }
</style>
<pre><b>$</b> cat story.py
<span id="program"></span></pre>
<pre id="output"><b>$</b> python story.py
</pre>
<pre id="other"></pre>
"""
PRINT = """text => {
  const output = document.querySelector("#output");
  output.append(text);
  output.scrollTop = output.scrollHeight;
}"""
SIZE: ViewportSize = {"width": 600, "height": 560}
FRAME_S = 0.1  # between two frames of the file
STEP_S = 0.05  # between two looks at the program
QUALITY = 60
KILL_AFTER = 160  # characters on the page
HOLD_S = 3.0  # the last picture
LONGEST_S = 40.0


class Program:
    """The OpenAI program, run as its user would, and what it has printed."""

    def __init__(self, source: str, folder: Path) -> None:
        path = folder / "story.py"
        path.write_text(source)
        command = [sys.executable, str(path)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self._printed: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := self._process.stdout.read(4096):  # unbuffered: what there is
            self._printed.put(piece)

    def new_text(self) -> str:
        """Return what the program has printed since the last call."""
        pieces = b""
        while not self._printed.empty():
            pieces += self._printed.get()
        return pieces.decode()

    async def until_text(self) -> str:
        """Wait for the program's first words and return them."""
        first = await asyncio.to_thread(self._printed.get)
        return first.decode() + self.new_text()

    @property
    def has_ended(self) -> bool:
        """Return True if the program has ended and everything was shown. Raises if it failed."""
        status = self._process.poll()
        if status:
            raise SystemExit(f"the program failed with status {status}:\n{self.new_text()}")
        return status == 0 and self._printed.empty()


class Film:
    """Two pages side by side, as Chromium has drawn them, with its own times."""

    def __init__(self) -> None:
        self._shots: list[tuple[float, int, bytes]] = []
        """The time in seconds, the page's number, and the picture."""

    async def shoot(self, number: int, page: Page) -> None:
        """Record what the page shows from now on, each time that it changes."""
        session = await page.context.new_cdp_session(page)

        async def keep(event: dict[str, Any]) -> None:
            at = event["metadata"]["timestamp"]
            self._shots.append((at, number, base64.b64decode(event["data"])))
            await session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

        session.on("Page.screencastFrame", keep)
        await session.send("Page.startScreencast", {"format": "png"})

    def save(self, path: str) -> None:
        """Write an animated WebP, which begins anew at its end."""
        times, frames = [], []
        for at, frame in self._frames():
            times.append(at)
            frames.append(frame)
        ends = [*times[1:], times[-1] + HOLD_S]
        durations = [round(1000 * (end - at)) for at, end in zip(times, ends, strict=True)]
        frames[0].save(
            path,
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            quality=QUALITY,
            method=4,
            minimize_size=True,
        )

    def _frames(self) -> Iterator[tuple[float, Image.Image]]:
        """Yield both pages together, at most every `FRAME_S` seconds, and the last state."""
        shots = sorted(self._shots)
        latest: dict[int, bytes] = {}
        shown_at = 0.0
        for index, (at, number, picture) in enumerate(shots):
            latest[number] = picture
            is_last = index == len(shots) - 1
            if len(latest) == 2 and (at - shown_at >= FRAME_S or is_last):
                shown_at = at
                yield at, side_by_side(latest[0], latest[1])


def side_by_side(left: bytes, right: bytes) -> Image.Image:
    """Return one picture of two pages."""
    frame = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
    for number, picture in enumerate((left, right)):
        frame.paste(Image.open(BytesIO(picture)), (number * SIZE["width"], 0))
    return frame


async def record(
    server: RunningServer, page: Page, terminal: Page, seed: str, folder: Path
) -> Film:
    """Ask on the page and by the program, kill the engine in mid-sentence, and film it."""
    source = PROGRAM.format(url=server.url, question=PROGRAM_QUESTION, seed=seed)
    await terminal.set_content(TERMINAL)
    await terminal.evaluate("text => document.querySelector('#program').append(text)", source)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Seed").fill(seed)
    await page.get_by_role("button", name="Done").click()
    await page.get_by_role("textbox", name="Message").fill(QUESTION)
    await expect(page.locator("#server")).to_have_text("rill · ready")
    program = Program(source, folder)
    printed = await program.until_text()  # importing OpenAI's client takes a second
    film = Film()
    await film.shoot(0, page)
    await film.shoot(1, terminal)
    await page.keyboard.press("Enter")
    answer = page.locator(".assistant .text").last
    was_killed = False
    async with asyncio.timeout(LONGEST_S):
        while printed or not program.has_ended:
            await terminal.evaluate(PRINT, printed)
            if not was_killed and len(await answer.text_content() or "") > KILL_AFTER:
                was_killed = True
                engine = await asyncio.to_thread(server.engine_pid)
                command = f"$ kill -9 {engine}   # the engine, in another terminal"
                await terminal.evaluate(
                    "text => document.querySelector('#other').append(text)", command
                )
                os.kill(engine, signal.SIGKILL)
            await asyncio.sleep(STEP_S)
            printed = program.new_text()
        await expect(page.locator("body")).to_have_attribute("data-state", "finished")
    if not was_killed:
        raise SystemExit("the answer ended before the kill: choose another seed")
    return film


async def main(path: str, seed: str) -> None:
    """Record the film and save it."""
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit(MISSING)
    with serve(pace=None) as server, TemporaryDirectory() as folder:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGS)
            page = await browser.new_page(viewport=SIZE, color_scheme="light")
            terminal = await browser.new_page(viewport=SIZE)
            await page.goto(server.url)
            film = await record(server, page, terminal, seed, Path(folder))
            await browser.close()
    film.save(path)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1"))
    print(f"{sys.argv[1]}: {Path(sys.argv[1]).stat().st_size // 1024} KiB")
