"""Conversations as agents have them keep their caches on llama.cpp: the recorded ones are long.

`python -m tests.agents` runs the agents themselves, and replays what they sent. These turns have
the same form, in our own words: long instructions and tools that all sessions of an agent share, a
line that changes with each request, a session's own words, and results of tools.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.llamacpp.hub import find_model
from tests.agents.replay import replay, too_little_cached
from tests.support.random_model import random_model
from tests.support.servers import RunningServer, serve
from tests.support.templates import GEMMA, TOOLS

CONTEXT = 16_384
NUM_TURNS = 3
RULES = "Work in small steps. Read a file before you change it. Say what you have done. " * 60
RESULT = "The folder has a mill, a weir, a gate and a long pipe. " * 3
PARAMETERS = {
    "type": "object",
    "properties": {"command": {"type": "string"}},
    "required": ["command"],
}
Sent = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module", params=[TOOLS, GEMMA], ids=["the template's", "our own"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server whose model shows tools in its template's form, or in Penstock's."""
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    rill = Path(find_model("rill"))
    model = random_model(path, rill, context=CONTEXT, template=request.param)
    with serve(model=model, model_name="random", context=CONTEXT, slots=3) as running:
        yield running


def claude(session: str, number: int) -> Sent:
    """Return a turn as Claude Code sends it: with a changing line of its own before all else."""
    billing = f"x-anthropic-billing-header: cc_version=2; cch={session}{number};"
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": session}]}]
    for turn in range(number):
        call = {"type": "tool_use", "id": f"toolu_{turn}", "name": "Bash", "input": named(turn)}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{turn}", "content": RESULT}
        messages += [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
    # Only the last turn has the mark, so it is another turn's each time.
    messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
    body = {
        "model": "random",
        "max_tokens": 32_000,
        "system": [{"type": "text", "text": billing}, {"type": "text", "text": RULES}],
        "messages": messages,
        "tools": [{"name": "Bash", "description": RULES, "input_schema": PARAMETERS}],
        "metadata": {"user_id": f"{session} {number}"},
        "stream": True,
    }
    return session, "/v1/messages?beta=true", body


def codex(session: str, number: int) -> Sent:
    """Return a turn as Codex sends it: the whole conversation, which the server does not store."""
    items: list[Any] = [{"type": "message", "role": "user", "content": session}]
    for turn in range(number):
        call = {"type": "function_call", "call_id": f"call_{turn}", "name": "exec_command"}
        items += [
            {**call, "arguments": f'{{"command": "step {turn}"}}'},
            {"type": "function_call_output", "call_id": f"call_{turn}", "output": RESULT},
        ]
    tool = {"type": "function", "name": "exec_command", "description": RULES}
    body = {
        "model": "random",
        "instructions": RULES,
        "input": items,
        "tools": [{**tool, "parameters": PARAMETERS, "strict": False}],
        "store": False,
        "stream": True,
        "prompt_cache_key": session,
        "client_metadata": {"turn": str(number)},
    }
    return session, "/v1/responses", body


def named(turn: int) -> dict[str, str]:
    return {"command": f"step {turn}"}


def test_each_agent_s_turns_come_from_the_cache_though_they_alternate(
    server: RunningServer,
) -> None:
    """Two sessions of an agent begin alike for thousands of tokens; each needs its own slot."""
    sessions = (("Mend the mill.", claude), ("Paint the gate.", claude), ("Count fish.", codex))
    turns = [turn(name, number) for number in range(NUM_TURNS) for name, turn in sessions]
    answered = replay(server, turns)
    assert min(each.prompt_tokens for each in answered) > 1000
    assert not too_little_cached(answered)


def test_a_conversation_whose_beginning_changes_is_noticed(server: RunningServer) -> None:
    """Otherwise the test above could not fail."""
    answered = []
    for number in range(2):
        session, path, body = claude("Mend the weir.", number)
        body["system"][1]["text"] = f"Request {number} {session} {RULES}"
        answered += replay(server, [(session, path, body)])
    assert len(too_little_cached(answered)) == 1
