"""Schemas and grammars that bind an answer, under the names that clients know.

In: the fields of OpenAI's, vLLM's and llama.cpp's servers. Out: one schema (as text) or grammar,
and the feature that it needs. Several names for one thing exist because clients of different
servers use them.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import Strict, left_out_as
from penstock.api.tools import MAX_SCHEMA_CHARACTERS, Schema, bounded_schema, schema_too_long
from penstock.engine.protocol import Feature
from penstock.request import Grammar

MAX_CHOICES = 1024
MAX_CHOICE_CHARACTERS = 1024
ANY_OBJECT = '{"type": "object"}'


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
        if self.json_:
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
        return None if self.json_ is None else json.dumps(self.json_)

    @model_validator(mode="after")
    def _has_one(self) -> "StructuredOutputs":
        given = (self.json_, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(bool(each) for each in given) + bool(self.json_object) > 1:
            raise PydanticCustomError("value_error", "Give one constraint.")
        return self


class JsonSchema(Strict):
    """A named JSON schema that the answer satisfies.

    If the engine cannot bind all of it, a `strict` schema is refused, and another one is relaxed.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str | None, left_out_as("response_format.json_schema.description")] = (
        None
    )
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
        if self.schema_ and self.type != "json_object":
            raise PydanticCustomError("value_error", "Give schema with the type json_object.")
        tag = {"format": self.format, "structures": self.structures, "triggers": self.triggers}
        if self.type != "structural_tag" and any(tag.values()):
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


Bond = tuple[str, str | Grammar]
"""A field that binds the answer, and its schema (as text) or grammar."""


class Bonds(Strict):
    """The fields that bind an answer, of which a request gives one at most."""

    response_format: ResponseFormat | None = Field(
        default=None, description="The format of the answer: text, any JSON object, or a schema."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="vLLM's form of a schema or a grammar that the answer follows."
    )
    guided_json: SchemaOrText | None = Field(
        default=None, description="An older name of vLLM's for `structured_outputs.json`."
    )
    guided_regex: Rules | None = Field(
        default=None, description="An older name of vLLM's for `structured_outputs.regex`."
    )
    guided_choice: Choices | None = Field(
        default=None, description="An older name of vLLM's for `structured_outputs.choice`."
    )
    guided_grammar: Rules | None = Field(
        default=None, description="An older name of vLLM's for `structured_outputs.grammar`."
    )
    json_schema: SchemaOrText | None = Field(
        default=None, description="llama.cpp's name for a JSON schema that the answer satisfies."
    )
    grammar: Rules | None = Field(
        default=None, description="llama.cpp's name for a grammar (GBNF) that the answer follows."
    )

    @property
    def bonds(self) -> list[Bond]:
        """Return the fields that bind the answer; a valid request has one at most."""
        if self.model_fields_set.isdisjoint(BINDING):  # most requests
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

    @property
    def has_lax_schema(self) -> bool:
        """Return True if the engine may leave out what it cannot bind of the schema."""
        named = None if self.response_format is None else self.response_format.json_schema
        return named is not None and not named.strict

    def bond_needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that bind the answer: name, that it is used, the feature it needs."""
        return [(name, True, _feature_of(bond)) for name, bond in self.bonds]

    def bond_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that bind the answer."""
        bond = self.bond
        return {
            "json_schema": bond if isinstance(bond, str) else None,
            "grammar": bond if isinstance(bond, Grammar) else None,
        }


def _feature_of(bond: str | Grammar) -> Feature:
    if isinstance(bond, str):
        return "json_schema"
    return "structural_tag" if bond.kind == "structural_tag" else "grammar"


BINDING = frozenset(Bonds.model_fields)
