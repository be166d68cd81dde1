"""The body of `POST /v1/chat/completions`, and its requests to the engine."""

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

from penstock.api.extras import ChatExtras, ReasoningEffort
from penstock.api.fields import HINT, LEFT_OUT, ZERO_IS_UNSET, misplaced
from penstock.api.openai.fields import Common, TokenLimit, parse_fields
from penstock.api.openai.tools import (
    FunctionCall,
    Functions,
    GivenToolChoice,
    GivenTools,
    check_tools,
    tool_fields,
    tools_of,
)
from penstock.api.openai.turns import Messages
from penstock.api.refusals import Refusal
from penstock.api.tolerance import Notes, is_neutral, notes_of
from penstock.engine.protocol import Feature
from penstock.request import Grammar

# OpenAI's parameters that are refused by name.
REFUSED_CHAT = {
    "audio": Refusal("This server answers with text only. Leave out audio."),
    "moderation": Refusal("This server cannot moderate. Leave out moderation."),
    "web_search_options": Refusal(
        "This server cannot search the web. Leave out web_search_options.", meaningful=({},)
    ),
}


def known_tier(value: object, validate: Callable[[object], Any], info: ValidationInfo) -> Any:
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


class ChatRequest(ChatExtras, Common):
    """A conversation to answer, and how to generate the answer.

    `functions` and `function_call` are OpenAI's first form of tools. With them, the model makes at
    most one call, and `function_call` of the answer has it.
    """

    messages: Messages
    max_tokens: Annotated[TokenLimit | None, ZERO_IS_UNSET] = None
    max_completion_tokens: Annotated[TokenLimit | None, ZERO_IS_UNSET] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: GivenTools = None
    tool_choice: GivenToolChoice = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: FunctionCall | None = None
    reasoning_effort: ReasoningEffort | None = None
    modalities: Annotated[list[str], Field(fail_fast=True), AfterValidator(_only_text)] | None = (
        None
    )
    store: Annotated[bool, AfterValidator(_not_stored)] | None = None
    service_tier: Annotated[Literal["auto", "default"] | None, WrapValidator(known_tier)] = None
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

    def prompts(self) -> list[dict[str, Any]]:
        """Return the fields of `Request` for the conversation.

        Reasoning is not separated from an answer bound by a schema: all of it is answer.
        """
        choice, parallel = self.tool_choice, self.parallel_tool_calls
        return [
            {
                "messages": self.messages,
                "separate_reasoning": self.bond is None,
                "reasoning_effort": self.effort_of(self.reasoning_effort),
                **tool_fields(self.tools, choice, parallel, strict=self._notes.strict),
            }
        ]

    @property
    def _involve_tools(self) -> bool:
        return any(each.role == "tool" or each.tool_calls for each in self.messages)

    @property
    def may_call(self) -> bool:
        """Return True if the model may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        effort = self.reasoning_effort
        return [
            *super().needs(),
            ("functions" if self.functions else "tools", self.tools, "tools"),
            *((name, self.may_call, "tools_with_schema") for name, _ in self.bonds),
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
        self._translate_functions()
        if self.may_call and self.logprobs:
            refusal = "Leave out logprobs if the model may call tools."
            notes.ignore_or(misplaced("logprobs", refusal), "logprobs")
            self.logprobs = None
        for name, bond in self.bonds if self.may_call else ():
            if isinstance(bond, Grammar):
                raise misplaced(name, f"Leave out {name} if the model may call tools.")
        return self

    def _translate_functions(self) -> None:
        """Turn `functions` into tools. Raises PydanticCustomError if they cannot be called."""
        if not self.functions and self.function_call in (None, "none", "auto"):
            check_tools(self.tools, self.tool_choice)
            return
        if self.tools:
            raise misplaced("functions", "Give either tools or functions, not both.")
        self.tools, self.tool_choice = tools_of(self.functions or (), self.function_call)
        self.parallel_tool_calls = False
        check_tools(self.tools, self.tool_choice, ("functions", "function_call"))

    def _refuse_idle_fields(self) -> None:
        """Raise PydanticCustomError if a field has no effect, or an outdated form."""
        for name in ("functions", "function_call"):
            if getattr(self, name) is not None:
                raise misplaced(name, "Use tools and tool_choice.", "unsupported_field")
        if self.top_logprobs is not None and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise misplaced("max_tokens", "Give either max_tokens or max_completion_tokens.")
        if self.parallel_tool_calls is not None and not self.tools:
            raise misplaced("parallel_tool_calls", "Give tools to use parallel_tool_calls.")


def parse_chat(body: dict[str, Any], notes: Notes | None = None) -> ChatRequest:
    """Return the fields of a chat, and note those left out. Raises InvalidFields."""
    return parse_fields(ChatRequest, body, REFUSED_CHAT, notes or Notes())
