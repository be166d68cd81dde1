"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens`.

In: a JSON object. Out: a model of the request, which turns itself into the `Request` for the
engine, or InvalidFields. docs/messages.md lists every parameter.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import Field, JsonValue, PrivateAttr, model_validator

from penstock.api.anthropic.tools import ClientTools, ToolChoice, check_tools, tool_fields
from penstock.api.anthropic.turns import Messages, System
from penstock.api.fields import HINT, LEFT_OUT, MAX_TOKENS, WHOLE, StopStrings, Strict, parse
from penstock.api.serving import HINTS, left_out
from penstock.api.tolerance import Notes
from penstock.api.tools import Schema
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import Message, Request
from penstock.stream.registry import new_stream_id

MAX_MODEL_CHARACTERS = 256
# A model that lacks these features still answers the request as far as it can.
_HINTS: frozenset[Feature] = HINTS | frozenset[Feature]({"thinking_budget"})

Display = Literal["shown", "omitted", "hidden"]
"""How the model's reasoning is shown: in thinking blocks, in blocks without text, or not at all."""


class Thinking(Strict):
    """Whether the model reasons before it answers.

    `adaptive` leaves the amount to the model; `enabled` bounds it to `budget_tokens`. With the
    display `omitted`, thinking blocks have a signature and no text.
    """

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, WHOLE, Field(ge=1, le=MAX_TOKENS)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Strict):
    """The JSON schema that the answer satisfies."""

    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema")


class OutputConfig(Strict):
    """How much effort the model makes, and the format of its answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None
    task_budget: Annotated[Any, HINT] = None


class CountTokensRequest(Strict):
    """A conversation whose tokens are counted."""

    model: Annotated[str, Field(max_length=MAX_MODEL_CHARACTERS)] | None = None
    messages: Messages
    system: System | None = None
    tools: ClientTools | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: Annotated[Any, HINT] = None
    mcp_servers: Annotated[Any, HINT] = None
    cache_control: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    speed: Annotated[str | None, LEFT_OUT] = None
    user_profile_id: Annotated[str | None, LEFT_OUT] = None
    workspace_id: Annotated[str | None, LEFT_OUT] = None
    _notes: Notes = PrivateAttr(default_factory=Notes)

    @property
    def may_call(self) -> bool:
        """Return True if the model may call tools."""
        return bool(self.tools) and not (self.tool_choice and self.tool_choice.type == "none")

    @property
    def display(self) -> Display:
        """Return how the answer shows the model's reasoning: only if the request asks for it."""
        thinking = self.thinking
        if thinking is None or thinking.type == "disabled":
            return "hidden"
        return "omitted" if thinking.display == "omitted" else "shown"

    @property
    def _schema(self) -> dict[str, JsonValue] | None:
        config = self.output_config
        output_format = (config.format if config is not None else None) or self.output_format
        return output_format.schema_ if output_format is not None else None

    def to_request(self, info: ModelInfo, **fields: Any) -> Request:
        """Return the request to the engine, with more `fields`. Raises InvalidFields.

        A field that the model's engine does not support is refused, or left out if it only hints.
        """
        gone = set(left_out(self._needs(), info, self._notes, hints=_HINTS))
        schema = self._schema
        system = (Message("system", self.system),) if self.system else ()
        last = self.messages[-1]
        is_begun = last.role == "assistant" and bool(last.content) and not last.tool_calls
        return Request(
            id=new_stream_id(),
            model=info.id,
            messages=system + self.messages,
            json_schema=None if schema is None else json.dumps(schema),
            lax_schema=not self._notes.strict,
            continue_last_message=is_begun and "last_message" in info.supports,
            **tool_fields(self.tools, self.tool_choice, strict=self._notes.strict),
            **self._reasoning_fields(info, gone),
            **fields,
        )

    def _needs(self) -> dict[str, Feature]:
        """Return the feature that each used field needs, by the field's name."""
        needs: dict[str, Feature] = {}
        config, thinking = self.output_config, self.thinking
        if self.tools:
            needs["tools"] = "tools"
        if self._schema is not None:
            name = "output_format" if self.output_format else "output_config.format"
            needs[name] = "tools_with_schema" if self.may_call else "json_schema"
        if config is not None and config.effort and self.display != "hidden":
            needs["output_config.effort"] = "reasoning_effort"
        if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens:
            needs["thinking.budget_tokens"] = "thinking_budget"
        return needs

    def _reasoning_fields(self, info: ModelInfo, gone: set[str]) -> dict[str, Any]:
        """Return the fields of `Request` for the model's reasoning.

        The model does not reason unless the request asks for it. An answer bound by a schema has no
        reasoning: all of it is answer.
        """
        is_bound = self._schema is not None
        if self.display == "hidden" or is_bound:
            can_switch = "reasoning_switch" in info.supports
            if self.thinking is not None and (is_bound or not can_switch):
                self._notes.ignore("thinking")
            if self.output_config is not None and self.output_config.effort:
                self._notes.ignore("output_config.effort")
            return {
                "separate_reasoning": not is_bound,
                "reasoning_effort": "none" if can_switch else None,
            }
        config, thinking = self.output_config, self.thinking
        fields: dict[str, Any] = {"separate_reasoning": True}
        if config is not None and "output_config.effort" not in gone:
            fields["reasoning_effort"] = config.effort
        if thinking is not None and "thinking.budget_tokens" not in gone:
            is_limited = thinking.type == "enabled"
            if thinking.budget_tokens and not is_limited:
                self._notes.ignore("thinking.budget_tokens")
            fields["thinking_budget"] = thinking.budget_tokens if is_limited else None
            fields["lax_budget"] = not self._notes.strict
        return fields

    @model_validator(mode="after")
    def _fields_agree(self) -> "CountTokensRequest":
        check_tools(self.tools, self.tool_choice)
        return self


class MessagesRequest(CountTokensRequest):
    """A conversation to answer, and how to generate the answer.

    `temperature` goes up to 2, and `top_p` and `top_k` may be given together with it.
    """

    max_tokens: Annotated[int, WHOLE, Field(ge=1, le=MAX_TOKENS)] | None = None
    stream: bool | None = None
    stop_sequences: StopStrings | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    container: Annotated[Any, HINT] = None
    diagnostics: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    inference_geo: Annotated[str | None, LEFT_OUT] = None
    metadata: Annotated[dict[str, JsonValue] | None, LEFT_OUT] = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, LEFT_OUT] = None

    def request(self, info: ModelInfo) -> Request:
        """Return the request to the engine. Raises InvalidFields.

        A token limit is cut to the room in the context; if the server is strict, it must fit.
        """
        asked, strict = self.max_tokens, self._notes.strict
        default = info.sampling
        sampling = msgspec.structs.replace(
            default,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            top_k=default.top_k if self.top_k is None else max(0, self.top_k),
        )
        return self.to_request(
            info,
            max_tokens=asked if strict and asked else min(asked or MAX_TOKENS, info.context_length),
            must_fit=strict and asked is not None,
            sampling=sampling,
            stop=tuple(self.stop_sequences or ()),
        )


Asked = TypeVar("Asked", bound=CountTokensRequest)


def parse_fields(model: type[Asked], body: dict[str, Any], notes: Notes) -> Asked:
    """Return the body as this model, and note what is left out. Raises InvalidFields."""
    asked = parse(model, body, notes)
    asked._notes = notes
    return asked
