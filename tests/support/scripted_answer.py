"""An engine that thinks, speaks and calls tools as a script says."""

import json

from penstock.engine.protocol import Feature, ModelInfo, Sink
from penstock.engine.tasks import TaskEngine
from penstock.request import Request

THOUGHTS = ("I should", " look.")
TEXTS = ("Let me", " see.")
CALLS = (
    ("call_a", "get_weather", ('{"city": "B', 'onn", "days": 2}')),
    ("call_b", "get_time", ("{}",)),
)


class ScriptedAnswer(TaskEngine):
    """Answers the first turn with `THOUGHTS`, `TEXTS` and `CALLS`; then repeats the last turn.

    Each piece is one token. With `cut` the answer ends after the first part of the first call.
    """

    def __init__(self, *, name: str, cut: bool = False) -> None:
        super().__init__(0)
        self._name = name
        self._cut = cut

    async def start(self) -> ModelInfo:
        """Return at once."""
        supports: tuple[Feature, ...] = ("tools", "reasoning_switch", "thinking_budget")
        return ModelInfo(self._name, "scripted", 4096, 0, supports)

    async def _run(self, request: Request, sink: Sink) -> None:
        messages = request.messages or ()
        sink.accepted(tuple(range(len(messages))))
        if not await self._start(request, sink):
            return
        if len(messages) > 1:
            called = [
                [each.id, each.name, each.arguments] for m in messages for each in m.tool_calls
            ]
            said = [[m.role, m.content, m.reasoning, m.tool_call_id] for m in messages]
            sink.delta(json.dumps([said, called]), 1, (1,))
            sink.finish("stop", 1)
            return
        num_tokens = 0
        if request.reasoning_effort != "none":
            for text in THOUGHTS:
                sink.reasoning(text, 1, (1,))
                num_tokens += 1
        for text in TEXTS:
            sink.delta(text, 1, (1,))
            num_tokens += 1
        for number, (call_id, name, parts) in enumerate(CALLS if request.tools else ()):
            sink.tool_call(number, call_id, name, "", 1)
            num_tokens += 1
            for part in parts:
                sink.tool_call(number, "", "", part, 1)
                num_tokens += 1
                if self._cut:
                    sink.finish("length", num_tokens)
                    return
        sink.finish("stop", num_tokens)
