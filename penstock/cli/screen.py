"""Terminal output of the commands: streamed text, notes, figures and errors.

In: text from a model and sentences for a person. Out: the text on standard output, everything else
on standard error. This module knows no server and no command.

Text from a model is not trusted. On a terminal its control characters are made visible, so the
terminal does not obey them. In a file or a pipe the text stays unchanged.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypedDict

import typer
from rich.console import Console
from rich.text import Text

from penstock.cli.statuses import StatusTeller
from penstock.client import StreamStatus
from penstock.events import Timings, Usage

console = Console(stderr=True, highlight=False)
"""Standard error, for messages with styles."""

TELLING_TOKENS = 20
TELLING_S = 0.5

# All of C0 except tab and newline, DEL, and C1, which UTF-8 terminals obey too. A carriage return
# would only overwrite the line, so it is dropped: CRLF becomes LF.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_VISIBLE |= {ord("\t"): "\t", ord("\n"): "\n", ord("\r"): ""}


def printable(text: str) -> str:
    """Return the text with its control characters made visible, so that no terminal obeys them."""
    return text.translate(_VISIBLE)


def fail(sentence: str, hint: str = "") -> NoReturn:
    """Print an error, and a hint on a second line, to standard error; exit with status 1."""
    console.print(Text.assemble(("Error:", "bold red"), " ", printable(sentence)), soft_wrap=True)
    if hint:
        console.print(Text("  " + printable(hint)), soft_wrap=True)
    raise typer.Exit(1)


def figures(usage: Usage | None, timings: Timings | None, finish_reason: str | None) -> str:
    """Return `27 tokens · 84.2 tokens/s · first token after 0.012 s · stop`, without the unknown.

    Each of the three arguments is None if the server did not send it. The rate of a few tokens says
    nothing, so it needs 20 tokens or half a second of generation.
    """
    parts = []
    if usage is not None:
        count = usage.completion_tokens
        parts.append(f"{count} token" if count == 1 else f"{count} tokens")
    if timings is not None:
        if timings.tokens_per_second is not None and _is_telling(usage, timings):
            parts.append(f"{timings.tokens_per_second:.1f} tokens/s")
        if timings.time_to_first_token is not None:
            parts.append(f"first token after {timings.time_to_first_token:.3f} s")
    if finish_reason is not None:
        parts.append(finish_reason)
    return " · ".join(parts)


def _is_telling(usage: Usage | None, timings: Timings) -> bool:
    generation_s = timings.total_time - (timings.time_to_first_token or 0.0)
    num_tokens = usage.completion_tokens if usage is not None else 0
    return num_tokens >= TELLING_TOKENS or generation_s >= TELLING_S


class Callbacks(TypedDict):
    """The arguments of `Client.stream` that report what happens to a stream."""

    on_cut: Callable[[str], None]
    on_resume: Callable[[], None]
    on_status: Callable[[StreamStatus], None] | None


class Screen:
    """The terminal of a command: standard output for the model, standard error for the rest.

    With `ends_lines`, `end_line` also ends lines in a file or a pipe, not only on a terminal.
    """

    def __init__(self, *, ends_lines: bool = False) -> None:
        self.is_terminal = sys.stdout.isatty()
        """True if standard output is a terminal."""
        self._ends_lines = ends_lines or self.is_terminal
        self._is_in_line = False
        self._note: Callable[[str], None] | None = None
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters
                encoding = None if stream.isatty() else "utf-8"
                stream.reconfigure(encoding=encoding, errors="replace")

    def write(self, text: str) -> None:
        """Write text from the model and flush it."""
        sys.stdout.write(printable(text) if self.is_terminal else text)
        sys.stdout.flush()
        if text:
            self._is_in_line = not text.endswith("\n")

    def write_json(self, value: object) -> None:
        """Write a line of JSON. For a terminal it is ASCII, so it has no control characters."""
        sys.stdout.write(json.dumps(value, ensure_ascii=self.is_terminal) + "\n")
        sys.stdout.flush()

    def end_line(self) -> None:
        """Begin a new line if the text left a line open and this output ends lines."""
        if self._is_in_line and self._ends_lines:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._is_in_line = False

    def say(self, text: str) -> None:
        """Print a line to standard error."""
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - that is its purpose

    def note(self, text: str) -> None:
        """Print a dim line to standard error if standard error is a terminal."""
        if sys.stderr.isatty():
            plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
            before, after = ("", "") if plain else ("\x1b[2m", "\x1b[0m")
            print(f"{before}{printable(text)}{after}", file=sys.stderr, flush=True)  # noqa: T201

    def callbacks(self) -> Callbacks:
        """Return callbacks that note what happens to a stream: cuts, waits, dead engines."""
        teller = StatusTeller()

        def note_status(status: StreamStatus) -> None:
            if text := teller.tell(status):
                self._note_amid(text)

        return {
            "on_cut": lambda _: self._note_amid("connection lost, resuming..."),
            "on_resume": lambda: self._note_amid("resumed"),
            # A server sends statuses only if it is asked for them, so ask only for a person.
            "on_status": note_status if sys.stderr.isatty() else None,
        }

    @contextmanager
    def notes_to(self, note: Callable[[str], None]) -> Iterator[None]:
        """Pass the notes about a stream to `note`, which draws the model's text meanwhile."""
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _note_amid(self, text: str) -> None:
        """Print a note in the middle of the model's text, which then continues on a new line."""
        if self._note is not None:
            self._note(text)
            return
        if self.is_terminal and sys.stderr.isatty():
            self.end_line()
        self.note(text)
