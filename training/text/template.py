"""The special tokens, the chat template, and a Python function that does the same."""

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
    """Render a finished chat like CHAT_TEMPLATE, without a Jinja engine."""
    turns = (f"<|{message.role}|>{message.content}{END_OF_TURN}" for message in messages)
    return END_OF_TEXT + "".join(turns)
