"""A numbered mock engine that signs each token: a reader can tell which server generated it."""

from collections.abc import Iterator
from typing import Any

from penstock.engine.mock import Mock
from penstock.engine.protocol import Sink
from penstock.request import Request

TARGET = "tests.support.signed:Signed"


class Signed(Mock):
    """The mock engine. Its tokens are numbered and end with `sign` ("lake:0 a lake:1 a ")."""

    def __init__(self, *, sign: str, **params: Any) -> None:
        super().__init__(numbered=True, **params)
        self._sign = sign

    async def _speak(self, request: Request, words: Iterator[str], end: int, sink: Sink) -> None:
        await super()._speak(request, (f"{word}{self._sign} " for word in words), end, sink)
