# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[anthropic,openai]==2.68.0"]
# ///
"""pydantic-ai: its agent over chats, Responses and Messages."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.foreign.sdks.asked import Person, Server, get_weather, report


def history(turns: list[Any]) -> list[ModelMessage]:
    parts: dict[str, Any] = {"system": SystemPromptPart, "user": UserPromptPart}
    return [
        ModelResponse([TextPart(turn["content"])])
        if turn["role"] == "assistant"
        else ModelRequest([parts[turn["role"]](turn["content"])])
        for turn in turns
    ]


class Api:
    def __init__(self, name: str) -> None:
        self._name = name

    def _model(self, server: Server) -> Any:
        shared: Any = {
            "api_key": server.key,
            "max_retries": server.retries,
            "default_headers": server.headers,
        }
        if self._name == "messages":
            messages = anthropic.AsyncAnthropic(base_url=server.url, **shared)
            return AnthropicModel(
                server.model, provider=AnthropicProvider(anthropic_client=messages)
            )
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", **shared)
        model = OpenAIChatModel if self._name == "chat" else OpenAIResponsesModel
        return model(server.model, provider=OpenAIProvider(openai_client=client))

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        agent = Agent(self._model(server))
        run = agent.run_sync(turns[-1]["content"], message_history=history(turns[:-1]))
        return run.output, (run.usage.input_tokens, run.usage.output_tokens)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        agent = Agent(self._model(server), model_settings={"temperature": 0, "max_tokens": 1000})

        async def pieces() -> AsyncIterator[str]:
            past = history(turns[:-1])
            async with agent.run_stream(turns[-1]["content"], message_history=past) as run:
                async for piece in run.stream_text(delta=True, debounce_by=None):
                    yield piece

        return iter(asyncio.run(_all(pieces())))

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        agent = Agent(self._model(server), tools=[get_weather])
        return str(agent.run_sync(turns[-1]["content"]).output)

    def person(self, server: Server, turns: list[Any]) -> Any:
        # By a tool call (the default); by a schema where the SDK knows that the API has them.
        output: Any = NativeOutput(Person) if self._name == "responses" else Person
        return Agent(self._model(server), output_type=output).run_sync(turns[-1]["content"]).output


async def _all(pieces: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in pieces]


if __name__ == "__main__":
    report(chat=Api("chat"), responses=Api("responses"), messages=Api("messages"))
