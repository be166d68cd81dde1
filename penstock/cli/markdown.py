"""Renders an answer's Markdown on the terminal while it streams.

In: the pieces of a text. Out: finished blocks (paragraphs, lists, code...), printed once, and below
them the block that still grows, drawn again a few times a second. So nothing that is finished is
drawn twice, and the terminal's own scrolling works.

The text is not trusted: its control characters are made visible, HTML stays text, and a link shows
its address.
"""

import contextlib
import itertools
import os
import re
import sys
import termios
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, SegmentLines
from rich.text import Text

from penstock.cli.screen import printable

REDRAWS_PER_S = 12
# Above this a growing block is shown as plain text: rendering it again and again would take ever
# longer. When it has ended it is rendered once.
MAX_GROWING_CHARS = 8_000
SHOWN_OF_A_LONG_BLOCK = 2_000

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def renders_markdown() -> bool:
    """Return True if standard output is a terminal that can draw over its own lines."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def split_finished(text: str) -> tuple[str, str]:
    """Split Markdown into the blocks that no further text can change, and the rest.

    The last block can still change. So can an incomplete line, unless it begins with a letter: "#"
    may become "#5", which is no heading.
    """
    line_start = text.rfind("\n") + 1
    complete = text if text[line_start : line_start + 1].isalpha() else text[:line_start]
    *finished, _ = blocks_of(complete)
    end = sum(map(len, finished))
    return text[:end], text[end:]


def blocks_of(text: str) -> list[str]:
    """Split Markdown into its blocks: paragraphs, lists, code... Joined, they are the text."""
    starts = [
        token.map[0]
        for token in _PARSER.parse(text)
        if token.level == 0 and token.map is not None and token.nesting >= 0
    ]
    lines = re.findall("[^\n]*\n|[^\n]+", text)  # `splitlines` also splits where Markdown does not
    edges = [0, *starts[1:], len(lines)]
    return ["".join(lines[start:end]) for start, end in itertools.pairwise(edges)]


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Keep the terminal from showing the keys that are pressed meanwhile.

    They would move what is drawn: "^C" behind a full line takes a line of its own.
    """
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # standard input is no terminal
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class MarkdownWriter:
    """A context manager that draws an answer: `write` its pieces. Leaving it draws the end."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console, refresh_per_second=REDRAWS_PER_S, redirect_stderr=False
        )
        self._growing = ""
        self._has_printed = False
        self._silence = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._silence.enter_context(without_echo())
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        rest, self._growing = self._growing, ""
        self._live.update(Text(""))
        self._print(rest)
        self._live.transient = True  # the empty line of the live part
        self._live.stop()
        self._silence.close()

    def write(self, text: str) -> None:
        """Add a piece of the answer."""
        begins_line = "\n" in text or self._growing.endswith("\n")
        self._growing += printable(text)
        finished = ""
        if begins_line:
            finished, self._growing = split_finished(self._growing)
        self._live.update(_Growing(self._growing))
        self._print(finished)

    def note(self, text: str) -> None:
        """Print a dim line above the block that grows."""
        self._console.print(Text(printable(text), style="dim"))

    def _print(self, text: str) -> None:
        for block in blocks_of(text):
            self._print_block(block)

    def _print_block(self, block: str) -> None:
        lines = self._console.render_lines(rendered(block), pad=False)
        told = [number for number, line in enumerate(lines) if _text_of(line)]
        if not told:  # a link's definition, for example
            return
        if self._has_printed:
            self._console.print()
        self._has_printed = True
        # rich puts empty lines around a list and around code: leave them out.
        kept = lines[told[0] : told[-1] + 1]
        self._console.print(SegmentLines(kept, new_lines=True), end="")


def _text_of(line: list[Segment]) -> str:
    return "".join(segment.text for segment in line).strip()


def rendered(text: str) -> RenderableType:
    """Return Markdown as something that `rich` can print."""
    markdown = Markdown(text, code_theme="ansi_dark", hyperlinks=False)
    markdown.parsed = _PARSER.parse(text)  # rich's own parser would leave HTML out
    return markdown


class _Growing:
    """The end of the block that still grows: as many lines as fit on the terminal."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown: RenderableType = (
            rendered(self._text)
            if len(self._text) <= MAX_GROWING_CHARS
            else Text(self._text[-SHOWN_OF_A_LONG_BLOCK:])
        )
        lines = console.render_lines(shown, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()
