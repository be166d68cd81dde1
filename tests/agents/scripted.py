"""An engine that answers agents from a script: it has them do the test's task with their own shell.

The number of tool results in a conversation says which turn it is. A result that does not contain
its link ends the task with an error. Requests without tools (for titles and the like) get the
mock's text.
"""

import json

import msgspec

from penstock.engine.mock import SUPPORTS, Mock
from penstock.engine.protocol import Feature, Sink
from penstock.request import Request
from tests.agents.task import DONE, command, link

PROMPT_TOKENS = 100
PIECE_CHARACTERS = 5
MORE: tuple[Feature, ...] = (
    "tools",
    "tools_with_schema",
    "json_schema",
    "reasoning_effort",
    "reasoning_switch",
    "template_kwargs",
)


class Scripted(Mock):
    """Calls the agent's shell in `turns` turns, and then ends the task."""

    def __init__(self, *, name: str, turns: int) -> None:
        super().__init__(name=name, interval=0.001, context_length=300_000)
        self._info = msgspec.structs.replace(self._info, supports=(*SUPPORTS, *MORE))
        self._num_turns = turns

    async def _run(self, request: Request, sink: Sink) -> None:
        call = _shell_call(request.tools)
        if call is None:
            await super()._run(request, sink)
            return
        results = [each.content for each in request.messages or () if each.role == "tool"]
        for number, result in enumerate(results):
            if link(number) not in result:
                sink.fail("wrong_result", f"Turn {number} of the script has another result.")
                return
        sink.accepted(tuple(range(PROMPT_TOKENS)))
        if not await self._start(request, sink):
            return
        if len(results) == self._num_turns:
            sink.delta(DONE, 1, (0,))
            sink.finish("stop", 1)
            return
        name, field = call
        arguments = json.dumps({field: command(len(results)), **({} if field == "cmd" else _MORE)})
        sink.tool_call(0, f"call_{request.id}", name, "", 1)
        starts = range(0, len(arguments), PIECE_CHARACTERS)
        for start in starts:
            sink.tool_call(0, "", "", arguments[start : start + PIECE_CHARACTERS], 1)
        sink.finish("stop", 1 + len(starts))


# The names of the agents' shell tools, and of the argument that is the command.
_SHELLS = {"Bash": "command", "bash": "command", "exec_command": "cmd"}
_MORE = {"description": "Add a link"}


def _shell_call(tools: str | None) -> tuple[str, str] | None:
    """Return the name of the agent's shell tool and of its argument, None without tools."""
    names = [tool["function"]["name"] for tool in json.loads(tools or "[]")]
    return next(((name, _SHELLS[name]) for name in names if name in _SHELLS), None)
