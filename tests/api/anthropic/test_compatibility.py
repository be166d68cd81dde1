"""docs/messages.md agrees with Anthropic's type definitions, our fields and our tests."""

import re
from pathlib import Path

from anthropic.types import message_create_params as of_messages
from anthropic.types.beta import message_create_params as of_betas

from penstock.api.anthropic.fields import MessagesRequest, parse_fields
from penstock.api.tolerance import Notes

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## /v1/messages\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(\w+)` \| (supported|ignored) \|.*\| `(\w+)` \|$", SECTION, re.MULTILINE)
TABLE = {name: (verdict, test) for name, verdict, test in ROWS}
# Anthropic no longer lists these, but clients send them.
OLDER = {"temperature", "top_p", "top_k", "output_format"}
OF_BETAS = {"context_management", "mcp_servers"}


def test_every_parameter_of_anthropic_s_is_listed() -> None:
    base = set(of_messages.MessageCreateParamsBase.__annotations__)
    theirs = base | set(of_messages.MessageCreateParamsStreaming.__annotations__)
    assert len(ROWS) == len(TABLE) == SECTION.count("\n| `")
    assert set(TABLE) == theirs | OLDER | OF_BETAS == set(MessagesRequest.model_fields)
    assert set(of_betas.MessageCreateParamsBase.__annotations__) >= OF_BETAS


def test_each_parameter_gets_its_verdict() -> None:
    turn = {"role": "user", "content": "a"}
    for name, (verdict, _) in TABLE.items():
        if verdict == "ignored":
            notes = Notes()
            parse_fields(MessagesRequest, {"messages": [turn], name: {"a": "b"}}, notes)
            assert list(notes.names) == [name]


def test_every_named_test_exists() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = set(re.findall(r"def (test_\w+)\(", "\n".join(files)))
    assert {test for _, test in TABLE.values()} - defined == set()
