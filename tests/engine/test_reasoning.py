"""Reasoning is separated from the answer, wherever the text is cut."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.reasoning import MARKS, Splitter, begun_answer, marks_in
from penstock.request import Message

THINK = MARKS[0]


def split(pieces: list[str], *, is_open: bool = False) -> dict[str, str]:
    splitter = Splitter(THINK, is_open=is_open)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.flush()
    assert all(text for _, text in parts)
    assert [kind for kind, _ in groupby(kind for kind, _ in parts)] in (
        [],
        ["thought"],
        ["answer"],
        ["thought", "answer"],
    )
    return {
        kind: "".join(text for each, text in parts if each == kind)
        for kind in ("thought", "answer")
    }


@pytest.mark.parametrize(
    ("text", "is_open", "thought", "answer"),
    [
        ("Hello <think> there", False, "", "Hello <think> there"),
        (" \n <think>\nHm, < 5.\n</think>\n\nYes. \n", False, "Hm, < 5.", "Yes. \n"),
        ("\nHm.\n</think>\n\nYes </think>.", True, "Hm.", "Yes </think>."),
        ("Hm. </thin", True, "Hm. </thin", ""),
        ("<think></think>Yes", False, "", "Yes"),
        ("<thin", False, "", "<thin"),
        ("  Yes", False, "", "  Yes"),
        ("a\n\nb</think>", True, "a\n\nb", ""),
        ("", True, "", ""),
    ],
)
def test_reasoning_is_separated_from_the_answer(
    text: str, is_open: bool, thought: str, answer: str
) -> None:
    for pieces in ([text], list(text)):
        assert split(pieces, is_open=is_open) == {"thought": thought, "answer": answer}


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", " ", "\n", "a", "é "])),
    st.lists(st.integers(0, 60)),
    st.booleans(),
)
def test_the_cuts_in_the_text_make_no_difference(
    words: list[str], cuts: list[int], is_open: bool
) -> None:
    text = "".join(words)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert split(pieces, is_open=is_open) == split([text], is_open=is_open)


@given(st.text("a <t/", max_size=30))
def test_little_is_held_back(text: str) -> None:
    splitter = Splitter(THINK, is_open=True)
    told = "".join(part for char in text for _, part in splitter.push(char))
    held = text.lstrip()[len(told) :]
    assert not held.strip() or THINK[1].startswith(held.strip())


def test_a_template_s_marks_are_found() -> None:
    assert marks_in("{{ content.split('</think>')[-1] }}") == THINK
    assert marks_in("{{ message.content }}") is None


@pytest.mark.parametrize(
    ("messages", "prompt_end", "kind"),
    [
        ((Message("assistant", "", "I think"),), "<|assistant|><think>\nI think", "thought"),
        ((Message("assistant", "", "I think"),), "<think>\nI think\n</think>\n\n", "answer"),
        ((Message("assistant", "<think>\nI think"),), "</think>\n\n<think>\nI think", "thought"),
        ((Message("assistant", "<think>a</think>b"),), "<think>a</think>b", "answer"),
        ((Message("assistant", "Yes ", "I think"),), "<think>\nI think\n</think>\n\nYes", "answer"),
        ((Message("user", "<think>"),), "<|user|><think><|end|><|assistant|>", "answer"),
        ((Message("user", "Hi"),), "<|assistant|><think>\n", "thought"),
        ((Message("assistant", ""),), "<|assistant|><think>\n", "thought"),
        (None, "Once upon a time", "answer"),
    ],
)
def test_a_begun_turn_goes_on_as_what_it_was(
    messages: tuple[Message, ...] | None, prompt_end: str, kind: str
) -> None:
    for generated, pieces in (("", [" so", " it"]), (" so", [" it"])):
        splitter = Splitter.after(THINK, prompt_end, generated, begun_answer(messages))
        parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.flush()
        assert {found for found, _ in parts} == {kind}
