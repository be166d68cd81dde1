# /// script
# requires-python = ">=3.11"
# dependencies = ["openai==3.57.0"]
# ///
"""OpenAI's own client, over chats and over Responses."""

import json
from collections.abc import Iterator
from typing import Any

import openai

from tests.foreign.sdks.asked import Person, Server, get_weather, report

FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key=server.key,
        max_retries=server.retries,
        default_headers=server.headers,
    )


class Chat:
    """`/v1/chat/completions`."""

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = client(server).chat.completions.create(model=server.model, messages=turns)
        assert answer.usage is not None
        used = answer.usage.prompt_tokens, answer.usage.completion_tokens
        return answer.choices[0].message.content or "", used

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        chunks = client(server).chat.completions.create(
            model=server.model, messages=turns, stream=True, temperature=0
        )
        for chunk in chunks:
            yield chunk.choices[0].delta.content or "" if chunk.choices else ""

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        tools: Any = [{"type": "function", "function": FUNCTION}]
        create = client(server).chat.completions.create
        first: Any = create(model=server.model, messages=turns, tools=tools).choices[0].message
        (call,) = first.tool_calls
        result = get_weather(**json.loads(call.function.arguments))
        answered: Any = {"role": "tool", "tool_call_id": call.id, "content": result}
        after = create(model=server.model, messages=[*turns, first, answered], tools=tools)
        return after.choices[0].message.content or ""

    def person(self, server: Server, turns: list[Any]) -> Any:
        answer = client(server).chat.completions.parse(
            model=server.model, messages=turns, response_format=Person
        )
        person = answer.choices[0].message.parsed
        assert person is not None
        return person


class Responses:
    """`/v1/responses`."""

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = client(server).responses.create(model=server.model, input=turns)
        assert answer.usage is not None
        return answer.output_text, (answer.usage.input_tokens, answer.usage.output_tokens)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        events = client(server).responses.create(
            model=server.model, input=turns, stream=True, temperature=0
        )
        for event in events:
            if event.type == "response.output_text.delta":
                yield event.delta

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        tools: Any = [{"type": "function", **FUNCTION}]
        create = client(server).responses.create
        first = create(model=server.model, input=turns, tools=tools)
        (call,) = (item for item in first.output if item.type == "function_call")
        result = get_weather(**json.loads(call.arguments))
        answered = {"type": "function_call_output", "call_id": call.call_id, "output": result}
        more: Any = [*turns, call, answered]
        return create(model=server.model, input=more, tools=tools).output_text

    def person(self, server: Server, turns: list[Any]) -> Any:
        answer = client(server).responses.parse(model=server.model, input=turns, text_format=Person)
        assert answer.output_parsed is not None
        return answer.output_parsed


if __name__ == "__main__":
    report(chat=Chat(), responses=Responses())
