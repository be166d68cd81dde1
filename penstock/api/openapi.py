"""The description of all APIs for machines: `GET /openapi.json`, in OpenAPI 3.1.

In: the APIs, each with the description in its own folder. Out: one JSON object
(https://spec.openapis.org/oas/v3.1.0). Statuses and media types of errors come from each API's own
form of an error. Nothing here knows an API by name.
"""

import functools
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import (
    GenerateJsonSchema,
    JsonSchemaMode,
    JsonSchemaValue,
    models_json_schema,
)
from pydantic_core import core_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock import __version__
from penstock.api.description import JSON, NDJSON, SSE, Answer, Api, Description
from penstock.errors import PROBLEMS, Problem
from penstock.stream.quotas import TOKEN_HEADERS
from penstock.web.auth import needs_admin_key, needs_key

_SCHEMAS = "#/components/schemas/"
_STREAMS = (SSE, NDJSON)
_ABOUT = """\
The streaming server for language models.

A streamed response consists of Server-Sent Events. Its schema is that of one event's `data`. Lines
that begin with a colon are comments; skip them. In Ollama's API it consists of lines, each with a
JSON object.

An error's `code` never changes its meaning. An address answers 405 with the header `Allow` to
methods that it does not accept."""
_EVERY_ROUTE = {
    "bad_host",
    "bad_request",
    "host_not_allowed",
    "internal_error",
    "origin_not_allowed",
}
_WITH_KEY = {"bad_authorization", "invalid_api_key"}
_STATUSES = {
    400: "The request is malformed or invalid.",
    401: "The request has no valid API key.",
    403: "The client may not do this.",
    404: "There is nothing of this name.",
    408: "The body came too slowly.",
    409: "The stream cannot be resumed.",
    410: "The stream's events are no longer kept.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A field is not acceptable.",
    429: "The server has too much to do now.",
    500: "The server or the engine failed.",
    501: "The server does not do this.",
    503: "The server cannot serve requests now.",
    504: "The request's time was up.",
    529: "The server has too much to do now, or its engine is away.",
}
_WAIT = ("Retry-After", "Retry-After-Ms")
_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    429: (*_WAIT, *TOKEN_HEADERS),
    503: _WAIT,
    529: _WAIT,
}
_HEADERS: Mapping[str, Any] = {
    "X-Request-ID": {
        "description": "The request's id: yours if it is well-formed, otherwise a new one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Where the time went until the response began, in milliseconds.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Stream-ID": {
        "description": "The stream's id, for `/streams/{stream_id}`. It is a secret.",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "`true` if this is the answer to an earlier request with the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next attempt.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Retry-After-Ms": {
        "description": "The same as `Retry-After`, in milliseconds.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Should-Retry": {
        "description": "`true` if you may send the same request again, perhaps later.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "X-Penstock-Ignored": {
        "description": "The request's fields that were left out, if there were any: names with"
        " commas between them, at most 1 KiB.",
        "schema": {"type": "string"},
    },
    "X-Penstock-Max-Tokens": {
        "description": "The token limit that holds, if the request's limit does not fit into the"
        " context or into the key's tokens per minute. A stream that waits in the queue may begin"
        " without this header.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-RateLimit-Limit-Tokens": {
        "description": "The tokens per minute of the key, if it has such a limit.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-RateLimit-Remaining-Tokens": {
        "description": "The tokens that the key can use now, without those that its open requests"
        " have reserved.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-RateLimit-Reset-Tokens": {
        "description": "The time until all tokens are there again, such as `12.500s`.",
        "schema": {"type": "string", "pattern": "^[0-9]+\\.[0-9]{3}s$"},
    },
    "WWW-Authenticate": {
        "description": "The scheme that the server accepts: `Bearer`.",
        "schema": {"type": "string"},
    },
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "An id for the logs: up to 128 letters, digits, dots, hyphens and underscores.",
}


class _Schemas(GenerateJsonSchema):
    """Makes schemas without titles of fields and without null as a default, which say nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: a field's name is its title."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema of a field, with its default unless that is null."""
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def openapi_route(apis: Sequence[Api], bodies: Mapping[str, type[BaseModel]]) -> Route:
    """Return the route that describes all routes of these APIs.

    `bodies` has the model of what is posted to each path.
    """

    @functools.cache  # most servers are never asked
    def document() -> bytes:
        return json.dumps(_Writer(apis, bodies).document(), separators=(",", ":")).encode()

    async def openapi(_: Request) -> Response:
        return Response(document(), media_type=JSON)

    return Route("/openapi.json", openapi, include_in_schema=False)


class _Writer:
    """Writes the description of these APIs."""

    def __init__(self, apis: Sequence[Api], bodies: Mapping[str, type[BaseModel]]) -> None:
        self._apis = apis
        self._bodies = bodies
        self._descriptions: list[Description] = [
            importlib.import_module(api.description).DESCRIPTION for api in apis
        ]
        answers = [
            answer
            for description in self._descriptions
            for operation in description.operations.values()
            for answer in operation.answers.values()
        ]
        self._models = list(
            filter(None, (model for answer in answers for model in answer.content.values()))
        )
        self._parts = {
            stream: [each for each in (answer.content.get(stream) for answer in answers) if each]
            for stream in _STREAMS
        }

    def document(self) -> dict[str, Any]:
        """Return OpenAPI's root object."""
        descriptions = self._descriptions
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Penstock",
                "version": __version__,
                "description": _ABOUT,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "tags": [{"name": each.tag, "description": each.about} for each in descriptions],
            "security": [{"key": []}, {"x-api-key": []}, {}],
            "paths": self._paths(),
            "components": {
                "schemas": self._schemas(),
                "headers": _HEADERS,
                "securitySchemes": {
                    "key": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "Only if the server uses keys.",
                    },
                    "x-api-key": {
                        "type": "apiKey",
                        "in": "header",
                        "name": "X-API-Key",
                        "description": "Another header for the same key.",
                    },
                },
            },
        }

    def _schemas(self) -> dict[str, Any]:
        models = [
            *self._bodies.values(),
            *(each.error for each in self._descriptions),
            *self._models,
        ]
        inputs: list[tuple[type[BaseModel], JsonSchemaMode]] = [
            (model, "validation") for model in dict.fromkeys(models)
        ]
        _, schemas = models_json_schema(
            inputs, ref_template=_SCHEMAS + "{model}", schema_generator=_Schemas
        )
        definitions: dict[str, Any] = schemas["$defs"]
        return definitions

    def _paths(self) -> dict[str, dict[str, Any]]:
        paths: dict[str, dict[str, Any]] = {}
        for api, description in zip(self._apis, self._descriptions, strict=True):
            for route in api.routes:
                if route.include_in_schema:
                    (method,) = (route.methods or set()) - {"HEAD"}  # HEAD comes with GET
                    operation = self._operation(api, description, route)
                    paths.setdefault(route.path_format, {})[method.lower()] = operation
        return paths

    def _operation(self, api: Api, description: Description, route: Route) -> dict[str, Any]:
        about = description.operations[route.name]
        described: dict[str, Any] = {
            "operationId": route.name,
            "tags": [description.tag],
            "summary": (route.endpoint.__doc__ or "").partition("\n")[0].rstrip("."),
            "parameters": [*about.parameters, _REQUEST_ID],
        }
        if about.details:
            described["description"] = about.details
        if not needs_key(route.path):
            described["security"] = []
        if (body := self._bodies.get(route.path)) is not None:
            content = {"schema": _reference(body), "example": about.example}
            described["requestBody"] = {"required": True, "content": {JSON: content}}
        responses = self._problems(api, description, route)
        for status, answer in about.answers.items():
            responses[status] = self._answer(answer)
        described["responses"] = {str(status): responses[status] for status in sorted(responses)}
        return described

    def _answer(self, answer: Answer) -> dict[str, Any]:
        described = {"description": answer.meaning, "headers": _headers(answer.headers)}
        if answer.content:
            described["content"] = {
                media_type: {"schema": self._schema(media_type, model)}
                for media_type, model in answer.content.items()
            }
        return described

    def _schema(self, media_type: str, model: type[BaseModel] | None) -> dict[str, Any]:
        if media_type in _STREAMS:
            each = [_reference(part) for part in ([model] if model else self._parts[media_type])]
            parts = {"type": "array", "items": each[0] if len(each) == 1 else {"anyOf": each}}
            return {"type": "string", "contentMediaType": media_type, "contentSchema": parts}
        return {"type": "string"} if model is None else _reference(model)

    def _problems(
        self, api: Api, description: Description, route: Route
    ) -> dict[int, dict[str, Any]]:
        """Return the responses that report errors, each with the codes that it may have."""
        about = description.operations[route.name]
        codes = {*about.problems, *_EVERY_ROUTE}
        if needs_key(route.path):
            codes |= _WITH_KEY
        if needs_admin_key(route.path):
            codes.add("admin_only")
        responses: dict[int, dict[str, Any]] = {}
        for code, kind in PROBLEMS.items():
            if code in codes:
                sample = api.error_form(Problem(code, kind.meaning))
                status = sample.status_code
                content = {str(sample.media_type): {"schema": _reference(description.error)}}
                response = responses.setdefault(
                    status,
                    {
                        "description": _STATUSES.get(status, "An error.") + "\n",
                        "headers": _headers(("X-Should-Retry", *_PROBLEM_HEADERS.get(status, ()))),
                        "content": content,
                    },
                )
                # The engine may report these when the stream has been opened.
                if route.path in self._bodies and (kind.status == 422 or kind.status >= 500):
                    response["headers"] |= _headers(["X-Stream-ID"])
                error = json.loads(bytes(sample.body))
                error = error.get("error", error)  # OpenAI's form has an object around it
                shown = error.get("code", code) if isinstance(error, dict) else code
                response["description"] += f"\n- `{shown}`: {kind.meaning}"
        return responses


def _headers(names: Iterable[str]) -> dict[str, Any]:
    every = ("X-Request-ID", "Server-Timing")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, *every)}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + model.__name__}
