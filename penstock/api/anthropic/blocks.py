"""The blocks of a conversation, for the description of the API and for `--strict`.

Without `--strict` a turn may have more (see `turns`). This module says only what is right.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from penstock.api.fields import Strict
from penstock.api.tools import ToolName

CallId = Annotated[str, Field(min_length=1, max_length=256)]
CacheControl = dict[str, JsonValue]


class TextBlock(Strict):
    """Text. `cache_control` and `citations` change nothing: the engine caches every prompt."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[JsonValue] | None = None


def _as_blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[
    list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])
]


class ThinkingBlock(Strict):
    """The model's reasoning, as an answer had it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Strict):
    """A tool call that the model has made."""

    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: dict[str, JsonValue]
    cache_control: CacheControl | None = None
    caller: dict[str, JsonValue] | None = None


class TextSource(Strict):
    """A document's text."""

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


class ContentSource(Strict):
    """A document's text in blocks."""

    type: Literal["content"]
    content: Texts


class DocumentBlock(Strict):
    """A document, of which the model sees the text."""

    type: Literal["document"]
    source: Annotated[TextSource | ContentSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None
    cache_control: CacheControl | None = None
    citations: dict[str, JsonValue] | None = None


class SearchResultBlock(Strict):
    """A search result, of which the model sees the text."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]
    cache_control: CacheControl | None = None
    citations: dict[str, JsonValue] | None = None


Shown = Annotated[TextBlock | DocumentBlock | SearchResultBlock, Field(discriminator="type")]


class ToolResultBlock(Strict):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: (
        Annotated[
            list[Shown], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Shown])
        ]
        | None
    ) = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[
    TextBlock | DocumentBlock | SearchResultBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]


class MessageTurn(Strict):
    """One turn of a conversation: text or blocks.

    Results of tools are in the user's turns, thinking and calls in the assistant's.
    """

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block]),
    ]


Turns: Any = Annotated[list[MessageTurn], Field(min_length=1)]
