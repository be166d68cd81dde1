"""The rule of tolerance: a field changes the answer, is refused, or is named as ignored.

Each test puts one more field into bodies of every API, at every place.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import anthropic.types as of_anthropic
import ollama._types as of_ollama
import openai.types.chat as of_chats
import openai.types.completion_create_params as of_completions
import openai.types.responses as of_responses
import pytest

from penstock.errors import PROBLEMS, Problem
from tests.api.bodies import BODIES
from tests.api.parsing import ROUTES, parsed

UNKNOWN = "of_another_server"
VALUES = [True, 7, 0.5, "low", ["a"], {"a": "b"}]
NOTHING: list[Any] = [None, False, "", [], {}]
# What a client may say although it is so anyway.
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special": (True,),
    "add_special_tokens": (True,),
    "cache_prompt": (True,),
    "content": (["a"],),
    "include_reasoning": (True,),
    "n": (True,),
    "parallel_tool_calls": (True,),
    "parse_special": (True,),
    "prompt": (["a"],),
    "skip_special_tokens": (True,),
    "store": (True,),
    "stream": (True,),
}
# Labels and places: the conversation is the same whatever they say.
LABELS = {
    "/v1/chat/completions": {"index", "type", "name"},
    "/v1/responses": {"id", "status", "phase", "name", "include_usage"},
    "/v1/messages": {"signature", "media_type"},
    "/v1/messages/count_tokens": {"signature", "media_type", "model"},
    # A context of this length is there. Only one call waits for a result.
    "/api/chat": {"index", "num_ctx", "tool_name"},
    "/api/generate": {"num_ctx"},
    # Only the prompt counts.
    "/tokenize": {"index", "type", "model", "max_tokens", "max_completion_tokens", "n"},
    "/apply-template": {"index", "type", "model", "max_tokens", "max_completion_tokens", "n"},
    "/detokenize": {"model"},
}
# The same reasoning in another form, which is not read if there is the text itself.
ALSO_REASONING = {"summary", "encrypted_content"}
# Objects that are no part of an API: schemas and arguments.
OF_OTHERS = ("parameters", "input_schema", "schema", "arguments", "input", "properties")
# False, or an empty object, that asks for something: it may be refused.
ASKING = {("include_reasoning", "False"), ("web_search_options", "{}")}

Place = tuple[str | int, ...]


def objects_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield every object of a body that is the API's own, and its place."""
    if isinstance(value, dict):
        yield place, value
        for name, each in value.items():
            if isinstance(each, list) or name not in OF_OTHERS:
                yield from objects_in(each, (*place, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            if place[-1] not in ALSO_REASONING:
                yield from objects_in(each, (*place, number))


@contextlib.contextmanager
def changed(found: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Give an object one more field for a while."""
    before = dict(found)
    found[name] = value
    yield
    found.clear()
    found.update(before)


def fields_in(schema: Any) -> Iterator[str]:
    """Yield the names of all fields of a model and of the models in it."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
        for each in schema.values():
            yield from fields_in(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from fields_in(each)


def fields_of(module: Any) -> set[str]:
    """Return the names of all fields of all types in a module of a client library."""
    types = [each for each in vars(module).values() if isinstance(each, type)]
    names = {name for each in types for name in getattr(each, "__annotations__", ())}
    return {name for name in names if not name.startswith("_")}


OF_CLIENTS = set().union(
    *map(fields_of, (of_anthropic, of_ollama, of_chats, of_completions, of_responses))
)
OWN = {route: set(each.model_fields) for route, each in ROUTES.fields.items()}
WITHIN = {
    route: set(fields_in(each.model_json_schema().get("$defs")))
    for route, each in ROUTES.fields.items()
}
OF_SERVERS = set().union(*OWN.values())


def additions(route: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], Place, str]]:
    """Yield each body of a route, each object in it with its place, and each name to add.

    The first body gets every field that any API has.
    """
    for number, body in enumerate(BODIES[route]):
        for place, found in list(objects_in(body)):
            names = WITHIN.get(route, set()) if place else OWN.get(route, set())
            if not place and number == 0:
                names = names | OF_SERVERS | OF_CLIENTS
            for name in sorted({UNKNOWN, *names}):
                yield body, found, place, name


def is_said_anyway(route: str, name: str, value: Any) -> bool:
    labels = LABELS.get(route, set()) | (ALSO_REASONING if route == "/v1/responses" else set())
    return name in labels or value in DEFAULTS.get(name, ())


def becomes(route: str, body: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return what becomes of a body that is accepted."""
    accepted = parsed(route, body)
    assert not isinstance(accepted, Problem), accepted.detail
    return accepted


@pytest.mark.parametrize("route", BODIES)
def test_no_field_is_dropped_silently(route: str) -> None:
    silent = []
    before = {id(body): becomes(route, body) for body in BODIES[route]}
    for body, found, place, name in additions(route):
        for value in VALUES:
            if name in found and found[name] == value:
                continue
            with changed(found, name, value):
                after = parsed(route, body)
            if isinstance(after, Problem):
                assert PROBLEMS[after.code].status < 500, (place, name, value)
            elif after == before[id(body)] and not is_said_anyway(route, name, value):
                silent.append((place, name, value))
    assert silent == []


@pytest.mark.parametrize("route", BODIES)
def test_a_value_that_asks_for_nothing_is_accepted_in_every_field(route: str) -> None:
    refused, named = [], []
    before = {id(body): becomes(route, body) for body in BODIES[route]}
    for body, found, place, name in additions(route):
        for value in NOTHING:
            if name in found or (name, repr(value)) in ASKING:
                continue
            with changed(found, name, value):
                after = parsed(route, body)
            if isinstance(after, Problem):
                refused.append((place, name, value))
            elif after[1] != before[id(body)][1] and value is not False:
                named.append((place, name, value))
    assert (refused, named) == ([], [])
