"""Every API knows how many of its events the first events of a stream's log make.

That decides whom a stream refuses whose log has lost its end (`Answering.resume`).
"""

import pytest

from penstock.api.anthropic.frames import MessageForm
from penstock.api.dialect import Form
from penstock.api.native.frames import NativeForm
from penstock.api.neighbors.frames import CompletionForm as NeighborsForm
from penstock.api.ollama.frames import ChatForm as LinesForm
from penstock.api.openai.frames import ChatForm, FunctionsForm
from penstock.api.openai.responses.frames import ResponseForm
from penstock.request import Request
from penstock.stream.registry import Streams
from tests.support.scripted import ScriptedEngine, opened

FORMS: list[Form] = [
    NativeForm(),
    NeighborsForm("m"),
    ChatForm(id="x", created=5, model="m", include_usage=True),
    FunctionsForm(id="x", created=5, model="m"),
    MessageForm("msg_x", "m"),
    MessageForm("msg_x", "m", "omitted"),
    LinesForm("m", "2026-01-01T00:00:00Z"),
    LinesForm("m", "2026-01-01T00:00:00Z", hides_thinking=True),
    ResponseForm("x", 5, {}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dialect)
async def test_the_events_of_a_prefix_are_those_that_there_were_then(form: Form) -> None:
    stream = opened(Streams([ScriptedEngine()]), Request("x", 99, prompt="x"), resumable=True)
    stream.accepted((1, 2))
    stream.started()
    counts = [form.num_events(stream)]

    def note() -> None:
        if len(stream.log) == len(counts):
            counts.append(form.num_events(stream))

    for step in range(3):
        stream.reasoning("hm ", 1, ())
        note()
        stream.delta(f"{step} ", 1, (1,))
        note()
        stream.delta("more ", 1, (1,))
        note()
        stream.tool_call(step, f"call{step}", "look", "{}", 1)
        note()
    before = [form.num_before(stream, cursor) for cursor in range(len(counts))]
    assert before == counts
    assert len(counts) == 13
    stream.finish("stop", 12)
    assert [form.num_before(stream, cursor) for cursor in range(len(counts))] == counts
