"""The body of `POST /v1/responses`, and its request to the engine.

In: a JSON object. Out: a model of the request, which turns itself into a `Request` once it knows
the whole conversation: the input, and before it what an earlier response was about.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.api.bonds import ANY_OBJECT, Bond
from penstock.api.extras import ChatExtras, ReasoningEffort
from penstock.api.fields import HINT, LEFT_OUT, ZERO_IS_UNSET, Strict, misplaced
from penstock.api.openai.chat import known_tier
from penstock.api.openai.fields import Common, TokenLimit, parse_fields
from penstock.api.openai.responses.items import Resolve, read_items
from penstock.api.openai.responses.tools import ToolSet, read_choice, read_tools
from penstock.api.openai.tools import ToolChoice, check_tools, tool_fields
from penstock.api.refusals import Refusal
from penstock.api.tolerance import Notes, notes_of
from penstock.api.tools import Schema
from penstock.engine.protocol import Feature
from penstock.errors import FieldError, InvalidFields
from penstock.request import Grammar, Message

MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
REFUSED_RESPONSE = {
    "conversation": Refusal("This server has no conversations. Use previous_response_id."),
    "prompt": Refusal("This server stores no prompts. Write the prompt into instructions."),
    "n": Refusal("A response has one answer. Leave out n.", neutral=(1,)),
    "max_tokens": Refusal("Use max_output_tokens."),
    "moderation": Refusal("This server cannot moderate. Leave out moderation."),
    "response_format": Refusal("Use text.format."),
    "include_reasoning": Refusal(
        "Reasoning is an item of the output, which you can skip. Leave out include_reasoning.",
        neutral=(True,),
        meaningful=(False,),
    ),
}


class TextFormat(Strict):
    """The format of the answer: text, any JSON object, or JSON that satisfies a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def bond(self) -> str | None:
        """Return the schema, as text, that the answer must satisfy."""
        if self.type == "text":
            return None
        return ANY_OBJECT if self.schema_ is None else json.dumps(self.schema_)

    @model_validator(mode="after")
    def _has_its_schema(self) -> "TextFormat":
        if (self.schema_ is not None) != (self.type == "json_schema"):
            raise PydanticCustomError(
                "value_error", "Give schema with the type json_schema, and only with it."
            )
        return self


class TextConfig(Strict):
    """How the answer's text is written."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, HINT] = None


class ReasoningConfig(Strict):
    """How the model reasons. Its reasoning is shown whole, so there is no summary."""

    effort: ReasoningEffort | None = None
    summary: Annotated[Any, HINT] = None
    generate_summary: Annotated[Any, HINT] = None


def _tools(sent: Any, info: ValidationInfo) -> ToolSet:
    if not isinstance(sent, list):
        raise PydanticCustomError("list_type", "Give a list of tools.")
    return read_tools(sent, notes_of(info.context))


def _text_as_list(sent: object) -> object:
    return [{"type": "message", "role": "user", "content": sent}] if isinstance(sent, str) else sent


def _bounded_metadata(sent: object) -> object:
    if isinstance(sent, dict) and len(sent) > MAX_METADATA:
        raise PydanticCustomError("too_long", f"Give at most {MAX_METADATA} entries.")
    return sent


Item = dict[str, JsonValue]
Input = Annotated[
    list[Item],
    Field(fail_fast=True),
    BeforeValidator(_text_as_list, json_schema_input_type=str | list[Item]),
]
ResponseTools = Annotated[ToolSet, PlainValidator(_tools, json_schema_input_type=list[Item])]
Metadata = Annotated[
    dict[str, Annotated[str, Field(max_length=512)]], BeforeValidator(_bounded_metadata)
]


class ResponseRequest(ChatExtras, Common):
    """What to respond to, and how to generate the response."""

    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[TokenLimit | None, ZERO_IS_UNSET] = None
    tools: ResponseTools | None = None
    tool_choice: JsonValue = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: Annotated[Literal["auto", "default"] | None, WrapValidator(known_tier)] = None
    # A response has no place for these.
    return_token_ids: Annotated[None, HINT] = None
    prompt_logprobs: Annotated[None, HINT] = None
    max_tool_calls: Annotated[Any, HINT] = None
    context_management: Annotated[Any, HINT] = None
    access_programs: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    background_options: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    image: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    client_metadata: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    prompt_cache_key: Annotated[str | None, LEFT_OUT] = None
    prompt_cache_options: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    prompt_cache_retention: Annotated[str | None, LEFT_OUT] = None
    safety_identifier: Annotated[str | None, LEFT_OUT] = None
    _messages: tuple[Message, ...] = PrivateAttr(default=())
    _choice: ToolChoice | None = PrivateAttr(default=None)

    @property
    def effort(self) -> str | None:
        """Return how much the model should reason; "none" means not at all."""
        asked = None if self.reasoning is None else self.reasoning.effort
        return self.effort_of(asked)

    @property
    def is_stored(self) -> bool:
        """Return True if the response can be asked for later. OpenAI's default is True."""
        return self.store is not False

    @property
    def encrypts_reasoning(self) -> bool:
        """Return True if reasoning also comes in the form in which clients send it back."""
        return ENCRYPTED in (self.include or ())

    @property
    def top_logprobs_asked(self) -> int | None:
        """Return how many alternatives each token gets; None without log probabilities."""
        if LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return self.top_logprobs or None

    @property
    def max_tokens_asked(self) -> int | None:
        """Return the token limit."""
        return self.max_output_tokens

    @property
    def bonds(self) -> list[Bond]:
        """Return the fields that bind the answer; a valid request has one at most."""
        bond = None if self.text is None or self.text.format is None else self.text.format.bond()
        return [*super().bonds, *([] if bond is None else [("text", bond)])]

    @property
    def has_lax_schema(self) -> bool:
        """Return True if the engine may leave out what it cannot bind of the schema."""
        form = None if self.text is None else self.text.format
        return form is not None and not form.strict

    @property
    def may_call(self) -> bool:
        """Return True if the model may call tools."""
        return bool(self.tools and self.tools.functions) and self._choice != "none"

    def converse(self, earlier: Sequence[Message], resolve: Resolve) -> tuple[Message, ...]:
        """Read the input, which follows the messages of an earlier response. Raises InvalidFields.

        Return the conversation without the instructions: they hold for this response alone.
        """
        conversation = (*earlier, *read_items(self.input, self._notes, resolve))
        instructions = (Message("system", self.instructions),) if self.instructions else ()
        self._messages = (*instructions, *conversation)
        if not self._messages:
            raise InvalidFields([FieldError("input", "too_few_items", "input: Give some input.")])
        return conversation

    def prompts(self) -> list[dict[str, Any]]:
        """Return the fields of `Request` for the conversation."""
        bond = self.bond
        return [
            {
                "messages": self._messages,
                "separate_reasoning": bond is None,
                "reasoning_effort": self.effort,
                **tool_fields(
                    self.tools.functions if self.tools else None,
                    self._choice,
                    self.parallel_tool_calls,
                    strict=self._notes.strict,
                ),
            }
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that other servers' fields and `text` set."""
        return super().extra_fields() | self.bond_fields()

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [
            *super().needs(),
            ("text", any(name == "text" for name, _ in self.bonds), "json_schema"),
            ("tools", self.may_call, "tools"),
            *((name, self.may_call, "tools_with_schema") for name, _ in self.bonds),
            ("reasoning", self.effort == "none", "reasoning_switch"),
            ("reasoning", self.effort not in (None, "none"), "reasoning_effort"),
        ]

    @model_validator(mode="after")
    def _fields_agree(self, info: ValidationInfo) -> "ResponseRequest":
        notes = notes_of(info.context)
        tools = self.tools or ToolSet()
        if self.tool_choice is not None:
            try:
                self._choice = read_choice(self.tool_choice, tools, notes)
            except PydanticCustomError as error:
                raise misplaced("tool_choice", error.message_template, error.type) from None
        if not tools.functions and self._choice == "auto":
            self._choice = None
        check_tools(tools.functions, self._choice)
        if self.background and not self.is_stored:
            raise misplaced("background", "A response in the background must be stored.")
        if self.truncation == "auto":
            notes.ignore_or(misplaced("truncation", "This server cuts no input."), "truncation")
        if self.stream_options is not None and self.stream_options.continuous_usage_stats:
            notes.ignore("stream_options.continuous_usage_stats")
        if self.text is not None and self.text.format is not None and self.text.format.description:
            notes.ignore("text.format.description")
        for name in self.include or ():
            if name not in (ENCRYPTED, LOGPROBS):
                notes.ignore("include[]")
        if self.may_call and self.top_logprobs_asked is not None:
            refusal = "Leave out log probabilities if the model may call tools."
            notes.ignore_or(misplaced("top_logprobs", refusal), "top_logprobs")
            self.top_logprobs = self.include = None
        for name, bond in self.bonds if self.may_call else ():
            if isinstance(bond, Grammar):
                raise misplaced(name, f"Leave out {name} if the model may call tools.")
        return self


def parse_response(body: dict[str, Any], notes: Notes | None = None) -> ResponseRequest:
    """Return the fields of a response, and note those left out. Raises InvalidFields."""
    return parse_fields(ResponseRequest, body, REFUSED_RESPONSE, notes or Notes())
