"""Binds answers over vLLM: decides how, and checks that vLLM can.

In: requests. Out: their `AnswerFormat`s, and notes on what was left out of schemas; or
InvalidSchemaError. Everything is compiled in a process with limits before vLLM sees it. Not known
here: prompts, and how vLLM generates.
"""

import asyncio
import json
from typing import Any

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

from penstock.engine.compiled import InvalidSchemaError, TooComplexError
from penstock.engine.grammar import RELAXED_SCHEMA, RELAXED_TOOLS, opened_tools
from penstock.engine.process.bounded import BeyondBoundsError, BoundedFunction
from penstock.engine.vllm.chats import MAX_TOOLS_INTEGER, Chats, structure_in
from penstock.engine.vllm.formats import AnswerFormat, Begun
from penstock.engine.vllm.structures import (
    BindTools,
    BoundTools,
    Job,
    Outcome,
    Refused,
    RelaxedSchema,
    RelaxSchema,
)
from penstock.request import Request

UNSUPPORTED = "no grammar backend supports it"
IN_PART = "xgrammar binds only a part of it"

_encode = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


class UnboundSchemaError(InvalidSchemaError):
    """The schema of an answer that may also call tools cannot be enforced."""


class Binder:
    """Binds answers of the model of `chats`. `processor` is vLLM's input processor."""

    def __init__(self, chats: Chats, processor: Any, compiler: BoundedFunction) -> None:
        self._chats = chats
        self._processor = processor
        self._compiler = compiler

    async def bindable(self, request: Request) -> tuple[Request, tuple[str, ...]]:
        """Return the request with tools that can be bound, and notes on what was relaxed.

        A schema beside the tools is relaxed in the same way. Raises InvalidSchemaError and
        JobLostError.
        """
        if request.tools is None:
            return request, ()
        bound = await self._compile(BindTools(request.tools, MAX_TOOLS_INTEGER))
        assert isinstance(bound, BoundTools)
        is_relaxed = bound.is_relaxed or _leaves_out(json.loads(request.tools))
        request = msgspec.structs.replace(request, tools=bound.tools)
        if request.json_schema is None:
            return request, (RELAXED_TOOLS,) * is_relaxed
        schema, is_partial = await self._bindable_schema(request)
        request = msgspec.structs.replace(request, json_schema=schema)
        return request, (RELAXED_TOOLS,) * is_relaxed + (RELAXED_SCHEMA,) * is_partial

    async def format_of(
        self, request: Request, given_tools: str | None, prompt_ids: tuple[int, ...]
    ) -> tuple[AnswerFormat, tuple[str, ...]]:
        """Return the format of the answer to a bindable request, and notes on what was relaxed.

        `given_tools` are the request's tools as the client gave them. Raises InvalidSchemaError if
        vLLM cannot enforce the format, JobLostError and CannotContinueError.
        """
        begun = Begun.of(request, prompt_ids)
        if (request.json_schema or request.grammar or request.tools) is None:
            return self._chats.answer_format(request, begun), ()
        try:
            answer_format = await self._checked(request, begun)
            is_partial = request.tools is None and self._binds_in_part(request.json_schema)
            if is_partial and not request.lax_schema:
                raise UnboundSchemaError(IN_PART)
            return answer_format, (RELAXED_SCHEMA,) * is_partial
        except (TooComplexError, UnboundSchemaError):
            raise
        except InvalidSchemaError:
            if given_tools is not None:
                relaxed = msgspec.structs.replace(request, tools=opened_tools(given_tools))
                note = RELAXED_TOOLS
            elif request.json_schema is not None and request.lax_schema:
                relaxed = await self._relaxed(request)
                note = RELAXED_SCHEMA
            else:
                raise
        return await self._checked(relaxed, begun), (note,)

    async def _bindable_schema(self, request: Request) -> tuple[str, bool]:
        """Return a schema that a structural tag binds beside tools, and whether it was relaxed."""
        alone = msgspec.structs.replace(request, tools=None, separate_reasoning=False)
        is_relaxed = False
        try:
            try:
                await self._checked(alone, Begun())
            except TooComplexError:
                raise
            except InvalidSchemaError:
                if not request.lax_schema:
                    raise
                alone, is_relaxed = await self._relaxed(alone), True
                await self._checked(alone, Begun())
        except TooComplexError:
            raise
        except InvalidSchemaError as error:
            raise UnboundSchemaError(str(error)) from None
        assert alone.json_schema is not None
        if has_xgrammar_unsupported_json_features(json.loads(alone.json_schema)):
            if not request.lax_schema:
                raise UnboundSchemaError(IN_PART)
            is_relaxed = True
        return alone.json_schema, is_relaxed

    def _binds_in_part(self, schema: str | None) -> bool:
        """Return whether vLLM binds only a part of this schema.

        vLLM checks it for the library that can bind all of it, but binds every answer with the
        library of the first, which is xgrammar unless the operator has chosen one.
        """
        if schema is None or self._processor.structured_outputs_config.backend != "auto":
            return False
        return bool(has_xgrammar_unsupported_json_features(json.loads(schema)))

    async def _relaxed(self, request: Request) -> Request:
        """Return the request with a schema without what cannot be bound."""
        assert request.json_schema is not None
        relaxed = await self._compile(RelaxSchema(request.json_schema))
        assert isinstance(relaxed, RelaxedSchema)
        return msgspec.structs.replace(request, json_schema=relaxed.schema)

    async def _checked(self, request: Request, begun: Begun) -> AnswerFormat:
        """Return the format of an answer with a structure, after vLLM has verified it.

        The structure is compiled in a process with limits before vLLM sees it.
        """
        try:
            answer_format = await asyncio.to_thread(self._chats.answer_format, request, begun)
        except (VLLMClientError, ValueError, TypeError):
            raise InvalidSchemaError(UNSUPPORTED) from None
        if (structure := structure_in(answer_format)) is not None:
            await self._compile(structure)
        await asyncio.to_thread(self._verify, answer_format.structure)
        return answer_format

    def _verify(self, structure: Any) -> None:
        """Raise InvalidSchemaError if vLLM refuses the structure: it depends on the backend."""
        processor = self._processor
        try:
            SamplingParams(structured_outputs=structure).verify(
                processor.model_config,
                processor.speculative_config,
                processor.structured_outputs_config,
                processor.tokenizer,
            )
        except (VLLMClientError, ValueError, TypeError):
            raise InvalidSchemaError(UNSUPPORTED) from None

    async def _compile(self, job: Job) -> Outcome:
        """Run a job in a process with limits. Raises InvalidSchemaError and JobLostError."""
        try:
            outcome: Outcome = _decode_outcome(await self._compiler(_encode(job)))
        except BeyondBoundsError:
            raise TooComplexError from None
        if isinstance(outcome, Refused):
            raise InvalidSchemaError(outcome.why)
        return outcome


def _leaves_out(tools: list[Any]) -> bool:
    """Return whether xgrammar binds only a part of the parameters of one of the tools.

    Raises InvalidSchemaError if that function is `strict`.
    """
    partial = [
        tool["function"]
        for tool in tools
        if has_xgrammar_unsupported_json_features(tool["function"]["parameters"])
    ]
    if any(function.get("strict", False) for function in partial):
        raise InvalidSchemaError(IN_PART)
    return bool(partial)
