"""docs/ollama.md agrees with the parameters of Ollama's client, our fields and our tests."""

import re
from pathlib import Path

import pytest
from ollama import _types as theirs

from penstock.api.fields import Strict
from penstock.api.ollama.fields import (
    Common,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    parse_fields,
)
from penstock.api.tolerance import Notes
from penstock.errors import InvalidFields

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ollama.md").read_text(encoding="utf-8")
_VERDICTS = "supported|ignored|refused"
ROW = re.compile(rf"^\| `(\w+)` \| ({_VERDICTS}) \|.*\| `(test_\w+)` \|$", re.MULTILINE)
# Ollama's server takes these, but its Python client does not know them.
OF_SERVER = {"truncate", "shift"}
OPTIONS_OF_SERVER = {"min_p"}
BODY = {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}


def table(heading: str) -> dict[str, tuple[str, str]]:
    """Return the verdict and the test of each row of the table under a heading."""
    section = PAGE.partition(f"{heading}\n")[2].partition("\n#")[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `")
    return {name: (verdict, test) for name, verdict, test in rows}


FIELDS, OPTIONS = table("## /api/chat and /api/generate"), table("### Options")


def test_every_parameter_of_ollama_s_is_listed() -> None:
    of_client = {*theirs.GenerateRequest.model_fields, *theirs.ChatRequest.model_fields}
    ours = {*OllamaGenerateRequest.model_fields, *OllamaChatRequest.model_fields}
    assert set(FIELDS) == of_client | OF_SERVER == ours
    assert set(OPTIONS) == {*theirs.Options.model_fields} | OPTIONS_OF_SERVER
    assert set(OPTIONS) == {*OllamaOptions.model_fields}


def notes_on(model: type[Common], name: str, value: object) -> list[str]:
    notes = Notes()
    parse_fields(model, {**BODY, name: value}, notes)
    return [each for each in notes.names if each not in BODY]


@pytest.mark.parametrize("name", FIELDS)
def test_each_parameter_gets_its_verdict(name: str) -> None:
    verdict, _ = FIELDS[name]
    model: type[Strict] = OllamaGenerateRequest
    if name in OllamaChatRequest.model_fields:
        model = OllamaChatRequest
    assert issubclass(model, Common)
    if verdict == "ignored":
        assert notes_on(model, name, 5) == [name]
    elif verdict == "refused":
        for value in ([1], "a"):
            try:
                parse_fields(OllamaGenerateRequest, {name: value}, Notes())
            except InvalidFields as refused:
                if refused.code == "unsupported_field":
                    return
        raise AssertionError(f"{name} is accepted")


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_gets_its_verdict(name: str) -> None:
    verdict, _ = OPTIONS[name]
    ignored = notes_on(OllamaChatRequest, "options", {name: ["a"] if name == "stop" else 1})
    assert ignored == ([name] if verdict == "ignored" else [])


def test_every_named_test_exists() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = set(re.findall(r"def (test_\w+)\(", "\n".join(files)))
    assert {test for _, test in [*FIELDS.values(), *OPTIONS.values()]} - defined == set()
