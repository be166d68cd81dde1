# /// script
# requires-python = ">=3.11"
# dependencies = ["ollama==0.6.3", "pydantic"]
# ///
"""Ollama's own client, over `/api/chat`."""

from collections.abc import Iterator
from typing import Any

import ollama

from tests.foreign.sdks.asked import Person, Server, get_weather, report


def client(server: Server) -> ollama.Client:
    if server.retries:
        raise NotImplementedError("the client never retries")
    return ollama.Client(server.url, headers={"Authorization": f"Bearer {server.key}"})


class Chat:
    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = client(server).chat(server.model, turns)
        return answer.message.content or "", (answer.prompt_eval_count or 0, answer.eval_count or 0)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        options = {"temperature": 0}
        for part in client(server).chat(server.model, turns, stream=True, options=options):
            yield part.message.content or ""

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        first = client(server).chat(server.model, turns, tools=[get_weather]).message
        (call,) = first.tool_calls or ()
        result = get_weather(**call.function.arguments)
        answered = {"role": "tool", "tool_name": call.function.name, "content": result}
        after = client(server).chat(server.model, [*turns, first, answered], tools=[get_weather])
        return after.message.content or ""

    def person(self, server: Server, turns: list[Any]) -> Any:
        answer = client(server).chat(server.model, turns, format=Person.model_json_schema())
        return Person.model_validate_json(answer.message.content or "")


if __name__ == "__main__":
    report(chat=Chat())
