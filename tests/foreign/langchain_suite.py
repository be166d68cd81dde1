"""LangChain's standard tests of its OpenAI client, against the server at PENSTOCK_URL.

`test_suites` runs this file in an environment of its own. The built-in model is far too small to
choose the right tool by itself, so the tests that need a clever model are expected to fail.
"""

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MODEL = {"model": "rill", "api_key": "none", "temperature": 0, "max_tokens": 300}
NEEDS_A_CLEVER_MODEL = (
    "test_tool_calling",
    "test_tool_calling_async",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
)


class TestChat(ChatModelIntegrationTests):  # type: ignore[misc] # it has no types here
    """`/v1/chat/completions`."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        client: type[BaseChatModel] = ChatOpenAI
        return client

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": os.environ["PENSTOCK_URL"] + "/v1", "stream_usage": True, **MODEL}


class TestResponses(TestChat):
    """`/v1/responses`."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


for suite in (TestChat, TestResponses):
    for name in NEEDS_A_CLEVER_MODEL:
        test = getattr(ChatModelIntegrationTests, name)
        setattr(suite, name, pytest.mark.xfail(reason="the model is too small")(test))
