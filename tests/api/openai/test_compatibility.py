"""docs/compatibility.md agrees with OpenAI's type definitions, our fields and our tests."""

import re
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chats
from openai.types.responses import response_create_params as of_responses

from penstock.api.openai.chat import REFUSED_CHAT, ChatRequest, parse_chat
from penstock.api.openai.completion import (
    CompletionRequest,
    parse_completion,
)
from penstock.api.openai.responses.fields import (
    REFUSED_RESPONSE,
    ResponseRequest,
    parse_response,
)
from penstock.api.tolerance import Notes
from penstock.errors import InvalidFields

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|.*\| `(\w+)` \|$", re.MULTILINE)
OTHERS = "Fields of vLLM and llama.cpp"
OWN = {"client_metadata"}  # Codex's own


def table_of(route: str) -> dict[str, tuple[str, str]]:
    """Return each parameter's verdict and the test that shows it."""
    section = PAGE.partition(f"## {route}\n")[2].partition("\n## ")[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `")
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (verdict, test) for name, verdict, test in rows}


def parameters_of(module: Any) -> set[str]:
    """Return every parameter of OpenAI's client, streamed or not."""
    kind = "Response" if module is of_responses else "Completion"
    parts = ("CreateParamsBase", "CreateParamsStreaming")
    return {name for part in parts for name in getattr(module, kind + part).__annotations__}


@pytest.mark.parametrize(
    ("route", "module", "model", "refused"),
    [
        ("/v1/chat/completions", of_chats, ChatRequest, REFUSED_CHAT),
        ("/v1/completions", of_completions, CompletionRequest, {}),
        ("/v1/responses", of_responses, ResponseRequest, REFUSED_RESPONSE),
    ],
    ids=["chat", "completion", "response"],
)
def test_every_parameter_of_openai_s_is_listed_with_its_verdict(
    route: str, module: Any, model: Any, refused: dict[str, Any]
) -> None:
    table = table_of(route)
    assert set(table) == parameters_of(module)
    of_openai = parameters_of(of_chats) | parameters_of(of_completions) | set(table)
    listed = {name for name, (verdict, _) in table.items() if verdict == "refused"}
    assert listed == set(refused) & set(table)
    assert set(refused) - listed <= of_openai | set(table_of(OTHERS))
    taken = {name for name, (verdict, _) in table.items() if verdict in ("supported", "ignored")}
    others = (set(table_of(OTHERS)) | of_openai) - set(table)
    assert taken == set(model.model_fields) - others - OWN


def test_every_field_of_other_servers_is_listed() -> None:
    of_openai = parameters_of(of_chats) | parameters_of(of_completions)
    ours = {*ChatRequest.model_fields, *CompletionRequest.model_fields} - of_openai
    assert set(table_of(OTHERS)) == {*ours, "response_format"}
    assert {verdict for verdict, _ in table_of(OTHERS).values()} == {"supported"}


@pytest.mark.parametrize(
    ("route", "parse", "body"),
    [
        ("/v1/chat/completions", parse_chat, {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", parse_completion, {"prompt": "a"}),
        ("/v1/responses", parse_response, {"input": "a"}),
    ],
    ids=["chat", "completion", "response"],
)
def test_each_parameter_gets_its_verdict(route: str, parse: Any, body: dict[str, Any]) -> None:
    for name, (verdict, _) in table_of(route).items():
        notes = Notes()
        if verdict == "refused":
            with pytest.raises(InvalidFields) as refused:
                parse({**body, name: {"a": "b"}}, notes)
            assert [each.field for each in refused.value.errors] == [name]
        elif verdict == "ignored":
            parse({**body, name: {"a": "b"}}, notes)
        assert list(notes.names) == ([name] if verdict == "ignored" else [])


def test_every_named_test_exists() -> None:
    names = {
        test
        for section in ("/v1/chat/completions", "/v1/completions", "/v1/responses", OTHERS)
        for _, test in table_of(section).values()
    }
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = set(re.findall(r"def (test_\w+)\(", "\n".join(files)))
    assert names - defined == set()
