"""The commands of `penstock chat`, and Ctrl-C at its prompt, in real terminals."""

from pathlib import Path

import pytest

from penstock.cli.screen import figures
from penstock.events import Timings, Usage
from tests.cli.test_chat import answers, refuses, root, sent, terminal
from tests.support.scripted_server import scripted_server


def test_an_instruction_holds_from_the_next_question_and_can_be_removed() -> None:
    scripts = [root, answers("A", "."), answers("B", "."), answers("C", ".")]
    with (
        scripted_server(*scripts) as server,
        terminal("chat", "--url", server.url, "--system", "Be kind.") as command,
    ):
        command.expect("> ")
        command.type("One\n")
        command.expect("A.\n")
        command.expect("> ")
        command.type("/system Be short.\n")
        command.expect("The instruction is set.\n> ")
        command.type("Two\n")
        command.expect("B.\n")
        command.expect("> ")
        command.type("/system\n")
        command.expect("The instruction is removed.\n> ")
        command.type("Three\n")
        command.expect("C.\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    messages = [sent(each)["messages"] for each in server.requests[1:]]
    assert [each[0] for each in messages] == [
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One"},
    ]
    assert [each["content"] for each in messages[2]] == ["One", "A.", "Two", "B.", "Three"]


def test_regenerate_asks_the_last_question_again_and_replaces_its_answer() -> None:
    scripts = [root, answers("A", "."), answers("B", "."), refuses, answers("C", ".")]
    with (
        scripted_server(*scripts) as server,
        terminal("chat", "--url", server.url) as command,
    ):
        command.expect("> ")
        command.type("/regenerate\n")
        command.expect("There is no answer yet.\n> ")
        command.type("One\n")
        command.expect("A.\n")
        command.expect("> ")
        command.type("/regenerate\n")
        command.expect("B.\n")
        command.expect("> ")
        command.type("/regenerate\n")  # it fails: the answer before it stays
        command.expect("Error: ")
        command.expect("> ")
        command.type("Two\n")
        command.expect("C.\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    contents = [[m["content"] for m in sent(each)["messages"]] for each in server.requests[1:]]
    assert contents == [["One"], ["One"], ["One"], ["One", "B.", "Two"]]


def test_a_conversation_is_saved_as_markdown_and_never_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "story.md"
    with (
        scripted_server(root, answers("Hé", "!")) as server,
        terminal("chat", "--url", server.url, "--system", "Be kind.") as command,
    ):
        command.expect("> ")
        command.type("Hello\n")
        command.expect("Hé!\n")
        command.expect("> ")
        command.type(f"/save {file}\n")
        command.expect(f"Saved the conversation in {file}.\n> ")
        command.type(f"/save {file}\n")
        command.expect("File exists\n> ")
        command.type(f"/save {tmp_path}/no/folder.md\n")
        command.expect("No such file or directory\n> ")
        command.type("/save\n")
        command.expect("Name a file: /save story.md\n> ")
        command.type("\x04")
        assert command.wait() == 0
    saved = file.read_text(encoding="utf-8")
    assert saved == "## System\n\nBe kind.\n\n## User\n\nHello\n\n## Assistant\n\nHé!\n"


def test_ctrl_c_twice_at_the_prompt_leaves_the_chat() -> None:
    with scripted_server(root) as server, terminal("chat", "--url", server.url) as command:
        command.expect("> ")
        command.interrupt(until="Press Ctrl-C again, or Ctrl-D, to leave.\n> ")
        assert command.interrupt_to_end() == 0
    assert "Traceback" not in command.seen


@pytest.mark.parametrize(
    ("num_tokens", "total_s", "is_shown"),
    [(3, 0.3, False), (19, 0.69, False), (20, 0.3, True), (3, 0.75, True), (2, 5.0, True)],
)
def test_a_rate_is_told_from_twenty_tokens_or_half_a_second(
    num_tokens: int, total_s: float, is_shown: bool
) -> None:
    line = figures(Usage(4, num_tokens), Timings(0.1, 0.2, total_s, 16_053.0), "stop")
    assert ("tokens/s" in line) == is_shown
    assert line.startswith(f"{num_tokens} tokens · ")
