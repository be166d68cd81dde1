"""Rules for the turns that clients send back, shared by the APIs that read conversations.

In: parts of a message, calls and results. Out: refusals of parts that no model of this server can
see, and results that name the calls which they answer. Not known here: any API's form of a turn.
"""

from collections import defaultdict, deque
from typing import NoReturn

import msgspec

from penstock.api.fields import misplaced
from penstock.request import Message

MEDIA = {
    "image_url": "images",
    "image": "images",
    "input_image": "images",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "videos",
    "video": "videos",
    "file": "files",
    "input_file": "files",
    "document": "files",
}
"""The kinds of parts that are not text, each with the word for its content."""
ONLY_TEXT = "Give only parts of the type text."


def refuse_part(place: str, kind: object, *, otherwise: str = ONLY_TEXT) -> NoReturn:
    """Refuse a part that is not text. Raises PydanticCustomError.

    `otherwise` is the sentence about a kind that nobody knows.
    """
    raise misplaced(f"{place}.type", refusal_of_part(kind, otherwise), "literal_error")


def refusal_of_part(kind: object, otherwise: str = ONLY_TEXT) -> str:
    """Return the sentence that refuses a part of this kind."""
    media = MEDIA.get(kind) if isinstance(kind, str) else None
    if media is None:
        return otherwise
    return (
        f"This server cannot show {media} to the model; it takes text only. Describe the content in"
        f" a part of the type text, or ask a server whose engine takes {media}."
    )


class Pairing:
    """Pairs results with calls: a result without an id answers the first call without a result."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._waiting_by_name: defaultdict[str, deque[str]] = defaultdict(deque)
        self._answered: set[str] = set()

    def paired(self, message: Message, number: int, tool_name: str = "") -> Message:
        """Return the next message, number `number`; a result then has the id of its call.

        A result without an id belongs to the first call without a result: of `tool_name`, if there
        is such a call, otherwise of any tool.
        """
        for call in message.tool_calls:
            self._waiting.append(call.id)
            self._waiting_by_name[call.name].append(call.id)
        if message.role != "tool":
            return message
        if not message.tool_call_id:
            named = self._waiting_by_name.get(tool_name, deque())
            call_id = self._next(named) or self._next(self._waiting) or f"call_{number}"
            message = msgspec.structs.replace(message, tool_call_id=call_id)
        self._answered.add(message.tool_call_id)
        return message

    def _next(self, waiting: deque[str]) -> str:
        """Return the first of these calls that has no result yet, "" if there is none."""
        while waiting and waiting[0] in self._answered:
            waiting.popleft()
        return waiting[0] if waiting else ""
