# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain==1.5.2", "langchain-openai==1.7.4", "langgraph==1.2.24"]
# ///
"""LangChain with an agent of LangGraph's, over chats and over Responses."""

from collections.abc import Iterator
from typing import Any

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

from tests.foreign.sdks.asked import Person, Server, get_weather, report


class Api:
    def __init__(self, *, responses: bool) -> None:
        self._responses = responses

    def _model(self, server: Server, **fields: Any) -> Any:
        return ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key=server.key,
            model=server.model,
            max_retries=server.retries,
            default_headers=server.headers,
            use_responses_api=self._responses,
            **fields,
        )

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        answer = self._model(server).invoke(turns)
        used = answer.usage_metadata
        return str(answer.text), (used["input_tokens"], used["output_tokens"])

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        model = self._model(server, temperature=0)
        for chunk in model.stream(turns):
            yield str(chunk.text)

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        agent = create_agent(self._model(server), [get_weather], name="clerk")
        return str(agent.invoke({"messages": turns})["messages"][-1].text)

    def person(self, server: Server, turns: list[Any]) -> Any:
        return self._model(server).with_structured_output(Person).invoke(turns)


if __name__ == "__main__":
    report(chat=Api(responses=False), responses=Api(responses=True))
