"""vLLM with a structure that makes rill reason, which rill has not learned.

The reasoning is in small letters and the answer in capitals, with the template's token for the end
of reasoning between them.
"""

import dataclasses
import json

from vllm.sampling_params import StructuredOutputsParams

from penstock.engine.protocol import ModelInfo
from penstock.engine.vllm.chats import AT_ONCE
from penstock.engine.vllm.engine import Vllm
from penstock.engine.vllm.formats import AnswerFormat
from penstock.request import Request
from tests.vllm.engines import CONCLUDED_TOKENS
from tests.vllm.models import END_OF_THOUGHT_ID

STRUCTURE = {
    "type": "structural_tag",
    "format": {
        "type": "sequence",
        "elements": [
            {"type": "regex", "pattern": "[a-z ,.]{20,30}"},
            {"type": "token", "token": END_OF_THOUGHT_ID},
            {"type": "regex", "pattern": "[A-Z ,.]{20,30}"},
        ],
    },
}


class Concluding(Vllm):
    """vLLM with `STRUCTURE` for answers without tools of at most `CONCLUDED_TOKENS` tokens."""

    async def start(self) -> ModelInfo:
        """Load the model, and bind its answers so."""
        info = await super().start()
        format_of = self._binder.format_of

        async def concluded_format_of(
            request: Request, given_tools: str | None, prompt_ids: tuple[int, ...]
        ) -> tuple[AnswerFormat, tuple[str, ...]]:
            given, notes = await format_of(request, given_tools, prompt_ids)
            thinks = given.splitter is not None and request.reasoning_effort != "none"
            if thinks and request.tools is None and request.max_tokens <= CONCLUDED_TOKENS:
                structure = StructuredOutputsParams(structural_tag=json.dumps(STRUCTURE))
                given = dataclasses.replace(given, structure=structure, begin=AT_ONCE)
            return given, notes

        self._binder.format_of = concluded_format_of  # type: ignore[method-assign]
        return info
