"""Conversations with vLLM and a template that refuses many turns."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.calling import conversation_is_answered, conversation_is_refused
from tests.support.conversations import CONVERSATIONS
from tests.support.servers import RunningServer, serve
from tests.vllm.engines import SLOTS, engine_args


@pytest.fixture(scope="module")
def strict(models: Path) -> Iterator[RunningServer]:
    arguments = [f"{name}={json.dumps(value)}" for name, value in engine_args().items()]
    model = models / "strict"
    with serve(engine="vllm", model=model, slots=SLOTS, engine_arg=arguments) as server:
        yield server


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_conversation_is_answered_whatever_the_template_refuses(
    strict: RunningServer, name: str
) -> None:
    conversation_is_answered(strict, name)


def test_a_conversation_that_a_template_refuses_is_the_client_s_error(
    strict: RunningServer,
) -> None:
    conversation_is_refused(strict)
