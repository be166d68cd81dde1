"""vLLM with a structure that brings rill, which has not learnt to think, from thoughts in small
letters to an answer in capitals, by the token that its template has for the end of thoughts."""

import dataclasses
import json

from vllm.sampling_params import StructuredOutputsParams

from penstock.engine.vllm.chats import Answer
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
    """See above: for answers of `CONCLUDED_TOKENS` at most that may not call."""

    async def _answer(self, request: Request) -> Answer:
        answer = await super()._answer(request)
        thinks = answer.marks is not None and request.reasoning_effort != "none"
        if not thinks or answer.parser is not None or request.max_tokens > CONCLUDED_TOKENS:
            return answer
        structure = StructuredOutputsParams(structural_tag=json.dumps(STRUCTURE))
        return dataclasses.replace(answer, structure=structure)
