# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm==1.110.2", "tenacity"]
# ///
"""LiteLLM, over each of the APIs that it can speak to a server of one's own."""

import json
from collections.abc import Iterator
from typing import Any

import litellm

from tests.foreign.sdks.asked import Person, Server, get_weather, report

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


class Provider:
    """`completion` with a provider's prefix, which chooses the API."""

    def __init__(self, prefix: str, path: str) -> None:
        self._prefix = prefix
        self._path = path

    def _complete(self, server: Server, turns: list[Any], **fields: Any) -> Any:
        return litellm.completion(
            f"{self._prefix}/{server.model}",
            turns,
            api_base=server.url + self._path,
            api_key=server.key,
            num_retries=server.retries,
            max_retries=server.retries,
            extra_headers=server.headers,
            **fields,
        )

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = self._complete(server, turns)
        used = answer.usage.prompt_tokens, answer.usage.completion_tokens
        return answer.choices[0].message.content, used

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        chunks = self._complete(server, turns, stream=True, temperature=0)
        for chunk in chunks:
            yield chunk.choices[0].delta.content or ""

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        first = self._complete(server, turns, tools=TOOLS).choices[0].message
        (call,) = first.tool_calls
        result = get_weather(**json.loads(call.function.arguments))
        answered = {"role": "tool", "tool_call_id": call.id, "content": result}
        after = self._complete(server, [*turns, first, answered], tools=TOOLS)
        return str(after.choices[0].message.content)

    def person(self, server: Server, turns: list[Any]) -> Any:
        answer = self._complete(server, turns, response_format=Person)
        return Person.model_validate_json(answer.choices[0].message.content)


if __name__ == "__main__":
    report(
        openai=Provider("openai", "/v1"),
        hosted_vllm=Provider("hosted_vllm", "/v1"),
        anthropic=Provider("anthropic", ""),
        ollama_chat=Provider("ollama_chat", ""),
    )
