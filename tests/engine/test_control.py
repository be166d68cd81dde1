"""The texts of control tokens in conversations and tools."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.control import ControlTokens, broken_tools

CONTROL = ControlTokens({"<|end|>": 4, "<|user|>": 2})
TEXTS = st.text("<|>endusrx \ue000é") | st.sampled_from(["<|end|>", "<|user|>x", "a<|user|>"])


def rendered(contents: list[str]) -> str:
    return "".join(f"<|user|>{content.strip()}<|end|>" for content in contents)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_only_the_template_s_own_control_tokens_have_ids(contents: list[str]) -> None:
    hidden, texts = CONTROL.hide_in(contents)
    assert not CONTROL.found_in(hidden)
    assert CONTROL.found_in(contents) == bool(texts)
    if not texts:
        assert hidden is contents
        return
    pieces = CONTROL.pieces_of(rendered(hidden), texts)
    assert isinstance(pieces[0], str)
    assert [piece for piece in pieces if isinstance(piece, int)] == [2, 4] * len(contents)
    names = {2: "<|user|>", 4: "<|end|>"}
    whole = "".join(piece if isinstance(piece, str) else names[piece] for piece in pieces)
    assert whole == rendered(contents)


def test_the_longest_control_token_wins() -> None:
    longer = ControlTokens({"<|user|>": 2, "<|user|>x": 5})
    hidden, texts = longer.hide_in({"a": ["<|user|>x"]})
    assert list(texts.values()) == ["<|user|>x"]
    assert hidden == {"a": [next(iter(texts))]}


@given(TEXTS)
def test_a_broken_text_looks_the_same_and_has_no_control_token(text: str) -> None:
    broken = CONTROL.break_in(text)
    assert not CONTROL.found_in(broken)
    assert broken.replace("\u2060", "") == text


def test_a_model_without_control_tokens_hides_nothing() -> None:
    assert ControlTokens({}).hide_in("<|end|>") == ("<|end|>", {})
    assert ControlTokens({}).pieces_of("<|end|>", {}) == ["<|end|>"]


def test_only_descriptions_of_tools_are_broken() -> None:
    text = "<|end|>"
    parameters: dict[str, Any] = {
        "properties": {"title": {"enum": [text], "title": text}, "b": {"default": [text]}},
        "required": [text],
    }
    tools = [{"function": {"name": "f", "description": text, "parameters": parameters}}]
    changed = broken_tools(json.loads(json.dumps(tools)), CONTROL)[0]["function"]
    assert not CONTROL.found_in(changed["description"])
    properties = changed["parameters"]["properties"]
    assert properties["title"]["enum"] == [text]
    assert not CONTROL.found_in([properties["title"]["title"], properties["b"]["default"]])
    assert changed["parameters"]["required"] == [text]
