"""The llama.cpp engine, embedded through xllamacpp: any GGUF, continuous batching, on a laptop.

xllamacpp starts llama.cpp's own server inside this process. The server listens not on TCP but on a
Unix socket in a private directory. Requests go to its `/completion`, the only route that returns
token ids; requests with tools go to `/v1/chat/completions`, the only route that finds tool calls in
the text. Requests wait here, in order, and llama.cpp never has more than `slots`.

Formats: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

import asyncio
import json
import shutil
from collections.abc import Callable
from itertools import groupby
from typing import Any

import httptools
import msgspec

from penstock.engine.compiled import TooComplexError
from penstock.engine.control import ControlTokens, broken_tools
from penstock.engine.grammar import (
    CANNOT_CONTINUE,
    NOT_COMPILED,
    bound_text,
    has_pattern,
)
from penstock.engine.lark import has_regex, with_free_spelling
from penstock.engine.llamacpp.answers import (
    ChatReader,
    CompletionReader,
    RefusedByEngineError,
)
from penstock.engine.llamacpp.bonds import (
    LEFT_OUT_BUDGET,
    Bond,
    Bound,
    Outcome,
    Refused,
    Tools,
    has_useless_budget,
    refusal_of_fields,
)
from penstock.engine.llamacpp.gaps import NO_GAPS, prompt_with_gap
from penstock.engine.llamacpp.gguf import architecture, context_length
from penstock.engine.llamacpp.http import MAIN_LOOP, MAX_ASKING, LlamaClient
from penstock.engine.llamacpp.hub import size_of
from penstock.engine.llamacpp.memory import available_memory, memory_to_leave
from penstock.engine.llamacpp.params import (
    completion_body,
    num_usable_cores,
    sampling_params,
    set_param,
)
from penstock.engine.llamacpp.prompts import Prompts, control_tokens_of, lengths_of
from penstock.engine.llamacpp.props import Models, Props
from penstock.engine.llamacpp.renderer import Renderer
from penstock.engine.llamacpp.rendering import (
    TOO_COSTLY,
    ChatTemplate,
    TemplateTooCostlyError,
)
from penstock.engine.llamacpp.slot_caches import SlotCaches
from penstock.engine.llamacpp.steps import Steps, needs_steps
from penstock.engine.llamacpp.vocabulary import GapTokens, Prompt, Vocabulary
from penstock.engine.process.bounded import BeyondBoundsError, BoundedFunction, JobLostError
from penstock.engine.process.forks import Limits
from penstock.engine.protocol import ModelFacts, ModelInfo, Sink
from penstock.engine.reasoning import (
    SplitSink,
    Splitter,
    begun_answer,
    marks_in,
    num_last_tokens,
)
from penstock.engine.tasks import PromptTooLongError, TaskEngine, refusal, too_many_turns
from penstock.engine.tools import CallSink, with_instructions
from penstock.engine.turns import (
    REFUSED,
    Messages,
    TemplateRefusedError,
    turn,
    with_begun_turn,
)
from penstock.errors import StartError
from penstock.folders import own_folder
from penstock.request import Message, Request, UnnamedTokens

NUM_PROBES = 1  # at once
# Errors only: the supervisor reads them to explain a death. More would be ten lines per request.
LOG_ERRORS = 1
COMPILE_LIMITS = Limits(cpu_s=1.0, memory_bytes=192 * 2**20, wall_s=10.0)
CONTROL_TOKENS = "messages (control tokens)"
"""The note on a conversation with tools whose texts of control tokens were broken."""
# A conversation that every template shows.
PROBE = (Message("user", "Hello"),)

_encode = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


class _Prompt(msgspec.Struct):
    prompt: str


class LlamaCpp(LlamaClient, TaskEngine):
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
        LlamaClient.__init__(self)
        TaskEngine.__init__(self, slots)
        self._context = context
        self._num_processes = processes
        self._model = model
        self._name = name
        self._num_slots = slots
        self._params = params
        self._context_length = 0
        self._marks: tuple[str, str] | None = None
        self._vocabulary: Vocabulary  # these are set by `start`
        self._caches: SlotCaches
        self._gap_tokens: GapTokens | None
        self._control: ControlTokens
        self._prompts: Prompts
        self._token_names: dict[int, str] = {}
        """The texts of tokens that llama.cpp reports without text."""
        self._shows_tools = False
        self._dir = ""
        self._server: Any = None
        self._binder = BoundedFunction(
            "penstock.engine.llamacpp.bonds:make", COMPILE_LIMITS, model=model
        )

    @property
    def _socket(self) -> str:
        return f"{self._dir}/llama.sock"

    async def start(self) -> ModelInfo:
        """Load the model in a thread, which can take minutes. Raises StartError if it fails."""
        self._dir = str(own_folder())
        self._server = await asyncio.to_thread(self._load)
        props = msgspec.json.decode(await self._ask("/props"), type=Props)
        (model,) = msgspec.json.decode(await self._ask("/v1/models"), type=Models).data
        self._context_length = props.default_generation_settings.n_ctx
        self._caches = SlotCaches(props.total_slots)
        self._marks = marks_in(props.chat_template)
        self._shows_tools = props.shows_tools
        self._vocabulary = await asyncio.to_thread(Vocabulary, self._model)
        self._gap_tokens = self._vocabulary.gap_tokens()
        fills_gaps = self._gap_tokens is not None
        self._control, self._token_names = await asyncio.to_thread(
            control_tokens_of, self._model, self._vocabulary
        )
        await self._start_prompts(props)
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
        )

    async def _start_prompts(self, props: Props) -> None:
        """Prepare the rendering and tokenising of prompts."""
        renderer = Renderer(template_of(props, self._vocabulary), self._render)
        await renderer.compare()
        lengths = await asyncio.to_thread(lengths_of, self._vocabulary)
        self._prompts = Prompts(
            self._vocabulary, self._control, renderer, lengths, self._context_length
        )
        await self._prompts.probe()

    def _load(self) -> object:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = self._model
        params.n_parallel = self._num_slots
        self._set_context(params)
        params.cpuparams.n_threads = max(1, num_usable_cores() - 1)
        params.n_threads_http = self._num_slots + MAX_ASKING + NUM_PROBES
        params.cache_ram_mib = 0  # otherwise llama.cpp caches the states of idle slots, up to 8 GiB
        params.ui = False
        params.verbosity = LOG_ERRORS
        params.sse_ping_interval = -1
        for name, value in self._params.items():
            set_param(params, name, value)
        # No parameter may change these: the socket stays private, the answer complete.
        params.hostnames = [self._socket]
        params.endpoint_slots = True
        params.ctx_shift = False
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            # The reason is only on standard error, which the supervisor reads.
            raise StartError(
                "llama.cpp could not load the model.",
                "Is the GGUF file complete, and is there enough memory for it?",
            ) from error

    def _set_context(self, params: Any) -> None:
        """Set the context of each slot. Raises StartError if it is larger than the model's own."""
        import xllamacpp

        if "n_ctx" in self._params:
            return
        if self._context:
            own = context_length(self._model)
            if own and self._context > own:
                raise StartError(
                    f"--context {self._context} is larger than the model's own context, {own}"
                    " tokens.",
                    f"Give at most {own}, or 0 for the largest context that fits the memory.",
                )
            set_param(params, "n_ctx", self._context * self._num_slots)
            return
        params.n_ctx = 0  # llama.cpp chooses
        devices = xllamacpp.get_device_info()
        if any(each["type"].name.endswith("GPU") for each in devices):
            return
        total = max(each["memory_total"] for each in devices)
        leave = memory_to_leave(
            total, available_memory(total), size_of(self._model), self._num_processes
        )
        params.fit_params_target = [leave] * len(params.fit_params_target)

    async def check(self, *, tries: bool) -> None:
        """Return once llama.cpp's main loop answers: between two steps, without a slot."""
        await self._ask_now(MAIN_LOOP)
        if tries:
            await self._ask_now("/completion", msgspec.json.encode({"prompt": [0], "n_predict": 1}))

    async def stop(self) -> None:
        """Drop every request and remove the socket. The process ends right afterwards."""
        await super().stop()
        self._binder.stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _run(self, request: Request, sink: Sink) -> None:
        try:
            spells = self._spells_control_tokens(request)
            tools = await self._tools_of(request, spells)
            refused = refusal_of_fields(request, tools)
            if refused := refused or too_many_turns(request, self._context_length):
                sink.fail(*refused)
                return
            request, tools = self._without_control_texts(request, tools)
            request, prompt, notes = await self._shown(request, tools)
            if has_useless_budget(request, tools):
                request = msgspec.structs.replace(request, thinking_budget=None)
                notes += (LEFT_OUT_BUDGET,)
            prompt_ids = request.prompt_ids or await self._prompts.ids_of(
                prompt, add_special=request.add_special_tokens
            )
            if refused := refusal(request, len(prompt_ids), self._context_length):
                sink.fail(*refused)
                return
            bound = Bound()
            if tools is None:
                bound = await self._bound_of(request, spells)
            else:
                notes += tools.notes
            sink.accepted(prompt_ids, notes + bound.notes)
            if request.show_prompt:
                shown = prompt if request.messages is not None else list(prompt_ids)
                sink.delta(await self._prompts.text_of(shown), 0, ())
            token_ids = [*prompt_ids, *self._vocabulary.ids_of_generated(request.generated)]
            if not await self._start(request, sink):
                return
            with self._caches.taken(request.id, token_ids):
                await self._answer(request, prompt_ids, token_ids, tools, bound, sink)
        except _UnboundError as error:
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

    async def _answer(
        self,
        request: Request,
        prompt_ids: tuple[int, ...],
        token_ids: list[int],
        tools: Tools | None,
        bound: Bound,
        sink: Sink,
    ) -> None:
        """Generate the answer to a request that has a slot, in the way that it needs."""
        if tools is not None and tools.form is not None:
            await self._call(request, prompt_ids, token_ids, tools, sink)
        elif tools is not None:
            await self._converse(request, len(token_ids), sink)
        else:
            sink, splitter = self._split_sink(request, prompt_ids, sink)
            if needs_steps(request):
                num_thoughts = self._num_thoughts(request, prompt_ids, splitter)
                steps = Steps(sink, request, splitter, num_thoughts)
                await self._generate_in_steps(request, token_ids, bound, steps)
            else:
                await self._generate(request, token_ids, bound, sink)

    def _spells_control_tokens(self, request: Request) -> bool:
        """Return True if what binds the answer may contain the text of a control token."""
        text = bound_text(request)
        if not text or self._control.found_in(text):
            return bool(text)
        if request.tools is not None:
            return False
        is_regex = request.grammar is not None and has_regex(request.grammar)
        return is_regex or has_pattern(text)  # a pattern may match any text

    def _without_control_texts(
        self, request: Request, tools: "Tools | None"
    ) -> "tuple[Request, Tools | None]":
        """Break the texts of control tokens if llama.cpp itself renders the conversation.

        It does so for tools in the template's own form, and would make control tokens of them.
        """
        if tools is None or tools.form is not None:
            return request, tools
        assert tools.shown is not None
        sent, shown = msgspec.to_builtins(request.messages), json.loads(tools.shown)
        if not self._control.found_in([sent, shown]):
            return request, tools
        messages = msgspec.convert(self._control.break_in(sent), Messages)
        shown = json.dumps(broken_tools(shown, self._control), ensure_ascii=False)
        notes = (*tools.notes, CONTROL_TOKENS)
        tools = msgspec.structs.replace(tools, shown=shown, notes=notes)
        return msgspec.structs.replace(request, messages=messages), tools

    async def _tools_of(self, request: Request, spells: bool) -> Tools | None:
        """Return how the request's tools are shown and called, None without tools."""
        if request.tools is None:
            return None
        outcome = await self._bind(request, spells)
        assert isinstance(outcome, Tools)
        return outcome

    async def _bound_of(self, request: Request, spells: bool) -> Bound:
        """Return what binds the answer to a request without tools."""
        if request.json_schema is None and request.grammar is None:
            return Bound()
        outcome = await self._bind(request, spells)
        assert isinstance(outcome, Bound)
        return outcome

    async def _bind(self, request: Request, spells: bool) -> Bound | Tools:
        """Compile what binds the answer, in a process with limits. Raises _UnboundError."""
        bond = Bond.of(request, spells=spells, shows_tools=self._shows_tools)
        try:
            result = await self._binder(_encode(bond))
        except BeyondBoundsError:
            refused = Refused.because(bond.is_about, TooComplexError())
            raise _UnboundError(refused) from None
        outcome: Outcome = _decode_outcome(result)
        if isinstance(outcome, Refused):
            raise _UnboundError(outcome)
        return outcome

    async def _shown(
        self, request: Request, tools: "Tools | None"
    ) -> tuple[Request, Prompt, tuple[str, ...]]:
        """Return the request with messages that the template shows, its prompt, and notes."""
        starts_from_ids = tools is None or tools.form is not None
        if request.gap is not None:
            assert self._gap_tokens is not None
            return request, prompt_with_gap(self._gap_tokens, request.prompt or "", request.gap), ()
        if request.messages is None or (request.prompt_ids is not None and starts_from_ids):
            return request, [request.prompt or ""], ()
        messages = request.messages
        if tools is not None:
            if tools.shown is None and request.tools is not None:
                messages = with_instructions(
                    messages, request.tools, must_call=request.tool_call_required
                )
            request = msgspec.structs.replace(request, tools=tools.shown)
        try:
            messages, prompt, notes = await self._prompts.show(request, messages)
        except TemplateRefusedError:
            if request.tools is None:
                raise
            try:
                await self._prompts.render(request, PROBE)
            except TemplateRefusedError:
                why = "the model's chat template does not support them"
                raise _UnboundError(Refused("tools", why)) from None
            raise
        return msgspec.structs.replace(request, messages=messages), prompt, notes

    async def _render(self, request: Request, messages: Messages) -> str:
        """Have llama.cpp render the prompt that the request has with these messages."""
        body = chat_body(msgspec.structs.replace(request, messages=messages))
        try:
            answer = await self._ask("/apply-template", msgspec.json.encode(body))
        except RefusedByEngineError:
            raise TemplateRefusedError from None
        return msgspec.json.decode(answer, type=_Prompt).prompt

    async def _generate(
        self, request: Request, token_ids: list[int], bound: "Bound", sink: Sink
    ) -> None:
        room = self._context_length - len(token_ids)
        if room <= 0:  # the engine died between the last token and the end
            sink.finish("length", 0)
            return
        recognise = await _recogniser_of(bound)
        reader = CompletionReader(sink, request.top_logprobs or 0, recognise, self._token_names)
        body = self._completion_body(request, token_ids, bound)
        body["n_predict"] = min(request.max_tokens, room)
        http = await self._open("/completion", msgspec.json.encode(body), reader.feed)
        try:
            status = await http.done
            # The answer has ended for its client, whose next prompt may continue this one.
            self._caches.leave(request.id)
        finally:
            await self._stop(http)
        reader.end(status)

    async def _generate_in_steps(
        self, request: Request, token_ids: list[int], bound: "Bound", steps: Steps
    ) -> None:
        """Generate an answer in several requests to llama.cpp (see `steps`)."""
        while not steps.has_ended:
            room = min(self._context_length - len(token_ids), request.max_tokens - steps.num_tokens)
            if room <= 0:
                steps.begin(is_partial=False)
                steps.finish("length", steps.num_tokens)
                return
            if steps.must_end_thoughts:
                assert self._marks is not None
                ids = self._vocabulary.ids_of(self._marks[1])
                steps.push(self._marks[1], len(ids), tuple(ids))
            else:
                await self._step(request, token_ids, bound, room, steps)
            token_ids += self._vocabulary.ids_of_generated(steps.take())

    async def _step(
        self, request: Request, token_ids: list[int], bound: "Bound", room: int, steps: Steps
    ) -> None:
        """Generate one step of an answer, `room` tokens at most."""
        recognise = await _recogniser_of(bound)
        reader = CompletionReader(steps, request.top_logprobs or 0, recognise, self._token_names)
        body = self._completion_body(request, token_ids, bound)
        body["n_predict"] = room
        num_unstoppable = steps.num_unstoppable
        if num_unstoppable:
            body["n_predict"] = min(room, num_unstoppable)
            body["ignore_eos"] = True
            impossible = [(each, False) for each in request.stop_token_ids]
            body["logit_bias"] = [*request.sampling.logit_bias, *impossible]
        steps.begin(is_partial=0 < num_unstoppable < room)
        http = await self._open("/completion", msgspec.json.encode(body), reader.feed)
        try:
            await asyncio.wait((http.done, steps.step_over), return_when=asyncio.FIRST_COMPLETED)
            if not steps.step_over.done():
                reader.end(http.done.result())
            if steps.has_ended:
                self._caches.leave(request.id)
        finally:
            await self._stop(http)

    def _completion_body(
        self, request: Request, token_ids: list[int], bound: "Bound"
    ) -> dict[str, Any]:
        """Return the fields of a request to `/completion`, without the number of tokens."""
        marks = self._marks if request.separate_reasoning else None
        body = {
            **completion_body(request, token_ids, self._context_length, marks),
            "id_slot": self._caches.slot_of(request.id),
            "response_fields": ["content", "tokens", "tokens_predicted", "stop", "stop_type"],
            **bound.params,
        }
        if request.top_logprobs is not None:
            body["n_probs"] = max(1, request.top_logprobs)
        return body

    def _split_sink(
        self, request: Request, prompt_ids: tuple[int, ...], sink: Sink
    ) -> tuple[Sink, Splitter | None]:
        """Return a sink that separates the reasoning, if the request asks and the model reasons."""
        if self._marks is None or not request.separate_reasoning:
            return sink, None
        text = self._generated_text(request)
        splitter = self._splitter(self._marks, request, prompt_ids, text)
        return SplitSink(sink, splitter), splitter

    def _generated_text(self, request: Request) -> str:
        """Return the text of a continued answer so far."""
        text = ""
        for is_text, run in groupby(request.generated, lambda each: not isinstance(each, int)):
            if is_text:
                text += "".join(each.text for each in run if isinstance(each, UnnamedTokens))
            else:
                text += self._vocabulary.text_of(each for each in run if isinstance(each, int))
        return text

    def _splitter(
        self,
        marks: tuple[str, str],
        request: Request,
        prompt_ids: tuple[int, ...],
        generated: str = "",
    ) -> Splitter:
        """Return the splitter for what follows the prompt and the text `generated` so far."""
        begun = begun_answer(request.messages)
        end = self._vocabulary.text_of(prompt_ids[-num_last_tokens(begun) :])
        return Splitter.after(marks, end, generated, begun)

    def _num_thoughts(
        self, request: Request, prompt_ids: tuple[int, ...], splitter: Splitter | None
    ) -> int:
        """Return how many tokens of reasoning a continued answer already has, if it still reasons.

        Reasoning comes first, perhaps after the mark that opens it.
        """
        if splitter is None or not splitter.is_thinking or not request.generated:
            return 0
        assert self._marks is not None
        num_tokens = sum(
            each.num_tokens if isinstance(each, UnnamedTokens) else 1 for each in request.generated
        )
        if not self._splitter(self._marks, request, prompt_ids).is_thinking:
            num_tokens -= len(self._vocabulary.ids_of(self._marks[0]))
        return max(0, num_tokens)

    async def _call(
        self,
        request: Request,
        prompt_ids: tuple[int, ...],
        token_ids: list[int],
        tools: "Tools",
        sink: Sink,
    ) -> None:
        """Have the model answer or call tools in Penstock's own form."""
        answer = self._generated_text(request)
        ends_thought = ""
        if self._marks is not None and request.separate_reasoning:
            _, splitter = self._split_sink(request, prompt_ids, sink)
            if splitter is not None and splitter.is_thinking:
                answer, ends_thought = "", self._marks[1]
            else:
                answer = answer.rpartition(self._marks[1])[2]
        assert tools.form is not None
        calls = CallSink(sink, tools.form, answer)
        lark = tools.form.lark(ends_thought=ends_thought, is_open=calls.parser.is_open)
        if tools.spells:
            lark = with_free_spelling(lark)
        sink, _ = self._split_sink(request, prompt_ids, calls)
        await self._generate(request, token_ids, Bound(grammar=lark), sink)

    async def _converse(self, request: Request, prompt_tokens: int, sink: Sink) -> None:
        """Have the model answer or call tools in the form of its chat template.

        llama.cpp starts from the conversation, not from token ids. It continues an answer that
        stands as the conversation's last turn.
        """
        if request.generated:
            request = with_generated_turn(request)
        reader = ChatReader(sink, parallel_calls=request.parallel_calls)
        room = self._context_length - prompt_tokens
        body = {
            **chat_body(request),
            "id_slot": self._caches.slot_of(request.id),
            "max_tokens": min(request.max_tokens, room),
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "return_progress": True,
            "reasoning_format": "deepseek" if request.separate_reasoning else "none",
            "cache_prompt": request.use_cache,
            "ignore_eos": request.ignore_eos,
            **sampling_params(request.sampling, self._context_length),
        }
        if request.thinking_budget is not None:
            body["thinking_budget_tokens"] = request.thinking_budget
        http = await self._open("/v1/chat/completions", msgspec.json.encode(body), reader.feed)
        try:
            await asyncio.wait((http.done, reader.is_over), return_when=asyncio.FIRST_COMPLETED)
            self._caches.leave(request.id)
            reader.end(200 if reader.is_over.done() else http.done.result())
        except RefusedByEngineError:
            if not request.generated:
                raise
            # Some templates of llama.cpp's cannot continue a turn.
            sink.fail("engine_died", CANNOT_CONTINUE)
        finally:
            await self._stop(http)


def template_of(props: Props, vocabulary: Vocabulary) -> ChatTemplate | None:
    """Return the model's chat template, None if only llama.cpp can read it."""
    try:
        return ChatTemplate(
            props.chat_template,
            props.chat_template_caps,
            begin=props.bos_token,
            end=props.eos_token,
            drops_begin=vocabulary.adds_begin,
        )
    except TemplateRefusedError:
        return None


def chat_body(request: Request) -> dict[str, Any]:
    """Return the fields that llama.cpp needs to render and to answer a conversation."""
    turns = [turn(each, reasoning_as="reasoning_content") for each in request.messages or ()]
    body: dict[str, Any] = {"messages": turns}
    if request.tools is not None:
        body["tools"] = msgspec.Raw(request.tools.encode())
        body["parallel_tool_calls"] = request.parallel_calls
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if request.template_kwargs is not None:
        body["chat_template_kwargs"] = msgspec.Raw(request.template_kwargs.encode())
    if request.continue_last_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif not request.open_answer:
        body["add_generation_prompt"] = False
    return body


def with_generated_turn(request: Request) -> Request:
    """Return the request with what was generated so far as the conversation's last turn."""
    unnamed = [each for each in request.generated if isinstance(each, UnnamedTokens)]
    messages = with_begun_turn(
        request.messages or (),
        "".join(each.text for each in unnamed if not each.is_reasoning),
        "".join(each.text for each in unnamed if each.is_reasoning),
        continues=request.continue_last_message,
    )
    return msgspec.structs.replace(request, messages=messages, continue_last_message=True)


async def _recogniser_of(bound: Bound) -> Callable[[str], bool] | None:
    """Return a function that recognises a whole answer, None if any text is whole."""
    return (
        await asyncio.to_thread(bound.recogniser)
        if bound.language == "lark"
        else bound.recogniser()
    )


class _UnboundError(Exception):
    """llama.cpp cannot bind an answer as the request asks; the message says why."""

    def __init__(self, refused: Refused) -> None:
        cannot = {"tools": "use these tools"}.get(
            refused.is_about, f"enforce this {refused.is_about}"
        )
        super().__init__(f"llama.cpp cannot {cannot}: {refused.why}.")
        self.code = (
            "schema_too_complex" if refused.is_too_complex else f"invalid_{refused.is_about}"
        )
