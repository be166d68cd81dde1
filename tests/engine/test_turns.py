"""Conversations in the form that a template shows: nothing is refused, nothing is lost."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.turns import DROPPED, MERGED, Messages, Template, TemplateRefusedError, turn
from penstock.request import Message, ToolUse
from tests.support.templates import GEMMA, LLAMA, MISTRAL, PHI, PICKY, QWEN, TOOLS
from training.text.template import CHAT_TEMPLATE

TEMPLATES = {
    "rill": CHAT_TEMPLATE,
    "tools": TOOLS,
    "gemma": GEMMA,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "phi": PHI,
}


@functools.cache
def renderer(template: str) -> Callable[[Messages], Awaitable[str]]:
    """Return a function that renders messages as transformers does."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    compiled = environment.from_string(template, {"raise_exception": refuse})

    async def render(messages: Messages) -> str:
        turns = [turn(message, reasoning_as="reasoning_content") for message in messages]
        for each in turns:
            for call in each.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        try:
            return compiled.render(messages=turns, bos_token="", add_generation_prompt=True)
        except jinja2.TemplateError:
            raise TemplateRefusedError from None

    return render


@functools.cache
def probed(template: str) -> Template:
    return asyncio.run(Template.probe(renderer(template)))


def show(name: str, *messages: Message) -> tuple[str, tuple[str, ...]]:
    """Return the prompt that a template makes of the messages, and the notes."""
    template = TEMPLATES.get(name, name)
    _, prompt, notes = asyncio.run(probed(template).show(messages, renderer(template)))
    return prompt, notes


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str) -> Message:
    return Message("user", content)


def said(content: str) -> Message:
    return Message("assistant", content)


def calls(*ids: str, content: str = "") -> Message:
    return Message("assistant", content, "", tuple(ToolUse(i, "look", '{"x": 1}') for i in ids))


def result(call_id: str, content: str) -> Message:
    return Message("tool", content, tool_call_id=call_id)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_ordinary_conversation_is_shown_as_it_is(name: str) -> None:
    prompt, notes = show(name, user("A"), said("B"), user("C"))
    assert notes == ()
    assert prompt.index("A") < prompt.index("B") < prompt.index("C")


def test_turns_of_one_role_are_merged_only_where_a_template_refuses_them() -> None:
    turns = (user("A"), user("B"), said("C"), said("D"), user("E"))
    assert show("rill", *turns) == (
        "<|user|>A<|end|><|user|>B<|end|><|assistant|>C<|end|><|assistant|>D<|end|>"
        "<|user|>E<|end|><|assistant|>",
        (),
    )
    assert show("llama", *turns) == (
        "<|user|>A\n\nB<|end|><|assistant|>C\n\nD<|end|><|user|>E<|end|><|assistant|>",
        (MERGED,),
    )


def test_system_turns_are_merged_into_the_first_or_become_the_user_s() -> None:
    turns = (system("A"), user("B"), said("C"), system("D"), user("E"))
    first = "<|user|>B<|end|><|assistant|>C<|end|><|user|>E<|end|><|assistant|>"
    for name in ("llama", "mistral", "qwen"):
        assert show(name, *turns) == ("<|system|>A\n\nD<|end|>" + first, (MERGED,))
    assert show("gemma", *turns) == (
        "<|user|>A\n\nB<|end|><|assistant|>C<|end|><|user|>D\n\nE<|end|><|assistant|>",
        (MERGED,),
    )
    assert "A" in show("phi", system("A"))[0]


def test_a_conversation_that_does_not_begin_with_the_user_gets_an_empty_turn() -> None:
    assert show("gemma", said("A"), user("B")) == (
        "<|user|><|end|><|assistant|>A<|end|><|user|>B<|end|><|assistant|>",
        (MERGED,),
    )
    prompt, _ = show("qwen", system("A"), said("B"))
    assert prompt == "<|system|>A<|end|><|user|><|end|><|assistant|>B<|end|><|assistant|>"


def test_an_empty_last_turn_of_the_assistant_is_where_the_answer_begins() -> None:
    assert show("rill", user("A"), said("")) == ("<|user|>A<|end|><|assistant|>", (MERGED,))


def test_calls_and_results_are_text_for_a_template_that_does_not_show_them() -> None:
    turns = (user("A"), calls("c", content="B"), result("c", "C"), result("z", "D"), user("E"))
    for name in ("rill", "gemma", "llama", "phi"):
        prompt, notes = show(name, *turns)
        assert notes == (MERGED,)
        assert (
            'B\n\n<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call><|end|>'
            in prompt
        )
        assert "The function look returned:\nC\n\nReturned:\nD\n\nE<|end|>" in prompt


def test_calls_get_ids_that_the_template_takes() -> None:
    turns = (user("A"), calls("call_1", "123456789"), result("call_1", "B"), said("C"), user("D"))
    prompt, notes = show("mistral", *turns)
    assert notes == ()  # the model sees the same conversation
    first, second = prompt.split("~")[1:]
    assert second.startswith('look {"x": 1} 123456789<|end|>')
    given_id = first.split()[-1]
    assert len(given_id) == 9
    assert f"<|tool|>{given_id} B" in prompt
    assert show("mistral", *turns)[0] == prompt


def test_calls_that_the_template_does_not_show_in_this_order_are_text() -> None:
    prompt, notes = show("mistral", user("A"), calls("c"), result("c", "B"), user("C"))
    assert notes == (MERGED,)
    assert prompt == (
        '<|user|>A<|end|><|assistant|><tool_call>\n{"name": "look", "arguments": {"x": 1}}'
        "\n</tool_call><|end|>"
        "<|user|>The function look returned:\nB\n\nC<|end|><|assistant|>"
    )


def test_a_text_before_a_call_that_the_template_drops_is_noted() -> None:
    turns = (user("A"), calls("123456789", content="B"), result("123456789", "C"))
    for name, notes in (("mistral", (DROPPED,)), ("qwen", ()), ("gemma", (MERGED,))):
        prompt, noted = show(name, *turns)
        assert noted == notes
        assert ("B" in prompt) == (name != "mistral")


def test_a_conversation_that_a_template_refuses_in_every_form_is_refused() -> None:
    assert show(PICKY, user("A"))[1] == ()
    with pytest.raises(TemplateRefusedError):
        show(PICKY, user("zqxj"))


conversations = st.lists(
    st.builds(lambda role: (role,), st.sampled_from(["system", "user", "assistant", "tool"]))
    | st.tuples(st.just("assistant"), st.integers(1, 3)),
    min_size=1,
    max_size=8,
)


@given(st.sampled_from(sorted(TEMPLATES)), conversations)
def test_every_conversation_is_shown_and_nothing_of_it_is_lost(
    name: str, conversation: list[tuple[Any, ...]]
) -> None:
    turns: list[Message] = []
    for number, (role, *num_calls) in enumerate(conversation):
        ids = [f"c{number}-{each}" for each in range(*num_calls)] if num_calls else []
        uses = tuple(ToolUse(call_id, f"f{call_id}.", "{}") for call_id in ids)
        turns.append(Message(role, f"t{number}.", "", uses, "none" if role == "tool" else ""))
    prompt, notes = show(name, *turns)
    assert set(notes) <= {MERGED, DROPPED}
    kept = [each for each in turns if not (DROPPED in notes and each.tool_calls)]
    assert all(prompt.count(each.content) == 1 for each in kept)
    assert all(call.name in prompt for each in turns for call in each.tool_calls)
    others = [each.content for each in kept if each.role != "system"]
    places = [prompt.index(content) for content in others]
    assert places == sorted(places)
