"""The sinks for vLLM's answers, tested with scripted parsers and without vLLM."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from penstock.engine.reasoning import MARKS, SplitSink, Splitter
from penstock.engine.vllm.answers import Parsed, ParsingSink, SecondCallError, logprobs_of
from tests.support.recording import RecordingSink


@dataclass
class Function:
    name: str | None = None
    arguments: str | None = None


@dataclass
class Call:
    index: int
    id: str | None = None
    function: Function | None = None


@dataclass
class Message:
    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[Any] = field(default_factory=list)


class Script:
    """A parser that returns scripted results in turn and records its arguments."""

    def __init__(self, *parsed: Message | None) -> None:
        self.given: list[tuple[str, list[int], bool]] = []
        self._parsed = list(parsed)

    def __call__(self, text: str, token_ids: list[int], *, finished: bool) -> Parsed | None:
        self.given.append((text, token_ids, finished))
        return self._parsed.pop(0) if self._parsed else None


BEGIN = Call(0, "call_a", Function("look"))


def test_a_call_comes_in_parts_with_its_id_and_name_in_the_first() -> None:
    sink = RecordingSink()
    script = Script(
        None,
        Message(tool_calls=[BEGIN]),
        Message(tool_calls=[Call(0, "call_a", Function("look", '{"at'))]),
        Message(tool_calls=[Call(0, None, Function(None, '": 1}'))]),
        Message(tool_calls=[Call(0, None, None)]),
    )
    parsing = ParsingSink(sink, script, parallel_calls=True)
    for token_id in range(5):
        parsing.delta(str(token_id), 1, (token_id,))
    parsing.finish("stop", 5)
    assert sink.tool_parts == [
        (0, "call_a", "look", ""),
        (0, "", "", '{"at'),
        (0, "", "", '": 1}'),
    ]
    assert script.given == [(str(n), [n], False) for n in range(5)] + [("", [], True)]
    assert sink.num_tokens == sink.completion_tokens == 5
    assert sink.reason == "stop"


def test_a_call_without_an_id_is_given_one() -> None:
    sink = RecordingSink()
    calls = [Call(2, None, Function("a", "{}")), Call(3, None, Function("b", "{}"))]
    ParsingSink(sink, Script(Message(tool_calls=calls)), parallel_calls=True).delta("x", 1, (7,))
    (first, second) = sink.tool_parts
    assert (first[0], first[2], second[0], second[2]) == (0, "a", 1, "b")
    assert first[1].startswith("call_")
    assert second[1] not in ("", first[1])


def test_a_second_call_ends_the_answer_if_only_one_is_allowed() -> None:
    sink = RecordingSink()
    second = [Call(0, None, Function(None, "}")), Call(1, "call_b", Function("look"))]
    script = Script(Message(tool_calls=[BEGIN]), Message(tool_calls=second))
    parsing = ParsingSink(sink, script, parallel_calls=False)
    parsing.delta("x", 2, (1, 2))
    with pytest.raises(SecondCallError) as over:
        parsing.delta("y", 3, (3, 4, 5))
    assert over.value.completion_tokens == 5
    assert sink.tool_parts == [(0, "call_a", "look", ""), (0, "", "", "}")]


def test_the_tokens_of_a_piece_are_counted_once_whatever_it_contains() -> None:
    sink = RecordingSink()
    script = Script(Message("Hm.", "Yes.", [BEGIN]), None, Message(content="No."))
    parsing = ParsingSink(sink, script, parallel_calls=True)
    for token_id in (1, 2, 3):
        parsing.delta("x", 1, (token_id,))
    assert sink.calls == ["reasoning", "delta", "tool_call", "delta", "delta"]
    assert sink.num_tokens == 3
    assert sink.token_ids == [1, 2, 3]
    assert (sink.thoughts, sink.text()) == (["Hm."], "Yes.No.")


def test_text_that_was_held_back_comes_at_the_end() -> None:
    sink = RecordingSink()
    parsing = ParsingSink(sink, Script(None, Message(content="<tool")), parallel_calls=True)
    parsing.delta("<tool", 1, (1,))
    parsing.finish("length", 1)
    assert sink.text() == "<tool"
    assert sink.calls[-1] == "finish"


def test_a_parser_gets_only_the_answer_if_marks_separate_the_reasoning() -> None:
    sink = RecordingSink()
    script = Script(Message(content="Yes"), Message(tool_calls=[BEGIN]))
    parsing = ParsingSink(sink, script, parallel_calls=True)
    splitting = SplitSink(parsing, Splitter(MARKS[0], is_open=True))
    for token_id, piece in enumerate(["Hm", ".\n</think>", "\n\nYes", " <call>"]):
        splitting.delta(piece, 1, (token_id,))
    splitting.finish("stop", 4)
    assert "".join(sink.thoughts) == "Hm."
    assert [text for text, _, _ in script.given if text] == ["Yes", " <call>"]
    assert sink.text() == "Yes"
    assert sink.tool_parts == [(0, "call_a", "look", "")]
    assert sink.num_tokens == 4


@dataclass
class Logprob:
    decoded_token: str
    rank: int
    logprob: float = -1.0


def test_parts_of_characters_have_their_own_bytes() -> None:
    pieces = {1: "\u0120a", 2: "\u00f0\u0141", 3: "<0xE2>", 4: "<|end|>", 5: "\u2581x\ufffd"}
    texts = {1: " a", 2: "\ufffd", 3: "\ufffd", 4: "<|end|>", 5: "x\ufffd"}
    position = {number: Logprob(text, number) for number, text in texts.items()}
    (found,) = logprobs_of((2,), [position], 5, pieces.__getitem__)
    parts = [b" a", b"\xf0\x9f", b"\xe2", b"<|end|>", "x\ufffd".encode()]
    assert [token for token, _ in found.top] == parts
    assert found.token == b"\xf0\x9f"
