"""Answers of vLLM that are continued: what of them was shown, and how the rest is read."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.engine.reasoning import Splitter
from penstock.engine.tools import CallForm
from penstock.engine.vllm.formats import (
    AnswerFormat,
    AnswerReader,
    Begun,
    CannotContinueError,
    check_shown,
    opens_call,
)
from tests.support.calling import BOTH
from tests.support.recording import RecordingSink

CALL = '\n{"name": "get_time", "arguments": {"zone":"UTC"}}\n</tool_call>'
FORM = CallForm(str(BOTH), must_call=False, parallel=True)


def parsed(content: str | None = None, reasoning: str | None = None, *calls: Any) -> Any:
    return SimpleNamespace(content=content, reasoning=reasoning, tool_calls=list(calls))


@pytest.mark.parametrize(
    ("text", "is_open"), [("", False), ("Well. ", False), ("Well. <tool_call>", True)]
)
def test_an_answer_continues_after_text_and_after_the_mark_that_opens_a_call(
    text: str, is_open: bool
) -> None:
    assert opens_call(text) is is_open
    sink = RecordingSink()
    reader = AnswerFormat(form=FORM, answer=text).sink(sink)
    reader.delta(CALL if is_open else f"<tool_call>{CALL}", 9, ())
    reader.finish("stop", 9)
    assert sink.failure is None
    assert "".join(part[3] for part in sink.tool_parts) == '{"zone":"UTC"}'
    assert sink.num_tokens == 9


@pytest.mark.parametrize("text", ['<tool_call>\n{"na', f"<tool_call>{CALL[:40]}"])
def test_an_answer_does_not_continue_within_a_call(text: str) -> None:
    with pytest.raises(CannotContinueError):
        opens_call(text)


def test_an_answer_continues_only_if_its_parser_holds_nothing_back() -> None:
    check_shown("", None)
    check_shown("Well.\n", parsed("Well."))
    check_shown("<think>Hm.", parsed(None, "Hm."))
    check_shown("Hm.</think>Well.", parsed("Well.", "Hm."))
    for answer, parts in (
        ("Well. <tool", parsed("Well. ")),
        ("Hm.</think><tool", parsed(None, "Hm.")),
        ("<tool_call>", None),
        ("<tool_call>{}", parsed(None, None, "call")),
        ("Well. <tool_call>{}", parsed("Well. ", None, "call")),
    ):
        with pytest.raises(CannotContinueError):
            check_shown(answer, parts)


class Tokens:
    """A tokenizer with one token for each character, and 1 and 2 for the marks."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        texts = {1: "<think>", 2: "</think>"}
        return "".join(texts.get(each, chr(each)) for each in ids)

    def convert_tokens_to_ids(self, tokens: Any) -> list[int]:
        return [{"<think>": 1, "</think>": 2}[each] for each in tokens]


def test_a_parser_reads_the_answer_so_far_without_the_reasoning_again() -> None:
    marks = ("<think>", "</think>")
    read: list[tuple[str, list[int]]] = []

    def parse_delta(text: str, ids: list[int], **more: Any) -> Any:
        read.append((text, ids))
        return parsed(text)

    begun = Begun((1,), (*b"Hm.", 2, *b"So"))
    text = begun.text(Tokens(), True)
    splitter = begun.splitter(marks, text, Tokens())
    assert not splitter.is_thinking
    reader = AnswerReader(SimpleNamespace(parse_delta=parse_delta), None, begun, marks, Tokens())
    check_shown("So", reader.read_again(splitter.answer_in(text)))
    assert read == [("So", [*b"So"])]
    sink = RecordingSink()
    AnswerFormat(splitter=splitter, parse=reader.parse).sink(sink).delta("me", 2, tuple(b"me"))
    assert (sink.text(), sink.thoughts, sink.token_ids) == ("me", [], [*b"me"])


def test_reasoning_that_goes_on_is_no_answer_yet() -> None:
    splitter = Splitter.after(("<think>", "</think>"), "<think>", "Hm. <tool_call>")
    assert splitter.answer_in("Hm. <tool_call>") == ""
    assert splitter.ends_thought == "</think>"
    splitter.push(" Yes.</think>")
    assert splitter.answer_in("Hm. <tool_call> Yes.</think>\nSo") == "\nSo"
    assert splitter.ends_thought == ""
