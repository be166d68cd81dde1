"""The body of `POST /v1/chat/completions`, and its requests to the engine."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.api.fields import HINT, LEFT_OUT, ZERO_IS_UNSET, Strict
from penstock.api.openai.fields import Common, Refusal, TokenLimit, parse_fields
from penstock.api.openai.tools import Schema, ToolChoice, Tools, check_tools, tool_fields
from penstock.api.openai.turns import Messages, misplaced
from penstock.api.tolerance import Notes, is_neutral, notes_of
from penstock.engine.protocol import Feature

# OpenAI's parameters that are refused by name.
REFUSED_CHAT = {
    "audio": Refusal("This server answers with text only. Leave out audio."),
    "function_call": Refusal("Use tool_choice, which replaces function_call.", ("none", "auto")),
    "functions": Refusal("Use tools, which replaces functions."),
    "moderation": Refusal("This server cannot moderate. Leave out moderation."),
    "web_search_options": Refusal(
        "This server cannot search the web. Leave out web_search_options.", meaningful=({},)
    ),
}


def _tier(value: object, validate: Callable[[object], Any], info: ValidationInfo) -> Any:
    notes = notes_of(info.context)
    if notes.strict:
        return validate(value)
    if not is_neutral(value) and value not in ("auto", "default"):
        notes.ignore("service_tier")
    return None


def _only_text(modalities: list[str]) -> list[str]:
    if set(modalities) - {"text"}:
        raise PydanticCustomError("value_error", 'This server answers with text only: ["text"].')
    return modalities


def _not_stored(store: bool) -> bool:
    if store:
        raise PydanticCustomError(
            "value_error", "This server stores no answers. Leave out store, or set it to false."
        )
    return store


class JsonSchema(Strict):
    """A named JSON schema. The answer satisfies it whether it is `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The format of the answer: text, any JSON object, or JSON that satisfies a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise PydanticCustomError(
                "value_error", "Give json_schema with the type json_schema, and only with it."
            )
        return self

    def schema_text(self) -> str | None:
        """Return the schema that the answer must satisfy, None for text."""
        if self.type == "text":
            return None
        if self.json_schema is None:
            return '{"type": "object"}'
        return json.dumps(self.json_schema.schema_)


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(Common):
    """A conversation to answer, and how to generate the answer."""

    messages: Messages
    max_tokens: Annotated[TokenLimit | None, ZERO_IS_UNSET] = None
    max_completion_tokens: Annotated[TokenLimit | None, ZERO_IS_UNSET] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    modalities: Annotated[list[str], AfterValidator(_only_text)] | None = None
    store: Annotated[bool, AfterValidator(_not_stored)] | None = None
    service_tier: Annotated[Literal["auto", "default"] | None, WrapValidator(_tier)] = None
    prediction: Annotated[Any, HINT] = None
    verbosity: Annotated[Any, HINT] = None
    metadata: Annotated[dict[str, str] | None, LEFT_OUT] = None
    prompt_cache_key: Annotated[str | None, LEFT_OUT] = None
    prompt_cache_options: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    prompt_cache_retention: Annotated[str | None, LEFT_OUT] = None
    safety_identifier: Annotated[str | None, LEFT_OUT] = None

    @property
    def top_logprobs_asked(self) -> int | None:
        """Return how many alternatives each token gets; None without `logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_tokens_asked(self) -> int | None:
        """Return the token limit, which may be given by its new or its old name."""
        return self.max_completion_tokens or self.max_tokens

    def schema_text(self) -> str | None:
        """Return the JSON schema that the answer must satisfy, None without a schema."""
        return None if self.response_format is None else self.response_format.schema_text()

    def prompts(self) -> list[dict[str, Any]]:
        """Return the fields of `Request` for the conversation.

        Reasoning is not separated from an answer bound by a schema: all of it is answer.
        """
        schema = self.schema_text()
        return [
            {
                "messages": tuple(turn.to_message() for turn in self.messages),
                "json_schema": schema,
                "separate_reasoning": schema is None,
                "reasoning_effort": self.reasoning_effort,
                **tool_fields(self.tools, self.tool_choice, self.parallel_tool_calls),
            }
        ]

    @property
    def _involve_tools(self) -> bool:
        return any(turn.role == "tool" or turn.tool_calls for turn in self.messages)

    @property
    def may_call(self) -> bool:
        """Return True if the model may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        effort = self.reasoning_effort
        return [
            *super().needs(),
            ("response_format", self.schema_text() is not None, "json_schema"),
            ("tools", self.tools, "tools"),
            ("messages", self._notes.strict and self._involve_tools, "tools"),
            ("reasoning_effort", effort == "none", "reasoning_switch"),
            ("reasoning_effort", effort not in (None, "none"), "reasoning_effort"),
        ]

    @model_validator(mode="after")
    def _fields_agree(self, info: ValidationInfo) -> "ChatRequest":
        notes = notes_of(info.context)
        if notes.strict:
            self._refuse_idle_fields()
        elif self.top_logprobs and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            notes.ignore("max_tokens")
        if not self.tools and self.tool_choice == "auto" and not notes.strict:
            self.tool_choice = None
        check_tools(self.tools, self.tool_choice)
        if self.may_call and self.logprobs:
            refusal = "Leave out logprobs if the model may call tools."
            notes.ignore_or(misplaced("logprobs", refusal), "logprobs")
            self.logprobs = None
        if self.may_call and self.schema_text() is not None:
            raise misplaced(
                "response_format", "Leave out response_format if the model may call tools."
            )
        return self

    def _refuse_idle_fields(self) -> None:
        """Raise PydanticCustomError if a field has no effect because another field is missing."""
        if self.top_logprobs is not None and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise misplaced("max_tokens", "Give either max_tokens or max_completion_tokens.")
        if self.parallel_tool_calls is not None and not self.tools:
            raise misplaced("parallel_tool_calls", "Give tools to use parallel_tool_calls.")


def parse_chat(body: dict[str, Any], notes: Notes | None = None) -> ChatRequest:
    """Return the fields of a chat, and note those left out. Raises InvalidFields."""
    return parse_fields(ChatRequest, body, REFUSED_CHAT, notes or Notes())
