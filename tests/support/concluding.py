"""llama.cpp with a grammar that brings rill, which has not learnt to think, from thoughts in small
letters to an answer in capitals, by the mark that its template has."""

from collections.abc import Callable

import msgspec

from penstock.engine.llamacpp.engine import HttpCall, LlamaCpp

GRAMMAR = 'root ::= [a-z ,.]{20,30} "\\n</think>\\n\\n" [A-Z ,.]+'


class Concluding(LlamaCpp):
    """See above."""

    async def _call(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpCall:
        if path == "/completion" and body is not None and b"json_schema" not in body:
            body = msgspec.json.encode({**msgspec.json.decode(body), "grammar": GRAMMAR})
        return await super()._call(path, body, on_body)
