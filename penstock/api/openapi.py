"""The API as it is described for machines: `GET /openapi.json`.

In: the routes, and the models of their bodies. Out: OpenAPI 3.1
(https://spec.openapis.org/oas/v3.1.0). An endpoint's docstring is its summary.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock import __version__

SCHEMAS = "#/components/schemas/"


def openapi_route(routes: Iterable[Route], bodies: Mapping[str, type[BaseModel]]) -> Route:
    """The route that describes these. `bodies`: the model of what is posted to each path."""

    @functools.cache  # 20 ms, and most servers are never asked
    def description() -> dict[str, Any]:
        return _describe(routes, bodies)

    async def openapi(_: Request) -> Response:
        return JSONResponse(description())

    return Route("/openapi.json", openapi, include_in_schema=False)


def _describe(routes: Iterable[Route], bodies: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.include_in_schema:
            for method in (route.methods or set()) - {"HEAD"}:  # that one goes without saying
                operation = _operation(route, bodies.get(route.path))
                paths.setdefault(route.path_format, {})[method.lower()] = operation
    _, schemas = models_json_schema(
        [(model, "validation") for model in bodies.values()], ref_template=SCHEMAS + "{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": __version__,
            "description": "The streaming server for language models.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(route: Route, body: type[BaseModel] | None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": (route.endpoint.__doc__ or "").rstrip("."),
        "responses": {
            "200": {"description": "The answer"},
            "default": {"description": "A problem: its code, a sentence, whether to try again"},
        },
    }
    if route.param_convertors:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    if body is not None:
        schema = {"$ref": SCHEMAS + body.__name__}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation
