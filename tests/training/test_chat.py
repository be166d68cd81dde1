"""Chats, and the template that renders them as text."""

import random

import jinja2

from training.text.chat import write_chat
from training.text.document import Kind, documents
from training.text.split import Split
from training.text.template import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS, render

TEMPLATE = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)


def chats(count: int) -> list[list[tuple[str, str]]]:
    rng = random.Random(12)
    return [
        [(m.role, m.content) for m in write_chat(rng, Split.TRAIN).messages] for _ in range(count)
    ]


def test_chat_documents_are_exactly_what_the_jinja_template_makes() -> None:
    rng = random.Random(12)
    for _ in range(100):
        messages = write_chat(rng, Split.TRAIN).messages
        plain = [{"role": m.role, "content": m.content} for m in messages]
        rendered = TEMPLATE.render(messages=plain, bos_token=END_OF_TEXT)
        assert render(messages) == rendered


def test_a_generation_prompt_asks_the_assistant_to_speak() -> None:
    rendered = TEMPLATE.render(
        messages=[{"role": "user", "content": "Hello"}],
        bos_token=END_OF_TEXT,
        add_generation_prompt=True,
    )
    assert rendered == "<|endoftext|><|user|>Hello<|end|><|assistant|>"


def test_turns_alternate_after_at_most_one_system_message() -> None:
    for messages in chats(200):
        roles = [role for role, _ in messages]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles


def test_no_message_is_empty_or_holds_a_special_token() -> None:
    for messages in chats(200):
        for _, content in messages:
            assert content.strip() == content != ""
            assert not any(token in content for token in SPECIAL_TOKENS)


def test_chats_reach_the_length_that_trains_late_positions() -> None:
    texts = [next(documents(seed, Split.TRAIN, kind=Kind.CHAT)).text for seed in range(80)]
    assert max(map(len, texts)) > 1500
    assert min(map(len, texts)) < 400
