"""Faults that cut one connection for each mark in a request: `cut-whole-ID`, `cut-stream-ID`.

The first request with a mark loses its connection: before the first byte of its response, or in the
middle of it. A second request with the same mark is a retry, and passes.
"""

import random
import re

from tests.faults.proxy import CutError, Fault, Faults, FaultsOf, Push

MARK = re.compile(rb"cut-(whole|stream)-\w{32}")
LONGEST = 64
AFTER = {b"whole": 0, b"stream": 1500}
"""Bytes of the response that pass."""


def cut_marked() -> FaultsOf:
    """Return the faults of a proxy's connections."""
    seen: set[bytes] = set()

    def faults_of(chance: random.Random) -> Faults:
        left: list[int] = []  # what may still pass, once this connection has a new mark
        return Faults(up=[_watch(seen, left)], down=[_cut(left)])

    return faults_of


def _watch(seen: set[bytes], left: list[int]) -> Fault:
    def link(push: Push) -> Push:
        recent = b""

        async def watching(data: bytes) -> None:
            nonlocal recent
            recent += data
            for mark in MARK.finditer(recent):
                if mark[0] not in seen:
                    seen.add(mark[0])
                    left[:] = [AFTER[mark[1]]]
            recent = recent[-LONGEST:]
            await push(data)

        return watching

    return link


def _cut(left: list[int]) -> Fault:
    def link(push: Push) -> Push:
        async def cutting(data: bytes) -> None:
            if left and len(data) > left[0]:
                if left[0]:
                    await push(data[: left[0]])
                raise CutError("FIN")
            if left:
                left[0] -= len(data)
            await push(data)

        return cutting

    return link
