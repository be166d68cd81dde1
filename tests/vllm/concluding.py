"""vLLM with a structure that makes rill reason, which rill has not learned.

The reasoning is in small letters and the answer in capitals, with the template's token for the end
of reasoning between them.
"""

import dataclasses
import json

from vllm.sampling_params import StructuredOutputsParams

from penstock.engine.vllm.chats import AnswerFormat
from penstock.engine.vllm.engine import Vllm
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

    async def _answer_format(self, request: Request) -> AnswerFormat:
        given = await super()._answer_format(request)
        thinks = given.marks is not None and request.reasoning_effort != "none"
        if not thinks or given.parser is not None or request.max_tokens > CONCLUDED_TOKENS:
            return given
        structure = StructuredOutputsParams(structural_tag=json.dumps(STRUCTURE))
        return dataclasses.replace(given, structure=structure)
