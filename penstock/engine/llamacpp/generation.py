"""Has llama.cpp generate an answer, in the way that its request needs.

In: a request that is ready and has a slot, and its sink. Out: calls of the sink; its last one is
the answer's end. Most answers are one request to `/completion`, the only route that returns token
ids. Some need several such requests (`steps`). Answers that may call tools in the form of the chat
template come from `/v1/chat/completions`, the only route that finds tool calls in the text. Not
known here: how prompts are made and answers bound, and who else waits for a slot.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from penstock.engine.grammar import CANNOT_CONTINUE
from penstock.engine.lark import with_free_spelling
from penstock.engine.llamacpp.answers import ChatReader, CompletionReader, RefusedByEngineError
from penstock.engine.llamacpp.bonds import Bound, Tools
from penstock.engine.llamacpp.http import LlamaClient
from penstock.engine.llamacpp.params import completion_body, conversation_body
from penstock.engine.llamacpp.reasoning import Reasoning
from penstock.engine.llamacpp.steps import Steps, needs_steps
from penstock.engine.llamacpp.vocabulary import Vocabulary
from penstock.engine.protocol import Sink
from penstock.engine.tools import CallSink
from penstock.request import Request


@dataclass(frozen=True)
class Ready:
    """A request whose prompt is made and whose answer is bound."""

    request: Request
    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    """The tokens to start from: the prompt's, and those of the answer so far."""
    tools: Tools | None
    bound: Bound


class Generation:
    """Has llama.cpp's server at `client` generate answers.

    `token_names` has the texts of tokens that llama.cpp reports without text.
    """

    def __init__(
        self,
        client: LlamaClient,
        vocabulary: Vocabulary,
        reasoning: Reasoning,
        context_length: int,
        token_names: dict[int, str],
    ) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._reasoning = reasoning
        self._context_length = context_length
        self._token_names = token_names

    async def answer(self, ready: Ready, slot: int, sink: Sink) -> None:
        """Push the answer into `sink`. Raises RefusedByEngineError and ConnectionError."""
        if ready.tools is not None and ready.tools.form is not None:
            await self._call(ready, ready.tools, slot, sink)
        elif ready.tools is not None:
            await self._converse(ready, slot, sink)
        elif needs_steps(ready.request):
            await self._generate_in_steps(ready, slot, sink)
        else:
            sink, _ = self._reasoning.split(ready.request, ready.prompt_ids, sink)
            await self._generate(ready, slot, sink)

    async def _generate(self, ready: Ready, slot: int, sink: Sink) -> None:
        """Generate an answer in one request to llama.cpp."""
        request = ready.request
        room = self._context_length - len(ready.token_ids)
        if room <= 0:  # the engine died between the last token and the end
            sink.finish("length", 0)
            return
        reader = await self._completion_reader(ready, sink)
        body = self._completion_body(ready, ready.token_ids, slot)
        body["n_predict"] = min(request.max_tokens, room)
        http = await self._client.open("/completion", msgspec.json.encode(body), reader.feed)
        try:
            status = await http.done
        finally:
            await self._client.stop(http)
        reader.end(status)

    async def _generate_in_steps(self, ready: Ready, slot: int, sink: Sink) -> None:
        """Generate an answer in several requests to llama.cpp (see `steps`)."""
        request, token_ids = ready.request, list(ready.token_ids)
        sink, splitter = self._reasoning.split(request, ready.prompt_ids, sink)
        num_thoughts = self._reasoning.num_thoughts(request, ready.prompt_ids, splitter)
        steps = Steps(sink, request, splitter, num_thoughts)
        while not steps.has_ended:
            room = min(self._context_length - len(token_ids), request.max_tokens - steps.num_tokens)
            if room <= 0:
                steps.begin(is_partial=False)
                steps.finish("length", steps.num_tokens)
                return
            if steps.must_end_thoughts:
                mark, ids = self._reasoning.end()
                steps.push(mark, len(ids), ids)
            else:
                body = self._completion_body(ready, token_ids, slot)
                await self._step(ready, body, room, steps)
            token_ids += self._vocabulary.ids_of_generated(steps.take())

    async def _step(self, ready: Ready, body: dict[str, Any], room: int, steps: Steps) -> None:
        """Generate one step of an answer, `room` tokens at most."""
        request = ready.request
        reader = await self._completion_reader(ready, steps)
        body["n_predict"] = room
        num_unstoppable = steps.num_unstoppable
        if num_unstoppable:
            body["n_predict"] = min(room, num_unstoppable)
            body["ignore_eos"] = True
            impossible = [(each, False) for each in request.stop_token_ids]
            body["logit_bias"] = [*request.sampling.logit_bias, *impossible]
        steps.begin(is_partial=0 < num_unstoppable < room)
        http = await self._client.open("/completion", msgspec.json.encode(body), reader.feed)
        try:
            await asyncio.wait((http.done, steps.step_over), return_when=asyncio.FIRST_COMPLETED)
            if not steps.step_over.done():
                reader.end(http.done.result())
        finally:
            await self._client.stop(http)

    async def _completion_reader(self, ready: Ready, sink: Sink) -> CompletionReader:
        recognise = await ready.bound.recogniser()
        num_top = ready.request.top_logprobs or 0
        return CompletionReader(sink, num_top, recognise, self._token_names)

    def _completion_body(self, ready: Ready, token_ids: list[int], slot: int) -> dict[str, Any]:
        """Return the fields of a request to `/completion`, without the number of tokens."""
        request = ready.request
        marks = self._reasoning.marks_for(request)
        body = {
            **completion_body(request, token_ids, self._context_length, marks),
            "id_slot": slot,
            "response_fields": ["content", "tokens", "tokens_predicted", "stop", "stop_type"],
            **ready.bound.params,
        }
        if request.top_logprobs is not None:
            body["n_probs"] = max(1, request.top_logprobs)
        return body

    async def _call(self, ready: Ready, tools: Tools, slot: int, sink: Sink) -> None:
        """Have the model answer or call tools in Penstock's own form."""
        assert tools.form is not None
        answer, ends_thought = self._reasoning.text_so_far(ready.request), ""
        _, splitter = self._reasoning.split(ready.request, ready.prompt_ids, sink)
        if splitter is not None:
            answer, ends_thought = splitter.answer_in(answer), splitter.ends_thought
        calls = CallSink(sink, tools.form, answer)
        lark = tools.form.lark(ends_thought=ends_thought, is_open=calls.parser.is_open)
        if tools.spells:
            lark = with_free_spelling(lark)
        sink, _ = self._reasoning.split(ready.request, ready.prompt_ids, calls)
        await self._generate(replace(ready, bound=Bound(grammar=lark)), slot, sink)

    async def _converse(self, ready: Ready, slot: int, sink: Sink) -> None:
        """Have the model answer or call tools in the form of its chat template."""
        request = ready.request
        reader = ChatReader(sink, parallel_calls=request.parallel_calls)
        body = conversation_body(request, self._context_length)
        body["id_slot"] = slot
        body["max_tokens"] = min(request.max_tokens, self._context_length - len(ready.token_ids))
        path = "/v1/chat/completions"
        http = await self._client.open(path, msgspec.json.encode(body), reader.feed)
        try:
            await asyncio.wait((http.done, reader.is_over), return_when=asyncio.FIRST_COMPLETED)
            reader.end(200 if reader.is_over.done() else http.done.result())
        except RefusedByEngineError:
            if not request.generated:
                raise
            # Some templates of llama.cpp's cannot continue a turn.
            sink.fail("engine_died", CANNOT_CONTINUE)
        finally:
            await self._client.stop(http)
