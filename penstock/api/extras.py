"""Fields of vLLM's and llama.cpp's servers that OpenAI does not have.

In: their values. Out: fields of `Request` and `Sampling`, and the features that they need. Each
field does what its owner's server does. Several names for one thing exist because clients of
different servers use them. OpenAI's routes and the native API share these fields.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.bonds import Bonds
from penstock.api.fields import misplaced
from penstock.api.sampling import RepetitionPenalty, TokenIds
from penstock.api.tools import bounded_schema
from penstock.engine.protocol import Feature
from penstock.request import Sampling

MAX_PROMPT_LOGPROBS = 20
# The template's own variables, which a request may not replace.
RESERVED_KWARGS = frozenset({"chat_template", "messages", "tokenize", "tools"})

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=-1, le=2**31 - 1)]
TemplateKwargs = Annotated[
    dict[str, JsonValue], AfterValidator(lambda value: _checked_kwargs(value))
]


def _checked_kwargs(kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if reserved := RESERVED_KWARGS & kwargs.keys():
        raise PydanticCustomError(
            "value_error", f"A request cannot replace {', '.join(sorted(reserved))}."
        )
    if not isinstance(kwargs.get("enable_thinking", False), bool):
        raise PydanticCustomError("bool_type", "enable_thinking is true or false.")
    return bounded_schema(kwargs)


class Extras(Bonds):
    """The fields that completions and chats share."""

    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Drop tokens less likely than this part of the likeliest token's probability.",
    )
    repetition_penalty: RepetitionPenalty | None = Field(
        default=None,
        description="Divides the logits of tokens that the text already contains; 1 is off.",
    )
    repeat_penalty: RepetitionPenalty | None = Field(
        default=None, description="llama.cpp's name for `repetition_penalty`."
    )
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Before the answer has so many tokens, nothing ends it."
    )
    ignore_eos: bool | None = Field(
        default=None, description="The answer goes on after the model has ended it."
    )
    stop_token_ids: TokenIds | None = Field(
        default=None, description="One of these tokens ends the answer; its text is not shown."
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="False shows the text of control tokens."
    )
    cache_prompt: bool | None = Field(
        default=None, description="False computes the whole prompt anew."
    )
    return_token_ids: bool | None = Field(
        default=None, description="The answer has the ids of its tokens and of the prompt's."
    )
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_PROMPT_LOGPROBS)] | None = Field(
        default=None,
        description="A whole answer has the log probabilities of the prompt's tokens, and of this"
        " many likeliest tokens at each place.",
    )

    def extra_needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        if self.model_fields_set.isdisjoint(_EXTRA):
            return []
        return [
            ("min_p", self.min_p, "min_p"),
            *(
                (name, value not in (None, 1), "repetition_penalty")
                for name, value in (
                    ("repetition_penalty", self.repetition_penalty),
                    ("repeat_penalty", self.repeat_penalty),
                )
            ),
            ("min_tokens", self.min_tokens, "min_tokens"),
            ("ignore_eos", self.ignore_eos, "ignore_eos"),
            ("stop_token_ids", self.stop_token_ids, "stop_token_ids"),
            ("skip_special_tokens", self.skip_special_tokens is False, "show_special_tokens"),
            ("cache_prompt", self.cache_prompt is False, "use_cache"),
            ("return_token_ids", self.return_token_ids, "return_token_ids"),
            ("prompt_logprobs", self.prompt_logprobs is not None, "prompt_logprobs"),
            *self.bond_needs(),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that these fields set."""
        if self.model_fields_set.isdisjoint(_EXTRA):
            return {}
        return {
            "min_tokens": self.min_tokens or 0,
            "ignore_eos": bool(self.ignore_eos),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "show_special_tokens": self.skip_special_tokens is False,
            "use_cache": self.cache_prompt is not False,
            "return_token_ids": bool(self.return_token_ids),
            "prompt_logprobs": self.prompt_logprobs,
            **self.bond_fields(),
        }

    def extra_sampling(self, default: Sampling) -> dict[str, Any]:
        """Return the fields of `Sampling` that these fields set."""
        penalty = self.repetition_penalty or self.repeat_penalty
        return {
            "min_p": default.min_p if self.min_p is None else self.min_p,
            "repetition_penalty": penalty or default.repetition_penalty,
        }

    @model_validator(mode="after")
    def _extras_agree(self) -> "Extras":
        if not self.__pydantic_fields_set__.isdisjoint(_EXTRA):
            self._check_extras()
        return self

    def _check_extras(self) -> None:
        """Raise PydanticCustomError if these fields do not agree."""
        names = [name for name, _ in self.bonds]
        if len(names) > 1:
            raise misplaced(
                names[-1], "Give one schema or grammar at most: the answer can follow only one."
            )
        if self.prompt_logprobs is not None and getattr(self, "stream", False):
            raise misplaced("prompt_logprobs", "Only a whole answer has prompt_logprobs.")
        if self.min_tokens and self._exceeds(self.min_tokens):
            raise misplaced("min_tokens", "Give a min_tokens of at most max_tokens.")

    def _exceeds(self, num_tokens: int) -> bool:
        """Return True if the answer may not have so many tokens."""
        limits = (getattr(self, name, None) for name in ("max_tokens", "max_completion_tokens"))
        return any(limit is not None and num_tokens > limit for limit in limits)


class TemplateExtras(Extras):
    """The fields that say how the chat template is rendered."""

    chat_template_kwargs: TemplateKwargs | None = Field(
        default=None,
        description="Variables for the chat template. `enable_thinking` false turns off the"
        " model's reasoning.",
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="False: the template does not begin an answer."
    )
    continue_final_message: bool | None = Field(
        default=None, description="The answer continues the last message."
    )

    @property
    def has_thinking_off(self) -> bool:
        """Return True if the template's variables ask the model not to reason."""
        return (self.chat_template_kwargs or {}).get("enable_thinking") is False

    def extra_needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [
            *super().extra_needs(),
            ("chat_template_kwargs", self._kwargs(), "template_kwargs"),
            ("chat_template_kwargs", self.has_thinking_off, "reasoning_switch"),
            ("add_generation_prompt", self._leaves_open, "last_message"),
            ("continue_final_message", self.continue_final_message, "last_message"),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that these fields set."""
        kwargs = self._kwargs()
        return {
            **super().extra_fields(),
            "template_kwargs": json.dumps(kwargs) if kwargs else None,
            "continue_last_message": bool(self.continue_final_message),
            "open_answer": not self._leaves_open,
        }

    def effort_of(self, asked: ReasoningEffort | None) -> ReasoningEffort | None:
        """Return the effort that was asked for; the template's variables may ask for none."""
        return asked or ("none" if self.has_thinking_off else None)

    @property
    def _leaves_open(self) -> bool:
        return self.add_generation_prompt is False and not self.continue_final_message

    def _kwargs(self) -> dict[str, JsonValue]:
        """Return the template's variables without the switch that turns reasoning off."""
        kwargs = dict(self.chat_template_kwargs or {})
        if self.has_thinking_off:
            del kwargs["enable_thinking"]
        return kwargs

    def _check_extras(self) -> None:
        super()._check_extras()
        if self.continue_final_message and self.add_generation_prompt:
            raise misplaced(
                "continue_final_message",
                "Give either continue_final_message or add_generation_prompt: an answer that"
                " continues the last message does not begin a new one.",
            )


class ChatExtras(TemplateExtras):
    """The fields of chats whose reasoning is separate from the answer."""

    include_reasoning: bool | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget_tokens: Budget | None = None

    def extra_needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [
            *super().extra_needs(),
            *(
                (name, value not in (None, -1), "thinking_budget")
                for name, value in self._budgets()
            ),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that these fields set."""
        budgets = [value for _, value in self._budgets() if value not in (None, -1)]
        return {**super().extra_fields(), "thinking_budget": budgets[0] if budgets else None}

    def _budgets(self) -> list[tuple[str, int | None]]:
        return [
            ("thinking_budget", self.thinking_budget),
            ("thinking_token_budget", self.thinking_token_budget),
            ("thinking_budget_tokens", self.thinking_budget_tokens),
            ("reasoning_budget_tokens", self.reasoning_budget_tokens),
        ]


_EXTRA = frozenset(ChatExtras.model_fields)
