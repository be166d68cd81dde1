# /// script
# requires-python = ">=3.11"
# dependencies = ["openai-agents==0.24.0"]
# ///
"""OpenAI's Agents SDK, over Responses (its default) and over chats."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

from tests.foreign.sdks.asked import Person, Server, get_weather, report

set_tracing_disabled(True)


class Api:
    def __init__(self, model: Any) -> None:
        self._model = model

    def _agent(self, server: Server, turns: list[Any], **fields: Any) -> tuple[Any, list[Any]]:
        client = openai.AsyncOpenAI(
            base_url=f"{server.url}/v1",
            api_key=server.key,
            max_retries=server.retries,
            default_headers=server.headers,
        )
        model = self._model(server.model, openai_client=client)
        system = [turn["content"] for turn in turns if turn["role"] == "system"]
        agent = Agent("clerk", instructions=system[0] if system else None, model=model, **fields)
        return agent, [turn for turn in turns if turn["role"] != "system"]

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        run = Runner.run_sync(*self._agent(server, turns))
        used = run.context_wrapper.usage
        return run.final_output, (used.input_tokens, used.output_tokens)

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        settings = ModelSettings(temperature=0)

        async def pieces() -> list[str]:
            run = Runner.run_streamed(*self._agent(server, turns, model_settings=settings))
            return [
                event.data.delta
                async for event in run.stream_events()
                if event.type == "raw_response_event"
                and event.data.type == "response.output_text.delta"
            ]

        return iter(asyncio.run(pieces()))

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        agent = self._agent(server, turns, tools=[function_tool(get_weather)])
        return str(Runner.run_sync(*agent).final_output)

    def person(self, server: Server, turns: list[Any]) -> Any:
        return Runner.run_sync(*self._agent(server, turns, output_type=Person)).final_output


if __name__ == "__main__":
    report(responses=Api(OpenAIResponsesModel), chat=Api(OpenAIChatCompletionsModel))
