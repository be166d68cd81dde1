"""The tools of well-known MCP servers and agents, over llama.cpp.

The templates show only the beginning of the tools: most lists are longer than the built-in model's
context.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from tests.support.calling import HELLO
from tests.support.mcp import LISTS
from tests.support.openai_wire import CHAT
from tests.support.raw import Connection, Response, post
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS

PLAIN = (
    "{%- for message in messages %}<|{{ message['role'] }}|>{{ message['content'][:100] }}<|end|>"
    "{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLER = TOOLS.replace("in tools %}", "in tools[:2] %}").replace(
    "{{ tool | tojson }}", "{{ (tool | tojson)[:200] }}"
)
RELAXED = {"browser", "pages", "crawler", "agent"}


@pytest.fixture(scope="module", params=[PLAIN, CALLER], ids=["plain", "caller"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serve(slots=1, engine_arg=f"chat_template={request.param}") as running:
        yield running


def answer(server: RunningServer, **fields: Any) -> Response:
    body = {"messages": HELLO, "temperature": 0, **fields}
    with Connection(server.port, patience=60) as connection:
        return connection.send(post(json.dumps(body).encode(), path=CHAT)).response()


@pytest.mark.parametrize("name", LISTS)
def test_the_tools_of_real_servers_are_accepted_whole(server: RunningServer, name: str) -> None:
    response = answer(server, tools=LISTS[name], max_tokens=3)
    assert response.status == 200, response.body
    ignored = response.headers.get("x-penstock-ignored", "")
    assert ignored == ("tools[].parameters (relaxed)" if name in RELAXED else "")


@pytest.mark.parametrize("name", LISTS)
def test_a_tool_of_a_real_server_is_called_as_its_parameters_say(
    server: RunningServer, name: str
) -> None:
    function = LISTS[name][-1]["function"]
    choice = {"type": "function", "function": {"name": function["name"]}}
    response = answer(server, tools=LISTS[name], tool_choice=choice, max_tokens=300)
    assert response.status == 200, response.body
    (end,) = response.json()["choices"]
    (call,) = end["message"]["tool_calls"]
    assert end["message"]["content"] is None
    assert call["function"]["name"] == function["name"]
    if end["finish_reason"] == "tool_calls":
        arguments = json.loads(call["function"]["arguments"])
        assert jsonschema_rs.is_valid(function["parameters"], arguments)
