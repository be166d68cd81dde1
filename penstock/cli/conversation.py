"""A conversation in the terminal: its turns, and the file that it can be saved in.

In: questions and answers. Out: the messages of a request, and a Markdown file. This module knows no
server and no terminal.
"""

from pathlib import Path


def _turn(role: str, content: str) -> dict[str, str]:
    """Return one message of a conversation."""
    return {"role": role, "content": content}


class Conversation:
    """The turns of a chat. `system` is the instruction that precedes them, or ""."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._turns: list[tuple[str, str]] = []

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the messages that ask a question."""
        messages = [_turn("system", self.system)] if self.system else []
        for asked, answer in self._turns:
            messages += [_turn("user", asked), _turn("assistant", answer)]
        return [*messages, _turn("user", question)]

    def add(self, question: str, answer: str) -> None:
        """Add a question with its answer."""
        self._turns.append((question, answer))

    def take_last(self) -> tuple[str, str] | None:
        """Remove and return the last question and its answer, or return None if there is none."""
        return self._turns.pop() if self._turns else None

    def clear(self) -> None:
        """Forget the turns. The instruction stays."""
        self._turns.clear()

    def save(self, file: Path) -> None:
        """Write the conversation as Markdown into a new file. Raises OSError."""
        parts = [("System", self.system)] if self.system else []
        for asked, answer in self._turns:
            parts += [("User", asked), ("Assistant", answer)]
        text = "\n\n".join(f"## {name}\n\n{content.strip()}" for name, content in parts)
        with file.open("x", encoding="utf-8") as opened:  # "x": never overwrites a file
            opened.write(text + "\n")
