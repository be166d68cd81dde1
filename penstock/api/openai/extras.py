"""Fields of vLLM's and llama.cpp's servers that OpenAI does not have, for chats and completions.

In: their values. Out: fields of `Request` and `Sampling`, and the features that they need. Each
field does what its owner's server does. Several names for one thing exist because clients of
different servers use them.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import Strict, misplaced
from penstock.api.tools import MAX_SCHEMA_CHARACTERS, Schema, bounded_schema, schema_too_long
from penstock.engine.protocol import Feature
from penstock.request import Grammar, Sampling

MAX_STOP_TOKENS = 64
MAX_CHOICES = 1024
MAX_CHOICE_CHARACTERS = 1024
MAX_PROMPT_LOGPROBS = 20
ANY_OBJECT = '{"type": "object"}'
# The template's own variables, which a request may not replace.
RESERVED_KWARGS = frozenset({"chat_template", "messages", "tokenize", "tools"})


def _parsed_schema(value: object) -> object:
    """Return a schema that is given as text as an object."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_SCHEMA_CHARACTERS:
        raise schema_too_long()
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("invalid_schema", "Give a JSON schema.") from None


SchemaOrText = Annotated[Schema, BeforeValidator(_parsed_schema)]
Rules = Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARACTERS)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]],
    Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
]


class StructuredOutputs(Strict):
    """vLLM's constraints on an answer, of which a request gives one."""

    json_: SchemaOrText | None = Field(default=None, alias="json")
    regex: Rules | None = None
    choice: Choices | None = None
    grammar: Rules | None = None
    json_object: bool | None = None
    structural_tag: Rules | None = None

    def bond(self) -> str | Grammar | None:
        """Return the schema (as text) or the grammar."""
        if self.json_ is not None:
            return json.dumps(self.json_)
        if self.json_object:
            return ANY_OBJECT
        if self.choice is not None:
            return Grammar("choice", json.dumps(self.choice))
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.grammar is not None:
            return Grammar("grammar", self.grammar)
        if self.structural_tag is not None:
            return Grammar("structural_tag", self.structural_tag)
        return None

    @model_validator(mode="after")
    def _has_one(self) -> "StructuredOutputs":
        given = (self.json_, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(each is not None for each in given) + bool(self.json_object) > 1:
            raise PydanticCustomError("value_error", "Give one constraint.")
        return self


class JsonSchema(Strict):
    """A named JSON schema that the answer satisfies.

    If the engine cannot bind all of it, a `strict` schema is refused, and another one is relaxed.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The format of the answer: text, any JSON object, or JSON that satisfies a schema.

    llama.cpp also takes a `schema` with the type json_object. vLLM also takes structural tags,
    which bind parts of the answer.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    format: JsonValue = None
    structures: JsonValue = None
    triggers: JsonValue = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise PydanticCustomError(
                "value_error", "Give json_schema with the type json_schema, and only with it."
            )
        if self.schema_ is not None and self.type != "json_object":
            raise PydanticCustomError("value_error", "Give schema with the type json_object.")
        tag = {"format": self.format, "structures": self.structures, "triggers": self.triggers}
        if self.type != "structural_tag" and any(each is not None for each in tag.values()):
            raise PydanticCustomError("value_error", "Only a structural_tag has these fields.")
        bounded_schema(tag)
        return self

    def bond(self) -> str | Grammar | None:
        """Return the schema (as text) or the grammar that the answer must satisfy."""
        if self.type == "text":
            return None
        if self.type == "structural_tag":
            tag = self.model_dump(include={"type", "format", "structures", "triggers"})
            given = {name: value for name, value in tag.items() if value is not None}
            return Grammar("structural_tag", json.dumps(given))
        schema = self.schema_ if self.json_schema is None else self.json_schema.schema_
        return ANY_OBJECT if schema is None else json.dumps(schema)


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1)]],
    Field(max_length=MAX_STOP_TOKENS, fail_fast=True),
]
Penalty = Annotated[float, Field(gt=0, le=100)]
Budget = Annotated[int, Field(ge=-1, le=2**31 - 1)]
TemplateKwargs = Annotated[
    dict[str, JsonValue], AfterValidator(lambda value: _checked_kwargs(value))
]

Bond = tuple[str, str | Grammar]
"""A field that binds the answer, and its schema (as text) or grammar."""


def _checked_kwargs(kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if reserved := RESERVED_KWARGS & kwargs.keys():
        raise PydanticCustomError(
            "value_error", f"A request cannot replace {', '.join(sorted(reserved))}."
        )
    if not isinstance(kwargs.get("enable_thinking", False), bool):
        raise PydanticCustomError("bool_type", "enable_thinking is true or false.")
    return bounded_schema(kwargs)


class Extras(Strict):
    """The fields that completions and chats share."""

    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Penalty | None = None
    repeat_penalty: Penalty | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    cache_prompt: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_PROMPT_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Rules | None = None
    guided_choice: Choices | None = None
    guided_grammar: Rules | None = None
    json_schema: SchemaOrText | None = None
    grammar: Rules | None = None

    @property
    def bonds(self) -> list[Bond]:
        """Return the fields that bind the answer; a valid request has one at most."""
        if self.model_fields_set.isdisjoint(_BINDING):  # most requests
            return []
        found: list[tuple[str, str | Grammar | None]] = []
        if self.response_format is not None:
            found.append(("response_format", self.response_format.bond()))
        if self.structured_outputs is not None:
            found.append(("structured_outputs", self.structured_outputs.bond()))
        for name, schema in (("guided_json", self.guided_json), ("json_schema", self.json_schema)):
            if schema:
                found.append((name, json.dumps(schema)))
        if self.guided_regex is not None:
            found.append(("guided_regex", Grammar("regex", self.guided_regex)))
        if self.guided_choice is not None:
            found.append(("guided_choice", Grammar("choice", json.dumps(self.guided_choice))))
        for name, rules in (("guided_grammar", self.guided_grammar), ("grammar", self.grammar)):
            if rules:
                found.append((name, Grammar("grammar", rules)))
        return [(name, bond) for name, bond in found if bond is not None]

    @property
    def bond(self) -> str | Grammar | None:
        """Return the schema (as text) or the grammar that binds the answer, if there is one."""
        return next((bond for _, bond in self.bonds), None)

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
            *((name, True, _feature_of(bond)) for name, bond in self.bonds),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that these fields set."""
        if self.model_fields_set.isdisjoint(_EXTRA):
            return {}
        bond = self.bond
        return {
            "min_tokens": self.min_tokens or 0,
            "ignore_eos": bool(self.ignore_eos),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "show_special_tokens": self.skip_special_tokens is False,
            "use_cache": self.cache_prompt is not False,
            "return_token_ids": bool(self.return_token_ids),
            "prompt_logprobs": self.prompt_logprobs,
            "json_schema": bond if isinstance(bond, str) else None,
            "grammar": bond if isinstance(bond, Grammar) else None,
        }

    @property
    def has_lax_schema(self) -> bool:
        """Return True if the engine may leave out what it cannot bind of the schema."""
        named = None if self.response_format is None else self.response_format.json_schema
        return named is not None and not named.strict

    def extra_sampling(self, default: Sampling) -> dict[str, Any]:
        """Return the fields of `Sampling` that these fields set."""
        penalty = self.repetition_penalty or self.repeat_penalty
        return {
            "min_p": default.min_p if self.min_p is None else self.min_p,
            "repetition_penalty": penalty or default.repetition_penalty,
        }

    @model_validator(mode="after")
    def _one_bond(self) -> "Extras":
        names = [name for name, _ in self.bonds]
        if len(names) > 1:
            raise misplaced(
                names[-1], "Give one schema or grammar at most: the answer can follow only one."
            )
        if self.prompt_logprobs is not None and getattr(self, "stream", False):
            raise misplaced("prompt_logprobs", "Only a whole answer has prompt_logprobs.")
        if self.min_tokens and self._exceeds(self.min_tokens):
            raise misplaced("min_tokens", "Give a min_tokens of at most max_tokens.")
        return self

    def _exceeds(self, num_tokens: int) -> bool:
        """Return True if the answer may not have so many tokens."""
        limits = (getattr(self, name, None) for name in ("max_tokens", "max_completion_tokens"))
        return any(limit is not None and num_tokens > limit for limit in limits)


def _feature_of(bond: str | Grammar) -> Feature:
    if isinstance(bond, str):
        return "json_schema"
    return "structural_tag" if bond.kind == "structural_tag" else "grammar"


class ChatExtras(Extras):
    """The fields of chats alone: how the template is rendered, and the model's reasoning."""

    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget_tokens: Budget | None = None

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
            *(
                (name, value not in (None, -1), "thinking_budget")
                for name, value in self._budgets()
            ),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that these fields set."""
        kwargs = self._kwargs()
        budgets = [value for _, value in self._budgets() if value not in (None, -1)]
        return {
            **super().extra_fields(),
            "template_kwargs": json.dumps(kwargs) if kwargs else None,
            "continue_last_message": bool(self.continue_final_message),
            "open_answer": not self._leaves_open,
            "thinking_budget": budgets[0] if budgets else None,
        }

    @property
    def _leaves_open(self) -> bool:
        return self.add_generation_prompt is False and not self.continue_final_message

    def _kwargs(self) -> dict[str, JsonValue]:
        """Return the template's variables without the switch that turns reasoning off."""
        kwargs = dict(self.chat_template_kwargs or {})
        if self.has_thinking_off:
            del kwargs["enable_thinking"]
        return kwargs

    def _budgets(self) -> list[tuple[str, int | None]]:
        return [
            ("thinking_budget", self.thinking_budget),
            ("thinking_token_budget", self.thinking_token_budget),
            ("thinking_budget_tokens", self.thinking_budget_tokens),
            ("reasoning_budget_tokens", self.reasoning_budget_tokens),
        ]

    @model_validator(mode="after")
    def _one_beginning(self) -> "ChatExtras":
        if self.continue_final_message and self.add_generation_prompt:
            raise misplaced(
                "continue_final_message",
                "Give either continue_final_message or add_generation_prompt: an answer that"
                " continues the last message does not begin a new one.",
            )
        return self


_EXTRA = frozenset(Extras.model_fields)
_BINDING = frozenset(
    (
        *("response_format", "structured_outputs", "guided_json", "guided_regex"),
        *("guided_choice", "guided_grammar", "json_schema", "grammar"),
    )
)
