"""The special tokens, the chat template, and the plain function that says what it means."""

from collections.abc import Sequence

from training.text.chat import Message

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (END_OF_TEXT, *ROLE_TOKENS, END_OF_TURN)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(messages: Sequence[Message]) -> str:
    """What CHAT_TEMPLATE makes of a finished chat, without a Jinja engine."""
    turns = (f"<|{message.role}|>{message.content}{END_OF_TURN}" for message in messages)
    return END_OF_TEXT + "".join(turns)
