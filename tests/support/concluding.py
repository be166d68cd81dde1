"""llama.cpp with a grammar that makes rill reason, which rill has not learned.

The reasoning is in small letters and the answer in capitals, with the template's mark between them.
"""

from collections.abc import Callable

import msgspec

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.http import HttpRequest

GRAMMAR = 'root ::= [a-z ,.]{20,30} "\\n</think>\\n\\n" [A-Z ,.]+'


class Concluding(LlamaCpp):
    """llama.cpp with `GRAMMAR` for every completion without a schema."""

    async def _open(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpRequest:
        if path == "/completion" and body is not None and b"json_schema" not in body:
            body = msgspec.json.encode({**msgspec.json.decode(body), "grammar": GRAMMAR})
        return await super()._open(path, body, on_body)
