# /// script
# requires-python = ">=3.11"
# dependencies = ["autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5"]
# ///
"""AutoGen: its client of OpenAI's API, and its assistant agent."""

import asyncio
from collections.abc import Iterator
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import AssistantMessage, SystemMessage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

from tests.foreign.sdks.asked import Person, Server, get_weather, report

INFO: Any = {
    "family": "unknown",
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "vision": False,
}


def client(server: Server, **fields: Any) -> Any:
    return OpenAIChatCompletionClient(
        model=server.model,
        base_url=f"{server.url}/v1",
        api_key=server.key,
        max_retries=server.retries,
        default_headers=server.headers,
        model_info=INFO,
        **fields,
    )


def messages(turns: list[Any]) -> list[Any]:
    made = {
        "system": lambda content: SystemMessage(content=content),
        "user": lambda content: UserMessage(content=content, source="user"),
        "assistant": lambda content: AssistantMessage(content=content, source="clerk"),
    }
    return [made[turn["role"]](turn["content"]) for turn in turns]


class Chat:
    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = asyncio.run(client(server).create(messages(turns)))
        return answer.content, (answer.usage.prompt_tokens, answer.usage.completion_tokens)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        async def pieces() -> list[str]:
            stream = client(server, temperature=0).create_stream(messages(turns))
            return [piece async for piece in stream if isinstance(piece, str)]

        return iter(asyncio.run(pieces()))

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        agent = AssistantAgent(
            "clerk",
            client(server),
            tools=[get_weather],
            system_message=None,
            reflect_on_tool_use=True,
        )
        return str(asyncio.run(agent.run(task=turns[-1]["content"])).messages[-1].content)

    def person(self, server: Server, turns: list[Any]) -> Any:
        agent = AssistantAgent("clerk", client(server), output_content_type=Person)
        return asyncio.run(agent.run(task=turns[-1]["content"])).messages[-1].content


if __name__ == "__main__":
    report(chat=Chat())
