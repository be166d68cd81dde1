"""The pages of the documentation as blocks of code with markers, and their placeholders.

In: Markdown. Out: blocks in the order of the page. It does not know how a block is run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
# The pages whose blocks are run.
GUIDES = ("tutorial", "protocol", "operations", "security", "scaling", "benchmarking")
RUN = [
    ROOT / "README.md",
    *(path for name in GUIDES if (path := ROOT / f"docs/{name}.md").exists()),
]
# The pages whose commands are checked. A page that is generated is compared with the code already.
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = {"bash", "console", "python", "js", "toml", "json", "text"}
SERVE = re.compile(r"\b(?:penstock|make) serve\b")
# Each action with the languages that it may stand above, and whether it needs a reason.
ACTIONS: dict[str, tuple[set[str], bool]] = {
    "skip": (set(), True),  # above any block
    "starts-server": ({"bash"}, False),
    "flags": ({"bash"}, True),
    "output": ({"text"}, False),
    "continues": ({"python"}, False),
    "keys": ({"toml"}, False),
    "file": (set(), False),
}
MARKER = re.compile(
    r"<!--\s*test:\s*(?P<action>[\w-]+)(?P<word>(?:\s+(?!reason=)\S+)?)"
    r"(?:\s+reason=(?P<reason>.*?))?\s*-->",
    re.DOTALL,
)


@dataclass
class Block:
    """A block of code: where it stands, its language, its text, and its markers."""

    page: Path
    line: int
    language: str
    code: str
    actions: dict[str, str] = field(default_factory=dict)
    """The action of each marker, with the marker's word or, if it needs a reason, the reason."""

    @property
    def place(self) -> str:
        """`docs/page.md:12`, as an editor and pytest show it."""
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}"

    @property
    def runs(self) -> bool:
        """True if the block is run or checked."""
        return "skip" not in self.actions

    def problem(self) -> str | None:
        """Return what breaks the rules, if anything does."""
        if not self.runs:
            return None
        if not self.language:
            return "the block is indented or has no language: fence it and name its language"
        if self.language not in LANGUAGES and "file" not in self.actions:
            return f"{self.language!r} is not run; mark the block: <!-- test: skip reason=... -->"
        if self.language == "text" and not {"output", "file"} & self.actions.keys():
            return "a text block needs <!-- test: output --> or a skip with its reason"
        serves = self.language in ("bash", "console") and SERVE.search(self.code)
        if serves and not {"starts-server", "flags"} & self.actions.keys():
            return "the server never ends: <!-- test: starts-server --> or flags reason=..."
        return None


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page. Raises ValueError if a marker is not understood."""
    blocks: list[Block] = []
    actions: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block" and "test:" in token.content:
            for found in MARKER.finditer(token.content):
                actions |= _action(found, f"{page.name}:{line}")
            if not actions:
                raise ValueError(f"{page.name}:{line}: not a marker: {token.content.strip()}")
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.strip() else ""
            blocks.append(Block(page, line, language, token.content, actions))
            allowed = [ACTIONS[action][0] for action in actions]
            if any(languages and language not in languages for languages in allowed):
                raise ValueError(f"{page.name}:{line}: {', '.join(actions)} above {language!r}")
            actions = {}
        elif actions and token.type != "html_block":
            raise ValueError(f"{page.name}:{line}: the marker above stands above no block")
    if actions:
        raise ValueError(f"{page.name}: the last marker stands above no block")
    return blocks


def _action(found: re.Match[str], place: str) -> dict[str, str]:
    action, word = found["action"], found["word"].strip()
    if action not in ACTIONS:
        raise ValueError(f"{place}: unknown marker {action!r}; there are {', '.join(ACTIONS)}")
    reason = " ".join((found["reason"] or "").split())
    if ACTIONS[action][1]:
        if not reason:
            raise ValueError(f"{place}: {action} needs a reason: {action} reason=needs a GPU")
        return {action: reason}
    if (action == "file") != bool(word) and (action, word) != ("starts-server", "keep"):
        raise ValueError(f"{place}: not understood: {found[0]}")
    return {action: word}


def commands_of(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the line, the command and the flags of each `penstock COMMAND --flag` on a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "  ")
    for found in re.finditer(
        r"\bpenstock (serve|generate|chat|bench|key(?: (?:add|rotate|revoke|list))?)\b"
        r"([^`#|;&\n]*)(?:#.*)?",
        text,
    ):
        flags = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", found[2])
        yield text.count("\n", 0, found.start()) + 1, found[1], flags


@dataclass
class Placeholders:
    """The values of a page's placeholders, as far as its blocks have printed them."""

    stream_id: str = ""
    key: str = ""

    def learn(self, printed: str) -> None:
        """Take the last stream id and the last key from what a block printed."""
        for found in re.finditer(r"(?i)\bx-stream-id:\s*(\S+)", printed):
            self.stream_id = found[1]
        for found in re.finditer(r"\bpsk_[\w-]+", printed):
            self.key = found[0]

    def fill_in(self, code: str, url: str) -> str:
        """Return the code with real values, and with a load that takes a second at most."""
        code = re.sub(r"https?://(?:127\.0\.0\.1|localhost):8000", url, code)
        code = re.sub(r"\bSTREAM_ID\b", lambda _: _known(self.stream_id, "STREAM_ID"), code)
        code = re.sub(r"(?<![\w$-])KEY\b", lambda _: _known(self.key, "KEY"), code)
        if "penstock bench" in code:
            code = re.sub(r"--duration[ =]\S+", "--duration 1", code)
            code = re.sub(
                r"--requests[ =](\d+)", lambda n: f"--requests {min(int(n[1]), 20)}", code
            )
        return code


def _known(value: str, word: str) -> str:
    if not value:
        raise ValueError(f"no block before this one has printed what {word} stands for")
    return value


def console_commands(code: str) -> list[tuple[str, str]]:
    """Return each command of a console block with the output that follows it."""
    found: list[tuple[list[str], list[str]]] = []
    goes_on = False
    for line in code.splitlines():
        if goes_on:
            found[-1][0].append(line)
        elif line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError("a console block begins with `$ ` and a command")
        goes_on = line.endswith("\\") and not (found[-1][1])
    return [("\n".join(command), "\n".join(output)) for command, output in found]


def matches(expected: str, printed: str) -> bool:
    """True if the output is what the page shows, where `...` stands for anything."""

    def plain(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*?".join(re.escape(part) for part in plain(expected).split("..."))
    return re.fullmatch(pattern, plain(printed), re.DOTALL) is not None
