"""llama.cpp, embedded through xllamacpp: any GGUF, continuous batching, on a laptop.

xllamacpp starts llama.cpp's own server inside this process; we keep it off TCP, on a Unix socket
in a directory of our own, and speak its `/completion` there, because that route alone gives each
token's id; and for requests with tools `/v1/chat/completions`, because that alone finds calls in
the text. Requests are queued here, in order, and never more than `slots` are given to llama.cpp.

Formats: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

import asyncio
import difflib
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import groupby
from typing import Any, cast

import httptools
import msgspec

from penstock.engine.grammar import InvalidSchemaError, check_tools, compact_schema
from penstock.engine.llamacpp.answers import (
    ChatReader,
    CompletionReader,
    RefusedByEngineError,
    refusal_in,
)
from penstock.engine.protocol import Feature, ModelInfo, Sink
from penstock.engine.reasoning import (
    NUM_LAST_TOKENS,
    SplitSink,
    Splitter,
    marks_in,
    reasoning_features,
)
from penstock.engine.tasks import TaskEngine, refusal
from penstock.engine.turns import turn
from penstock.errors import StartError
from penstock.request import Request, Sampling, UnnamedTokens

DEFAULT_CONTEXT = 4096
SPARE_HTTP_THREADS = 4
BACKLOG_PAUSE_S = 0.01
# The server reads what llama.cpp logs, to know what it may die of; the rest is ten lines a request.
LOG_ERRORS = 1
# llama.cpp reads this one as "draw a seed".
RANDOM_SEED = 0xFFFFFFFF
SUPPORTS: tuple[Feature, ...] = (
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "json_schema",
)


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Content(msgspec.Struct):
    content: str


class _Prompt(msgspec.Struct):
    prompt: str


class _Props(msgspec.Struct):
    class Generation(msgspec.Struct):
        n_ctx: int

    class Caps(msgspec.Struct):
        supports_tools: bool = False
        supports_tool_calls: bool = False
        supports_reasoning_effort: bool = False

    default_generation_settings: Generation
    total_slots: int
    chat_template: str = ""
    chat_template_caps: Caps = msgspec.field(default_factory=Caps)

    def supports(self) -> tuple[Feature, ...]:
        """What the model's template makes possible."""
        caps = self.chat_template_caps
        tools: tuple[Feature, ...] = ("tools",)
        has_tools = caps.supports_tools and caps.supports_tool_calls
        effort = reasoning_features(self.chat_template, has_effort=caps.supports_reasoning_effort)
        return SUPPORTS + (tools if has_tools else ()) + effort


class _Models(msgspec.Struct):
    class Model(msgspec.Struct):
        class Meta(msgspec.Struct):
            n_vocab: int

        meta: Meta

    data: list[Model]


class HttpCall(asyncio.Protocol):
    """One HTTP request on a connection of its own, and its answer as it comes.

    `on_body` is given the body's bytes, cut anywhere. `done` is resolved with the status at the
    answer's end, or with ConnectionError where there was none. `abort` drops the connection, which
    makes llama.cpp drop the request.
    """

    def __init__(self, path: str, body: bytes | None, on_body: Callable[[bytes], None]) -> None:
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: engine\r\n"
            f"Connection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body or b'')}\r\n\r\n"
        )
        self._request = head.encode() + (body or b"")
        self.on_body = on_body  # the parser looks it up as it is made
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("llama.cpp closed the connection"))

    def abort(self) -> None:
        """Drop the connection; `done` is cancelled."""
        self.done.cancel()
        if self._transport is not None:
            self._transport.abort()


class LlamaCpp(TaskEngine):
    """Serves the GGUF at `model` under the name `name`, `slots` requests at once.

    Everything else is a parameter of llama.cpp by the name that xllamacpp's `CommonParams` gives
    it (`n_ctx`, `n_batch`, `n_gpu_layers`, `cache_prompt`...) or its parts (`cpuparams.n_threads`).
    `n_ctx` is, as there, the total that the slots share; by default each slot has the model's own
    context, 4,096 tokens at most. `n_threads` is one less than the cores by default: llama.cpp's
    threads wait for each other many times a token, so a core that it shares with anything else
    (the server, a browser) slows all of them down, at worst a hundredfold.
    """

    def __init__(self, *, model: str, name: str, slots: int, **params: object) -> None:
        super().__init__(slots)
        self._model = model
        self._name = name
        self._num_slots = slots
        self._params = params
        self._context_length = 0
        self._marks: tuple[str, str] | None = None
        self._dir = ""
        self._server: Any = None

    @property
    def _socket(self) -> str:
        return f"{self._dir}/llama.sock"

    async def start(self) -> ModelInfo:
        """Load the model, in a thread of its own: it can take minutes."""
        self._dir = tempfile.mkdtemp(prefix="penstock-")
        self._server = await asyncio.to_thread(self._load)
        props = msgspec.json.decode(await self._ask("/props"), type=_Props)
        self._context_length = props.default_generation_settings.n_ctx
        self._marks = marks_in(props.chat_template)
        (model,) = msgspec.json.decode(await self._ask("/v1/models"), type=_Models).data
        return ModelInfo(
            self._name,
            "llamacpp",
            self._context_length,
            props.total_slots,
            props.supports(),
            model.meta.n_vocab,
        )

    def _load(self) -> object:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = self._model
        params.n_parallel = self._num_slots
        params.n_ctx = DEFAULT_CONTEXT * self._num_slots
        params.cpuparams.n_threads = max(1, num_usable_cores() - 1)
        params.n_threads_http = self._num_slots + SPARE_HTTP_THREADS
        params.cache_ram_mib = 0  # else the states of idle slots grow up to 8 GiB
        params.ui = False
        params.verbosity = LOG_ERRORS
        params.sse_ping_interval = -1
        for name, value in self._params.items():
            set_param(params, name, value)
        # Ours, whatever was asked for: the socket stays private, the answer whole.
        params.hostnames = [self._socket]
        params.ctx_shift = False
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            # The reason stands only on the standard error, which the server reads.
            raise StartError(
                "llama.cpp could not load the model.",
                "Is it a whole GGUF file, and is there enough memory for it?",
            ) from error

    async def stop(self) -> None:
        """Drop every request and remove the socket. The process ends right after this."""
        await super().stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _run(self, request: Request, sink: Sink) -> None:
        try:
            if request.tools is not None:
                await asyncio.to_thread(check_request_tools, request.tools)
            prompt_ids = request.prompt_ids or tuple(await self._tokenise(request))
            if refused := refusal(request, len(prompt_ids), self._context_length):
                sink.fail(*refused)
                return
            schema = None
            if request.json_schema is not None:
                schema = await asyncio.to_thread(compact_schema, request.json_schema)
            sink.accepted(prompt_ids)
            token_ids = [*prompt_ids, *await self._ids_of(request.generated)]
            if not await self._start(request.id, sink):
                return
            if request.tools is not None:
                await self._converse(request, len(token_ids), sink)
            else:
                sink = await self._splitting(request, prompt_ids, sink)
                await self._generate(request, token_ids, schema, sink)
        except InvalidSchemaError as error:
            sink.fail("invalid_schema", f"llama.cpp cannot keep to this schema: {error}.")
        except _ToolsRefusedError as error:
            sink.fail("invalid_tools", f"llama.cpp cannot take these tools: {error}.")
        except RefusedByEngineError as error:
            sink.fail("engine_refused", f"llama.cpp refused the request: {error}")
        except (OSError, msgspec.DecodeError, httptools.HttpParserError) as error:
            sink.fail("engine_error", f"llama.cpp gave up on the request ({type(error).__name__}).")

    async def _tokenise(self, request: Request) -> list[int]:
        prompt = request.prompt
        if request.messages is not None:
            body = msgspec.json.encode(chat_body(request))
            try:
                answer = await self._ask("/apply-template", body)
            except RefusedByEngineError:
                if request.tools is None:
                    raise
                raise _ToolsRefusedError(
                    "the model's template does not, or not these turns"
                ) from None
            prompt = msgspec.json.decode(answer, type=_Prompt).prompt
        return await self._ids_of_text(prompt or "", add_special=True)

    async def _ids_of_text(self, text: str, *, add_special: bool) -> list[int]:
        body = msgspec.json.encode({"content": text, "add_special": add_special})
        return msgspec.json.decode(await self._ask("/tokenize", body), type=_Tokens).tokens

    async def _text_of(self, ids: list[int]) -> str:
        body = msgspec.json.encode({"tokens": ids})
        return msgspec.json.decode(await self._ask("/detokenize", body), type=_Content).content

    async def _ids_of(self, generated: tuple[int | UnnamedTokens, ...]) -> list[int]:
        ids: list[int] = []
        for each in generated:
            if isinstance(each, int):
                ids.append(each)
            else:
                # Some tokenizers put a space before any text; the last ones are the text's own.
                found = await self._ids_of_text(each.text, add_special=False)
                ids += found[-each.num_tokens :]
        return ids

    async def _generate(
        self, request: Request, token_ids: list[int], schema: str | None, sink: Sink
    ) -> None:
        room = self._context_length - len(token_ids)
        if room <= 0:  # the engine died between the last token and the end
            sink.finish("length", 0)
            return
        reader = CompletionReader(sink, request.top_logprobs or 0, schema is not None)
        body = {
            "prompt": token_ids,
            "n_predict": min(request.max_tokens, room),
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "response_fields": ["content", "tokens", "tokens_predicted", "stop", "stop_type"],
            **sampling_params(request.sampling, self._context_length),
        }
        if request.top_logprobs is not None:
            body["n_probs"] = max(1, request.top_logprobs)
        if self._marks is not None and request.separate_reasoning:
            body["preserved_tokens"] = self._marks  # they may be tokens that are not text
        if schema is not None:
            body["json_schema"] = msgspec.Raw(schema.encode())
        call = await self._call("/completion", msgspec.json.encode(body), reader.feed)
        try:
            status = await call.done
        finally:
            call.abort()
        reader.end(status)

    async def _splitting(self, request: Request, prompt_ids: tuple[int, ...], sink: Sink) -> Sink:
        """The sink that tells reasoning apart, where that is asked for and the model has some."""
        if self._marks is None or not request.separate_reasoning:
            return sink
        end = await self._text_of(list(prompt_ids[-NUM_LAST_TOKENS:]))
        said = ""
        for is_text, run in groupby(request.generated, lambda each: not isinstance(each, int)):
            if is_text:
                said += "".join(each.text for each in run if isinstance(each, UnnamedTokens))
            else:
                said += await self._text_of([each for each in run if isinstance(each, int)])
        return SplitSink(sink, Splitter.after(self._marks, end, said))

    async def _converse(self, request: Request, prompt_tokens: int, sink: Sink) -> None:
        """Have the model answer or call, from the conversation: not from token ids, so that there
        is no going on from the middle."""
        reader = ChatReader(sink, parallel_calls=request.parallel_calls)
        room = self._context_length - prompt_tokens
        body = {
            **chat_body(request),
            "max_tokens": min(request.max_tokens, room),
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "return_progress": True,
            "reasoning_format": "deepseek" if request.separate_reasoning else "none",
            **sampling_params(request.sampling, self._context_length),
        }
        call = await self._call("/v1/chat/completions", msgspec.json.encode(body), reader.feed)
        try:
            await asyncio.wait((call.done, reader.is_over), return_when=asyncio.FIRST_COMPLETED)
            reader.end(200 if reader.is_over.done() else call.done.result())
        finally:
            call.abort()

    async def _ask(self, path: str, body: bytes | None = None) -> bytes:
        answer = bytearray()
        call = await self._call(path, body, answer.extend)
        try:
            status = await call.done
        finally:
            call.abort()
        if status != 200:
            raise RefusedByEngineError(refusal_in(bytes(answer)).message)
        return bytes(answer)

    async def _call(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpCall:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, call = await loop.create_unix_connection(
                    lambda: HttpCall(path, body, on_body), self._socket
                )
            except BlockingIOError:  # a thousand come at once, and its backlog is full
                await asyncio.sleep(BACKLOG_PAUSE_S)
            else:
                return call


def chat_body(request: Request) -> dict[str, Any]:
    """What llama.cpp is told of a conversation, to render it and to answer it."""
    turns = [turn(each, reasoning_as="reasoning_content") for each in request.messages or ()]
    body: dict[str, Any] = {"messages": turns}
    if request.tools is not None:
        body["tools"] = msgspec.Raw(request.tools.encode())
        body["tool_choice"] = "required" if request.tool_call_required else "auto"
        body["parallel_tool_calls"] = request.parallel_calls
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    return body


class _ToolsRefusedError(Exception):
    """llama.cpp does not take these tools, and why."""


def check_request_tools(tools: str) -> None:
    """Raises _ToolsRefusedError."""
    try:
        check_tools(tools)
    except InvalidSchemaError as error:
        raise _ToolsRefusedError(str(error)) from None


def sampling_params(sampling: Sampling, context_length: int) -> dict[str, Any]:
    """What llama.cpp is told about choosing tokens: exactly what was asked for, with none of its
    own defaults."""
    params: dict[str, Any] = {
        "samplers": ["top_k", "top_p", "temperature"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED,
    }
    if sampling.presence_penalty or sampling.frequency_penalty:
        # Over the whole context: it counts prompt and answer alike, so that a continuation, where
        # the answer so far is part of the prompt, goes on exactly.
        params |= {
            "samplers": ["penalties", *params["samplers"]],
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_last_n": context_length,
        }
    if sampling.logit_bias:
        params["logit_bias"] = sampling.logit_bias
    return params


def num_usable_cores() -> int:
    """The processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux: knows of the limits of a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_param(params: object, name: str, value: object) -> None:
    """Set llama.cpp's parameter of that name. Raises StartError for a wrong name or value."""
    *path, last = name.split(".")
    if not path and not hasattr(params, last) and hasattr(params.cpuparams, last):  # type: ignore[attr-defined] # xllamacpp has no types
        path = ["cpuparams"]
    owner: Any = params
    try:
        for part in path:
            owner = getattr(owner, part)
        getattr(owner, last)
    except AttributeError:
        names = [n for n in dir(owner) if not n.startswith("_")]
        near = difflib.get_close_matches(last, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "See the README of xllamacpp for the names."
        raise StartError(f"llama.cpp has no parameter {name!r}.", hint) from None
    try:
        setattr(owner, last, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise StartError(
            f"llama.cpp does not take this value for {name!r}: {error}.", "Give another value."
        ) from None
