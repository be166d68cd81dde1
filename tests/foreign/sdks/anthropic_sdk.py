# /// script
# requires-python = ">=3.11"
# dependencies = ["anthropic==2.14.0"]
# ///
"""Anthropic's own client, over `/v1/messages`."""

from collections.abc import Iterator
from typing import Any

import anthropic

from tests.foreign.sdks.asked import Person, Server, get_weather, report

TOOLS: Any = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.url,
        api_key=server.key,
        max_retries=server.retries,
        default_headers=server.headers,
    )


def fields(server: Server, turns: list[Any]) -> dict[str, Any]:
    """Put the system turn where this API has it."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    named = {"system": system[0]} if system else {}
    return {"model": server.model, "max_tokens": 100, "messages": rest, **named}


class Messages:
    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = client(server).messages.create(**fields(server, turns))
        return answer.content[0].text, (answer.usage.input_tokens, answer.usage.output_tokens)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        asked = {**fields(server, turns), "max_tokens": 1000}
        coldest = {"temperature": 0}  # the SDK itself no longer has it
        with client(server).messages.stream(**asked, extra_body=coldest) as stream:
            yield from stream.text_stream

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        create = client(server).messages.create
        first = create(**fields(server, turns), tools=TOOLS)
        (call,) = (block for block in first.content if block.type == "tool_use")
        result: Any = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": get_weather(**call.input),
        }
        more = [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        return str(create(**fields(server, [*turns, *more]), tools=TOOLS).content[0].text)

    def person(self, server: Server, turns: list[Any]) -> Any:
        asked = {**fields(server, turns), "output_format": Person}
        return client(server).messages.parse(**asked).parsed_output


if __name__ == "__main__":
    report(messages=Messages())
