"""Markdown that is rendered on a real terminal while it streams."""

import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.cli.markdown import (
    MAX_GROWING_CHARS,
    MarkdownWriter,
    _Growing,
    rendered,
    split_finished,
)
from tests.cli.test_chat import PATIENCE_S, answers, goes_on, hangs_up, root, terminal
from tests.client.test_answer import FINISH, delta, frame
from tests.support.scripted_server import END, HEAD, Peer, chunk, scripted_server

TEXT = "# Title\n\nA *few* words.\n\n- one\n- two\n\n```python\nx = 1\n```\n\nThe end\n"


def plain(seen: str) -> str:
    """Return terminal output without its colors and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


def drawn(text: str) -> str:
    console = Console(width=60, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(rendered(text))
    return plain(capture.get())


def test_an_answer_is_rendered() -> None:
    with (
        scripted_server(root, answers("**bo", "ld** and `co", "de`\n\n- one\n")) as server,
        terminal("chat", "--url", server.url, TERM="xterm") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("first token after")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    assert "bold and code" in plain(command.seen)
    assert " • one" in plain(command.seen)
    assert "\x1b[1mbold" in command.seen


def test_a_block_is_shown_while_it_grows_and_printed_once_when_it_has_ended() -> None:
    is_shown = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(delta(0, "First block.\n\nHalf of")))
        assert is_shown.wait(PATIENCE_S)
        peer.send(chunk(delta(1, " it.")), chunk(frame(**FINISH)), END)

    with (
        scripted_server(root, script) as server,
        terminal("chat", "--url", server.url, TERM="xterm") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("Half of")
        is_shown.set()
        command.expect("Half of it.")
        command.expect("first token after")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    after = plain(command.seen).partition("Half of")[2]
    assert "First block." not in after  # what has ended is not drawn again


def test_a_cut_amid_a_rendered_answer_is_noted_and_the_answer_goes_on() -> None:
    with (
        scripted_server(root, hangs_up, goes_on("llo", after=0)) as server,
        terminal("chat", "--url", server.url, TERM="xterm") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("connection lost, resuming...")
        command.expect("resumed")
        command.expect("Héllo")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0


def test_ctrl_c_stops_a_rendered_answer_and_shows_what_came() -> None:
    is_gone = threading.Event()

    def endless(peer: Peer) -> None:
        peer.send(HEAD, chunk(delta(0, "Once")))
        peer.wait_until_gone()
        is_gone.set()

    def is_ended(peer: Peer) -> None:
        assert peer.method == "DELETE"
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with (
        scripted_server(root, endless, is_ended) as server,
        terminal("chat", "--url", server.url, TERM="xterm") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("Once")
        command.interrupt(until="(stopped)\n> ")
        assert is_gone.wait(PATIENCE_S)
        command.type("\x04")
        assert command.wait() == 0
    assert "^C" not in command.seen  # it would move the answer
    assert "Traceback" not in command.seen


def test_a_model_commands_no_terminal_and_hides_no_text() -> None:
    with (
        scripted_server(
            root, answers("\x1b]0;title\x07", "<b>x</b> [y](http://z) [red]w")
        ) as server,
        terminal("chat", "--url", server.url, TERM="xterm") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("first token after")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    assert "\x1b]" not in command.seen
    assert "\\x1b]0;title\\x07<b>x</b> y (http://z) [red]w" in plain(command.seen)


def test_blocks_are_one_empty_line_apart_and_a_block_without_text_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with MarkdownWriter() as writer:
        for piece in ("One\u2028line\n\n- tw", "o\n\n```\nthree\n```\n\n[x]: http://y\n\nEnd"):
            writer.write(piece)
    lines = [line.rstrip() for line in plain(capsys.readouterr().out).strip().split("\n")]
    assert lines == ["One\u2028line", "", " • two", "", " three", "", "End"]


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("One", ""),
        ("One\n\n", ""),
        ("One\n\nT", "One\n\n"),
        ("One\n\n#", ""),
        ("- a\n\nT", "- a\n\n"),
        ("- a\nT", ""),
        ("- a\n\n- b\n", ""),
        ("- a\n\nText\n", "- a\n\n"),
        ("Text\n#", ""),
        ("Text\n# T\n", "Text\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n```\nb\n", "```\na\n```\n"),
    ],
)
def test_what_no_text_can_change_is_finished(text: str, finished: str) -> None:
    assert split_finished(text) == (finished, text[len(finished) :])


@given(
    st.lists(
        st.sampled_from(["a", " ", "\n", "\u2028", "- ", "# ", "```", "|", "---", "> ", "    "])
    )
)
def test_finished_blocks_are_the_same_however_the_text_grows(pieces: list[str]) -> None:
    """Blocks that are split off one by one are drawn as the blocks of the whole text."""
    finished, growing = [], ""
    for piece in [*pieces, "\n\nend\n"]:
        growing += piece
        ended, growing = split_finished(growing)
        finished.append(ended)
    assert "".join(finished) + growing == "".join([*pieces, "\n\nend\n"])


def test_a_long_answer_is_drawn_as_in_one_piece() -> None:
    parts, growing = [], ""
    for character in TEXT:
        growing += character
        ended, growing = split_finished(growing)
        parts += [ended] if ended else []
    parts.append(growing)
    assert [part.strip() for part in parts] == TEXT.strip().split("\n\n")
    joined = "".join(drawn(part) for part in parts)
    assert joined.split() == drawn(TEXT).split()


def test_a_growing_block_takes_no_more_than_the_terminal_and_a_bounded_time() -> None:
    console = Console(width=60, height=20, force_terminal=True, color_system=None)
    for text in ("line\n\n" * 1000, "```\n" + "line\n" * 20_000):
        with console.capture() as capture:
            console.print(_Growing(text))
        assert capture.get().count("\n") <= 20
    assert MAX_GROWING_CHARS < 10_000
