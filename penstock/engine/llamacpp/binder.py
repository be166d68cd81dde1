"""Binds answers over llama.cpp: decides what binds them, and has it compiled.

In: requests. Out: llama.cpp's parameters, or how tools are shown and called; or UnboundError. All
is compiled (`bonds`) in a process with limits. Not known here: prompts, and how llama.cpp
generates.
"""

import msgspec

from penstock.engine.compiled import TooComplexError
from penstock.engine.control import ControlTokens
from penstock.engine.grammar import bound_text, has_pattern
from penstock.engine.lark import has_regex
from penstock.engine.llamacpp.bonds import Bond, Bound, Outcome, Refused, Tools, UnboundError
from penstock.engine.process.bounded import BeyondBoundsError, BoundedFunction
from penstock.engine.process.forks import Limits
from penstock.request import Request

COMPILE_LIMITS = Limits(cpu_s=1.0, memory_bytes=192 * 2**20, wall_s=10.0)

_encode = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


class Binder:
    """Binds answers with the function `compile_bond`, which `bonds.make` makes.

    `control` are the model's control tokens. `shows_tools`: its chat template has a form for tools
    and their calls.
    """

    def __init__(
        self, compile_bond: BoundedFunction, control: ControlTokens, *, shows_tools: bool
    ) -> None:
        self._compile_bond = compile_bond
        self._control = control
        self._shows_tools = shows_tools

    async def tools_of(self, request: Request) -> Tools | None:
        """Return how the request's tools are shown and called, None without tools.

        Raises UnboundError and JobLostError.
        """
        if request.tools is None:
            return None
        outcome = await self._bind(request)
        assert isinstance(outcome, Tools)
        return outcome

    async def bound_of(self, request: Request) -> Bound:
        """Return what binds the answer to a request without tools.

        Raises UnboundError and JobLostError.
        """
        if request.json_schema is None and request.grammar is None:
            return Bound()
        outcome = await self._bind(request)
        assert isinstance(outcome, Bound)
        return outcome

    async def _bind(self, request: Request) -> Bound | Tools:
        spells = self._spells_control_tokens(request)
        bond = Bond.of(request, spells=spells, shows_tools=self._shows_tools)
        try:
            result = await self._compile_bond(_encode(bond))
        except BeyondBoundsError:
            raise UnboundError(Refused.because(bond.is_about, TooComplexError())) from None
        outcome: Outcome = _decode_outcome(result)
        if isinstance(outcome, Refused):
            raise UnboundError(outcome)
        return outcome

    def _spells_control_tokens(self, request: Request) -> bool:
        """Return True if what binds the answer may contain the text of a control token."""
        text = bound_text(request)
        if not text or self._control.found_in(text):
            return bool(text)
        if request.tools is not None:
            return False
        is_regex = request.grammar is not None and has_regex(request.grammar)
        return is_regex or has_pattern(text)  # a pattern may match any text
