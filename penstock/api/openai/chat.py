"""The body of `POST /v1/chat/completions`, and its requests to the engine."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from penstock.api.fields import MAX_MESSAGES
from penstock.api.openai.extras import ChatExtras
from penstock.api.openai.fields import Common, parse_fields
from penstock.api.openai.tools import ToolChoice, Tools, check_tools, tool_fields
from penstock.api.openai.turns import ChatTurn, check_tool_results, misplaced
from penstock.engine.protocol import Feature

# OpenAI's parameters that are refused by name; null is ignored.
REFUSED_CHAT = frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "moderation",
        "prediction",
        "verbosity",
        "web_search_options",
    }
)


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(ChatExtras, Common):
    """A conversation to answer, and how to generate the answer."""

    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    # Ignored: no answer depends on these.
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, JsonValue] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

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
        effort = "none" if self.has_thinking_off else None
        return [
            {
                "messages": tuple(turn.to_message() for turn in self.messages),
                "separate_reasoning": self.bond is None,
                "reasoning_effort": self.reasoning_effort or effort,
                **tool_fields(self.tools, self.tool_choice, self.parallel_tool_calls),
            }
        ]

    @property
    def may_call(self) -> bool:
        """Return True if the model may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        effort = self.reasoning_effort
        return [
            *super().needs(),
            ("tools", self.tools, "tools"),
            ("messages", any(turn.involves_tools for turn in self.messages), "tools"),
            ("reasoning_effort", effort == "none", "reasoning_switch"),
            ("reasoning_effort", effort not in (None, "none"), "reasoning_effort"),
        ]

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise misplaced("max_tokens", "Give either max_tokens or max_completion_tokens.")
        check_tool_results(self.messages)
        check_tools(self.tools, self.tool_choice)
        if self.parallel_tool_calls is not None and not self.tools:
            raise misplaced("parallel_tool_calls", "Give tools to use parallel_tool_calls.")
        if self.may_call and self.logprobs:
            raise misplaced("logprobs", "Leave out logprobs if the model may call tools.")
        for name, _ in self.bonds if self.may_call else ():
            raise misplaced(name, f"Leave out {name} if the model may call tools.")
        return self


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """Return the fields of a chat. Raises InvalidFields."""
    return parse_fields(ChatRequest, body, REFUSED_CHAT)
