"""An engine that takes long to read some prompts, and refuses some without a token."""

import asyncio

from penstock.engine.mock import Mock, prompt_text
from penstock.engine.protocol import Sink
from penstock.request import Request

READ_S = 0.1


class SlowReading(Mock):
    """A mock that needs 0.1 s for a prompt with the word "slow", before it accepts or refuses it.

    It refuses prompts with the word "refuse". So do engines whose tokenizer or grammar takes long.
    """

    async def _run(self, request: Request, sink: Sink) -> None:
        words = prompt_text(request).split()
        if "slow" in words:
            await asyncio.sleep(READ_S)
        if "refuse" in words:
            sink.fail("invalid_schema", "The engine was told to refuse this request.")
        else:
            await super()._run(request, sink)


ENGINE = f"{SlowReading.__module__}:{SlowReading.__name__}"
