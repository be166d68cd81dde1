"""Stored responses belong to all servers that share a folder of logs, and outlive each of them."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.calling import client_of
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

NUM_TOKENS = 300


class Pair:
    """Two servers over one folder, with a client for each."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._flags: dict[str, Any] = {
            "engine": "mock",
            "mock_interval": 0.02,
            "engine_arg": ["numbered=true", f"length={NUM_TOKENS}"],
            "log": folder,
        }
        self._stack = stack
        self.first, self.second = self.start(), self.start()
        self.here, self.there = (
            stack.enter_context(client_of(each)) for each in (self.first, self.second)
        )

    def start(self) -> RunningServer:
        return self._stack.enter_context(serve(**self._flags))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path_factory.mktemp("pair") / "log", stack)


def ask(client: openai.OpenAI, text: str = "Hi", **fields: Any) -> Any:
    return client.responses.create(model="mock", input=text, **fields)


def test_every_server_finds_a_response_and_continues_its_conversation(pair: Pair) -> None:
    response = ask(pair.here)
    assert pair.there.responses.retrieve(response.id).output_text == response.output_text
    items = pair.there.responses.input_items.list(response.id)
    assert [item.type for item in items] == ["message"]
    following = ask(pair.there, "And then?", previous_response_id=response.id)
    # The mock counts words: the conversation before is part of the prompt.
    assert following.usage.input_tokens > response.usage.input_tokens + NUM_TOKENS
    pair.there.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        pair.there.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        ask(pair.there, "And then?", previous_response_id=response.id)


def test_a_response_in_the_background_is_followed_and_cancelled_elsewhere(pair: Pair) -> None:
    begun = ask(pair.here, background=True)
    assert pair.there.responses.retrieve(begun.id).status == "in_progress"
    cancelled = pair.there.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert pair.here.responses.retrieve(begun.id).status == "cancelled"


def test_a_response_outlives_its_server(pair: Pair) -> None:
    third = pair.start()
    with client_of(third) as client:
        begun = ask(client, background=True)
    os.kill(third.pid, signal.SIGKILL)

    def is_complete() -> bool:
        return bool(pair.there.responses.retrieve(begun.id).status == "completed")

    assert eventually(is_complete)
    text = pair.there.responses.retrieve(begun.id).output_text
    assert text.split() == [f"Hi:{number}" for number in range(NUM_TOKENS)]
    assert pair.here.responses.retrieve(begun.id).output_text == text
