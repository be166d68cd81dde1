"""The llama.cpp engine, embedded through xllamacpp: any GGUF, continuous batching, on a laptop.

xllamacpp starts llama.cpp's own server inside this process (`loading`). The server listens not on
TCP but on a Unix socket in a private directory. A request's prompt is made here (`prompts`), what
binds its answer is compiled (`binder`), and then llama.cpp generates the answer (`generation`).
Requests wait here, in order, and llama.cpp never has more than `slots`.

Formats: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import msgspec

from penstock.engine.control import ControlTokens
from penstock.engine.grammar import NOT_COMPILED
from penstock.engine.llamacpp.answers import RefusedByEngineError
from penstock.engine.llamacpp.binder import COMPILE_LIMITS, Binder
from penstock.engine.llamacpp.bonds import (
    LEFT_OUT_BUDGET,
    Bound,
    UnboundError,
    has_useless_budget,
    refusal_of_fields,
)
from penstock.engine.llamacpp.gaps import NO_GAPS
from penstock.engine.llamacpp.generation import Generation, Ready
from penstock.engine.llamacpp.gguf import architecture
from penstock.engine.llamacpp.http import MAIN_LOOP, LlamaClient
from penstock.engine.llamacpp.loading import Wanted, load
from penstock.engine.llamacpp.params import chat_body
from penstock.engine.llamacpp.prompts import Prompts, control_tokens_of, lengths_of
from penstock.engine.llamacpp.props import Models, Props
from penstock.engine.llamacpp.reasoning import Reasoning
from penstock.engine.llamacpp.renderer import Renderer
from penstock.engine.llamacpp.rendering import TOO_COSTLY, TemplateTooCostlyError, template_of
from penstock.engine.llamacpp.slot_caches import SlotCaches
from penstock.engine.llamacpp.vocabulary import Vocabulary
from penstock.engine.process.bounded import BoundedFunction, JobLostError
from penstock.engine.protocol import EngineFinish, ModelFacts, ModelInfo, Sink
from penstock.engine.reasoning import FilterSink, marks_in
from penstock.engine.tasks import PromptTooLongError, TaskEngine, refusal, too_many_turns
from penstock.engine.turns import REFUSED, Messages, TemplateRefusedError
from penstock.folders import own_folder
from penstock.request import Request


class _Prompt(msgspec.Struct):
    prompt: str


class LlamaCpp(TaskEngine):
    """An engine that serves the GGUF file `model` as `name`, with `slots` requests at once.

    Each slot has a context of `context` tokens, rounded up to a multiple of 256. 0 means the
    largest context that fits the memory, up to the model's own (see `memory.py`). On a GPU,
    llama.cpp measures the GPU's memory instead and leaves 1 GiB of it free. `processes` engines
    share this machine and its memory.

    Every other argument is a parameter of llama.cpp, by its name in xllamacpp's `CommonParams`
    (`n_ctx`, `n_batch`, `n_gpu_layers`, `cache_prompt`...) or in a part (`cpuparams.n_threads`).
    `n_ctx` is the total that the slots divide among themselves; it replaces `context`. `n_threads`
    defaults to one less than the cores: llama.cpp's threads wait for each other many times per
    token, so sharing one core with another process (the server, a browser) slows all of them down,
    at worst a hundredfold.
    """

    def __init__(
        self,
        *,
        model: str,
        name: str,
        slots: int,
        context: int = 0,
        processes: int = 1,
        **params: object,
    ) -> None:
        super().__init__(slots)
        self._model = model
        self._name = name
        self._wanted = Wanted(model, slots, context, processes, params)
        self._client = LlamaClient()
        self._compile_bond = BoundedFunction(
            "penstock.engine.llamacpp.bonds:make", COMPILE_LIMITS, model=model
        )
        self._dir = ""
        self._server: Any = None
        self._context_length = 0
        self._caches: SlotCaches  # these are set by `start`
        self._vocabulary: Vocabulary
        self._control: ControlTokens
        self._prompts: Prompts
        self._binder: Binder
        self._generation: Generation

    async def start(self) -> ModelInfo:
        """Load the model in a thread, which can take minutes. Raises StartError if it fails."""
        self._dir = str(own_folder())
        self._client.socket = f"{self._dir}/llama.sock"
        self._server, has_one_cache = await asyncio.to_thread(
            load, self._wanted, self._client.socket
        )
        props = msgspec.json.decode(await self._client.ask("/props"), type=Props)
        (model,) = msgspec.json.decode(await self._client.ask("/v1/models"), type=Models).data
        self._context_length = props.default_generation_settings.n_ctx
        self._caches = SlotCaches(props.total_slots)
        await self._prepare(props)
        fills_gaps = self._vocabulary.gap_tokens() is not None
        return ModelInfo(
            self._name,
            "llamacpp",
            self._context_length,
            props.total_slots,
            props.supports(fills_gaps=fills_gaps),
            model.meta.n_vocab,
            advice={} if fills_gaps else {"gap": NO_GAPS},
            sampling=props.sampling(),
            facts=ModelFacts(
                architecture(self._model),
                model.meta.n_params,
                model.meta.size,
                props.chat_template,
            ),
            cache_tokens=self._context_length * (1 if has_one_cache else props.total_slots),
        )

    async def _prepare(self, props: Props) -> None:
        """Prepare the steps of a request: its prompt, what binds its answer, and the generation."""
        self._vocabulary = await asyncio.to_thread(Vocabulary, self._model)
        self._control, token_names = await asyncio.to_thread(
            control_tokens_of, self._model, self._vocabulary
        )
        renderer = Renderer(template_of(props, self._vocabulary), self._render)
        await renderer.compare()
        lengths = await asyncio.to_thread(lengths_of, self._vocabulary)
        self._prompts = Prompts(
            self._vocabulary, self._control, renderer, lengths, self._context_length
        )
        await self._prompts.probe()
        self._binder = Binder(self._compile_bond, self._control, shows_tools=props.shows_tools)
        self._generation = Generation(
            self._client,
            self._vocabulary,
            Reasoning(marks_in(props.chat_template), self._vocabulary),
            self._context_length,
            token_names,
        )

    async def check(self, *, tries: bool) -> None:
        """Return once llama.cpp's main loop answers: between two steps, without a slot."""
        await self._client.ask_now(MAIN_LOOP)
        if tries:
            body = msgspec.json.encode({"prompt": [0], "n_predict": 1})
            await self._client.ask_now("/completion", body)

    async def stop(self) -> None:
        """Drop every request and remove the socket. The process ends right afterwards."""
        await super().stop()
        self._compile_bond.stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _run(self, request: Request, sink: Sink) -> None:
        try:
            ready = await self._accept(request, sink)
            if ready is None or not await self._start(ready.request, sink):
                return
            with self._caches.taken(request.id, ready.token_ids) as slot:
                leave = partial(self._caches.leave, request.id)
                await self._generation.answer(ready, slot, LeavingSink(sink, leave))
        except UnboundError as error:
            sink.fail(error.code, str(error))
        except JobLostError:
            sink.fail("engine_error", NOT_COMPILED)
        except PromptTooLongError as error:
            sink.fail("prompt_too_long", str(error))
        except TemplateRefusedError:
            sink.fail("template_refused", REFUSED)
        except TemplateTooCostlyError:
            sink.fail("template_refused", TOO_COSTLY)
        except RefusedByEngineError as error:
            sink.fail("engine_refused", f"llama.cpp refused the request: {error}")
        except (OSError, msgspec.DecodeError, httptools.HttpParserError) as error:
            sink.fail("engine_error", f"llama.cpp failed the request ({type(error).__name__}).")

    async def _accept(self, request: Request, sink: Sink) -> Ready | None:
        """Prepare the request and tell `sink` that it is accepted; None if it was refused."""
        tools = await self._binder.tools_of(request)
        refused = refusal_of_fields(request, tools)
        if refused := refused or too_many_turns(request, self._context_length):
            sink.fail(*refused)
            return None
        request, tools, prompt, notes = await self._prompts.show(request, tools)
        if has_useless_budget(request, tools):
            request = msgspec.structs.replace(request, thinking_budget=None)
            notes += (LEFT_OUT_BUDGET,)
        prompt_ids = request.prompt_ids or await self._prompts.ids_of(
            prompt, add_special=request.add_special_tokens
        )
        if refused := refusal(request, len(prompt_ids), self._context_length):
            sink.fail(*refused)
            return None
        bound = Bound() if tools is not None else await self._binder.bound_of(request)
        sink.accepted(prompt_ids, notes + (bound.notes if tools is None else tools.notes))
        if request.show_prompt:
            shown = prompt if request.messages is not None else list(prompt_ids)
            sink.delta(await self._prompts.text_of(shown), 0, ())
        token_ids = [*prompt_ids, *self._vocabulary.ids_of_generated(request.generated)]
        return Ready(request, prompt_ids, token_ids, tools, bound)

    async def _render(self, request: Request, messages: Messages) -> str:
        """Have llama.cpp render the prompt that the request has with these messages."""
        body = chat_body(msgspec.structs.replace(request, messages=messages))
        try:
            answer = await self._client.ask("/apply-template", msgspec.json.encode(body))
        except RefusedByEngineError:
            raise TemplateRefusedError from None
        return msgspec.json.decode(answer, type=_Prompt).prompt


class LeavingSink(FilterSink):
    """A sink that calls `leave` when its answer ends, before it passes the end on.

    The client may continue the conversation at once, and its next prompt needs the same slot for
    the cache. The slot must be free then, although llama.cpp still closes the connection.
    """

    def __init__(self, sink: Sink, leave: Callable[[], None]) -> None:
        super().__init__(sink)
        self._leave = leave
        self.delta = sink.delta
        self.fail = self._fail

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Leave the slot, then pass on the end."""
        self._leave()
        self._sink.finish(reason, completion_tokens)

    def _fail(self, code: str, message: str) -> None:
        self._leave()
        self._sink.fail(code, message)
