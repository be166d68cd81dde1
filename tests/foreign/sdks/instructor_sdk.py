# /// script
# requires-python = ">=3.11"
# dependencies = ["instructor==1.17.0"]
# ///
"""instructor: objects of a schema, by a tool call and by JSON."""

from collections.abc import Iterator
from typing import Any

import instructor
import openai

from tests.foreign.sdks.asked import Person, Server, report

ONLY_OBJECTS = "instructor returns objects only"


class Mode:
    def __init__(self, mode: instructor.Mode) -> None:
        self._mode = mode

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        raise NotImplementedError(ONLY_OBJECTS)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        raise NotImplementedError(ONLY_OBJECTS)

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        raise NotImplementedError(ONLY_OBJECTS)

    def person(self, server: Server, turns: list[Any]) -> Any:
        client = instructor.from_openai(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key), mode=self._mode
        )
        return client.create(model=server.model, messages=turns, response_model=Person)


if __name__ == "__main__":
    report(tools=Mode(instructor.Mode.TOOLS), json_schema=Mode(instructor.Mode.JSON_SCHEMA))
