"""What llama.cpp's engine does beyond what every engine must. It runs in this process here."""

import signal

from penstock.engine.llamacpp import LlamaCpp
from penstock.hub import find_model
from tests.engine.recording import RecordingSink
from tests.engine.test_conformance import ask


async def test_a_long_prompt_gives_signs_of_life_before_its_first_token() -> None:
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=1, n_batch=128)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():  # llama.cpp has put its own
        signal.signal(number, handler)
    try:
        sink = RecordingSink()
        engine.submit(ask("a", 2, prompt="word " * 700), sink)
        await sink.end()
    finally:
        await engine.stop()
    before_first_delta = sink.calls[: sink.calls.index("delta")]
    assert before_first_delta[:2] == ["accepted", "started"]
    assert before_first_delta.count("working") >= 5
