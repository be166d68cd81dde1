"""llama.cpp with a grammar that makes rill reason, which rill has not learned.

The reasoning is in small letters and the answer in capitals, with the template's mark between them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.http import HttpRequest, LlamaClient
from penstock.engine.llamacpp.hub import find_model
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

GRAMMAR = 'root ::= [a-z ,.]{20,30} "\\n</think>\\n\\n" [A-Z ,.]+'


@contextlib.contextmanager
def serve_thinker() -> Iterator[RunningServer]:
    """Run a server of a model that thinks in small letters and answers in capitals."""
    arguments = [f"chat_template={REASONING}", f"model={find_model('rill')}", "slots=2"]
    engine = f"{__name__}:Concluding"
    with serve(engine=engine, engine_arg=arguments, model_name="rill") as running:
        yield running


class GrammarClient(LlamaClient):
    """A client that adds `GRAMMAR` to every completion without a schema."""

    async def open(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpRequest:
        if path == "/completion" and body is not None and b"json_schema" not in body:
            body = msgspec.json.encode({**msgspec.json.decode(body), "grammar": GRAMMAR})
        return await super().open(path, body, on_body)


class Concluding(LlamaCpp):
    """llama.cpp with `GRAMMAR` for every completion without a schema."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._client = GrammarClient()
