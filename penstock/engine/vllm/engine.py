"""The vLLM engine: models on one GPU, several GPUs or several machines; on a CPU in our tests.

vLLM's asynchronous engine runs in this process and starts its core, which holds the model, as
another process. vLLM renders and tokenises a prompt before it is queued, so its exact length is
known. Requests wait here, in order, and vLLM never has more than `slots`. vLLM does not look for
stop strings: the stream's text layer does that for every engine.

Engine arguments: https://docs.vllm.ai/en/stable/configuration/engine_args.html
"""

import asyncio
import contextlib
import dataclasses
import difflib
import logging
import os
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.compiled import InvalidSchemaError, TooComplexError
from penstock.engine.grammar import CANNOT_CONTINUE, NOT_COMPILED
from penstock.engine.process import reaper
from penstock.engine.process.bounded import BoundedFunction, JobLostError
from penstock.engine.process.forks import Limits
from penstock.engine.protocol import Feature, ModelInfo, Sink
from penstock.engine.slots import Slots
from penstock.engine.tasks import (
    SHORT_CHARACTERS,
    PromptTooLongError,
    TaskEngine,
    check_length,
    end_process,
    is_short,
    refusal,
    too_many_turns,
)
from penstock.engine.tools import with_instructions
from penstock.engine.turns import REFUSED, Messages, Template, TemplateRefusedError
from penstock.engine.vllm.answers import SecondCallError, pass_on
from penstock.engine.vllm.formats import AnswerFormat, CannotContinueError, text_of
from penstock.errors import StartError, reason_from_pydantic
from penstock.folders import own_folder
from penstock.request import Request, Sampling

# vLLM reads these variables when it is imported. The user's own values stay.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # unless the user enables statistics

try:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.exceptions import VLLMClientError
    from vllm.platforms import current_platform
    from vllm.renderers.chat_utils import ChatTemplateResolutionError
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    from penstock.engine.vllm.binder import Binder, UnboundSchemaError
    from penstock.engine.vllm.chats import (
        AT_ONCE,
        PROBE,
        PROBE_TOOLS,
        Chats,
        check_names,
        vocabulary_of,
    )
except ImportError as error:
    is_installed = error.name != "vllm"
    raise StartError(
        f"This vLLM cannot be used: {error}." if is_installed else "vLLM is not installed.",
        "On a machine with a GPU, run pip install '.[vllm]' in Penstock's folder. It installs the"
        " version that Penstock supports. For a CPU see docs/scaling.md.",
    ) from error

log = logging.getLogger(__name__)

NUM_SEEDS = 2**63
# For a large vocabulary xgrammar takes a second for a schema that is no bomb. It does not stop the
# other streams meanwhile.
COMPILE_LIMITS = Limits(cpu_s=3.0, memory_bytes=2**30, wall_s=60.0)
# Measured on 2 cores: with 1, tokens still arrive in lumps every half second; with 5, one by one.
NICENESS = 5

SUPPORTS: tuple[Feature, ...] = (
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "json_schema",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "grammar",
    "structural_tag",
    "show_special_tokens",
    "use_cache",
    "template_kwargs",
    "last_message",
    "return_token_ids",
    "prompt_logprobs",
    "show_prompt",
    "add_special_tokens",
)
BUDGET_ADVICE = (
    "Start the server with --engine-arg reasoning_parser=NAME, or with vLLM's reasoning_config, to"
    " enable a thinking budget."
)


class Vllm(TaskEngine):
    """An engine that serves `model` (a folder, or a name on the Hugging Face hub) as `name`.

    `context` is vLLM's `max_model_len` in tokens; 0 leaves it to vLLM, which uses the model's own.

    `tool_call_parser` names vLLM's parser for the model's tool calls, like the flag of vLLM's
    server; without a parser, tools are shown and called in Penstock's own form. Every other
    argument is an engine argument of vLLM (`dtype`, `max_model_len`, `reasoning_parser`...). Three
    defaults differ from vLLM's: `max_num_seqs` is `slots`, statistics are off, and each start draws
    a new seed for the requests without a seed.
    """

    def __init__(
        self,
        *,
        model: str,
        name: str,
        slots: int,
        context: int = 0,
        tool_call_parser: str | None = None,
        **engine_args: Any,
    ) -> None:
        super().__init__(slots)
        self._name = name
        self._tool_call_parser = tool_call_parser
        self._engine_args: dict[str, Any] = {
            "model": model,
            "max_num_seqs": slots,
            "disable_log_stats": True,
            "seed": secrets.randbits(31),
            **({"max_model_len": context} if context else {}),
            **engine_args,
        }
        self._context_length = 0
        self._llm: Any = None
        self._chats: Chats  # these are set by `start`
        self._compiler: BoundedFunction
        self._binder: Binder
        self._template = Template()
        self._stopping = False

    async def start(self) -> ModelInfo:
        """Load the model, which takes half a minute or more. Raises StartError if it fails."""
        folder = str(own_folder())
        os.environ["VLLM_RPC_BASE_PATH"] = folder  # for the sockets between vLLM's processes
        reaper.kill_group_at_exit(folder)
        args, config = configure(self._engine_args, self._tool_call_parser)
        self._chats = Chats(config, self._tool_call_parser)
        vocabulary = Path(folder, "vocabulary.json")
        text = await asyncio.to_thread(vocabulary_of, config, self._chats.tokenizer)
        await asyncio.to_thread(vocabulary.write_text, text, encoding="utf-8")
        self._compiler = BoundedFunction(
            "penstock.engine.vllm.structures:make", COMPILE_LIMITS, vocabulary=str(vocabulary)
        )
        self._compiler.start()  # its libraries load while vLLM loads the model
        if current_platform.is_cpu():
            lower_priority()
        try:
            self._llm = AsyncLLM.from_vllm_config(
                config,
                enable_log_requests=args.enable_log_requests,
                disable_log_stats=args.disable_log_stats,
            )
            await self._warm_up()
            await self._choose_backend()
        except Exception as error:  # vLLM raises many types
            # A process that the kernel kills for lack of memory cannot log a reason.
            killed = " Its core was killed." if "-9}" in str(error) else ""
            raise StartError(
                f"vLLM could not load the model.{killed}",
                "Is there enough memory? max_model_len, gpu_memory_utilization and"
                " tensor_parallel_size determine how much vLLM needs on each GPU.",
            ) from error
        self._binder = Binder(self._chats, self._llm.input_processor, self._compiler)
        self._llm.output_handler.add_done_callback(lambda _: self._died())
        self._context_length = self._llm.model_config.max_model_len
        num_slots = config.scheduler_config.max_num_seqs
        self._slots = Slots(num_slots)
        self._template = await Template.probe(self._text_of)
        self._chats.renders_tools = await self._renders_tools()
        reasoning = config.reasoning_config
        has_budget = reasoning is not None and reasoning.enabled
        budget: tuple[Feature, ...] = ("thinking_budget",) if has_budget else ()
        advice: dict[Feature, str] = {} if has_budget else {"thinking_budget": BUDGET_ADVICE}
        return ModelInfo(
            self._name,
            "vllm",
            self._context_length,
            num_slots,
            (*SUPPORTS, *self._chats.features(), *budget),
            self._llm.model_config.get_vocab_size(),
            advice,
            sampling_of(self._llm.model_config.get_diff_sampling_param()),
            cache_tokens=cache_tokens_of(config),
        )

    async def _renders_tools(self) -> bool:
        """Return whether the model's chat template renders tools."""
        plain = Request(id="", max_tokens=1, messages=PROBE)
        try:
            with_tools = await self._tokenise(msgspec.structs.replace(plain, tools=PROBE_TOOLS))
            without = await self._tokenise(plain)
        except Exception:  # a template can raise any type
            return False
        return bool(with_tools["prompt_token_ids"] != without["prompt_token_ids"])

    async def _warm_up(self) -> None:
        """Sample two tokens, so that vLLM compiles everything before the model is ready.

        Otherwise the first client would wait for that, or get the error if it fails.
        """
        probe = Request("", 2, top_logprobs=1)
        params = sampling_params(probe, 2, AnswerFormat())
        async for _ in self._llm.generate({"prompt_token_ids": [0]}, params, "warm-up"):
            pass

    async def _choose_backend(self) -> None:
        """Bind a first answer, because vLLM binds all answers with the library of the first.

        Unless the operator has chosen a library, it is xgrammar, which binds structural tags.
        """
        structure = StructuredOutputsParams(choice=["a", "b"])
        params = sampling_params(Request("", 1), 1, AnswerFormat(structure, AT_ONCE))
        try:
            async for _ in self._llm.generate({"prompt_token_ids": [0]}, params, "choice"):
                pass
        except (VLLMClientError, ValueError):
            log.warning("vLLM cannot bind this model's answers to tools, schemas or grammars.")

    async def stop(self) -> None:
        """Drop every request and end vLLM's processes."""
        self._stopping = True
        await super().stop()
        self._compiler.stop()
        self._llm.shutdown(timeout=0)  # without a timeout its core takes ten seconds

    async def _run(self, request: Request, sink: Sink) -> None:
        try:
            if refused := too_many_turns(request, self._context_length):
                sink.fail(*refused)
                return
            given_tools = request.tools
            request, relaxed = await self._binder.bindable(request)
            request, prompt, notes = await self._shown(request, given_tools)
            prompt_ids = tuple(prompt["prompt_token_ids"])
            if refused := refusal(request, len(prompt_ids), self._context_length):
                sink.fail(*refused)
                return
            answer_format, more = await self._binder.format_of(request, given_tools, prompt_ids)
            notes = tuple(dict.fromkeys((*notes, *relaxed, *more)))
            sink.accepted(prompt_ids, notes)
            if request.show_prompt:
                sink.delta(await self._shown_text(prompt_ids), 0, ())
            if request.generated:
                prompt = await self._render_ids([*prompt_ids, *request.generated])
            if not await self._start(request, sink):
                return
            await self._generate(request, prompt, answer_format, sink)
        except SecondCallError as error:
            sink.finish("stop", error.completion_tokens)
        except CannotContinueError:
            sink.fail("engine_died", CANNOT_CONTINUE)
        except TooComplexError as error:
            sink.fail("schema_too_complex", f"vLLM cannot bind this answer: {error}.")
        except JobLostError:
            sink.fail("engine_error", NOT_COMPILED)
        except InvalidSchemaError as error:
            if request.tools is not None and not isinstance(error, UnboundSchemaError):
                sink.fail("invalid_tools", f"vLLM cannot use these tools: {error}.")
            elif request.grammar is not None:
                sink.fail("invalid_grammar", f"vLLM cannot enforce this grammar: {error}.")
            else:
                sink.fail("invalid_schema", f"vLLM cannot enforce this schema: {error}.")
        except PromptTooLongError as error:
            sink.fail("prompt_too_long", str(error))
        except TemplateRefusedError:
            sink.fail("template_refused", REFUSED)
        except EngineDeadError:
            self._died()
        except ChatTemplateResolutionError:
            sink.fail(
                "no_chat_template",
                "This model has no chat template, so it cannot read messages. Send a prompt"
                " instead.",
            )
        except VLLMClientError as error:
            sink.fail("engine_refused", f"vLLM refused the request: {error}")
        except Exception as error:
            log.exception("vLLM failed a request")
            sink.fail("engine_error", f"vLLM failed the request ({type(error).__name__}).")

    async def _shown(
        self, request: Request, given_tools: str | None
    ) -> tuple[Request, Any, tuple[str, ...]]:
        """Return the request with messages that the template shows, its prompt, and notes.

        `given_tools` are the request's tools as the client gave them.
        """
        if request.messages is None or request.prompt_ids is not None:
            return request, await self._tokenise(request), ()
        template, messages, tools = self._template, request.messages, request.tools
        if given_tools is not None and not self._chats.shows_tools:
            must_call = request.tool_call_required
            messages = with_instructions(messages, given_tools, must_call=must_call)
            # The template would show earlier calls in another form.
            template, tools = dataclasses.replace(template, tools=False), None

        async def render(messages: Messages) -> Any:
            return await self._tokenise(
                msgspec.structs.replace(request, messages=messages, tools=tools)
            )

        try:
            messages, prompt, notes = await template.show(messages, render)
        except TemplateRefusedError:
            if tools is None:
                raise
            try:
                await render(PROBE)
            except TemplateRefusedError:
                why = "the model's chat template does not support them"
                raise InvalidSchemaError(why) from None
            raise
        return msgspec.structs.replace(request, messages=messages), prompt, notes

    async def _shown_text(self, token_ids: tuple[int, ...]) -> str:
        return await asyncio.to_thread(text_of, list(token_ids), self._chats.tokenizer, True)

    async def _text_of(self, messages: Messages) -> str:
        """Return the prompt of a conversation as text. Raises TemplateRefusedError."""
        try:
            prompt = await self._tokenise(Request(id="", max_tokens=1, messages=messages))
        except Exception:  # a template can raise any type
            raise TemplateRefusedError from None
        return await self._shown_text(prompt["prompt_token_ids"])

    async def _tokenise(self, request: Request) -> Any:
        """Return the prompt in vLLM's form, with all its `prompt_token_ids`, however many."""
        renderer = self._llm.renderer
        if request.prompt_ids is not None:
            return await self._render_ids(list(request.prompt_ids))
        if request.messages is not None:
            try:
                return await self._tokenise_chat(request)
            except (ChatTemplateResolutionError, PromptTooLongError):
                raise
            except (VLLMClientError, ValueError, TypeError):
                raise TemplateRefusedError from None
        assert request.prompt is not None
        await self._check_length([request.prompt])
        params = dataclasses.replace(renderer.default_cmpl_tok_params, max_total_tokens=None)
        if not request.add_special_tokens:
            params = dataclasses.replace(params, add_special_tokens=False)
        (prompt,) = await renderer.render_cmpl_async([{"prompt": request.prompt}], params)
        begin = renderer.get_bos_token_id() if request.add_special_tokens else None
        if not prompt["prompt_token_ids"] and begin is not None:
            return await self._render_ids([begin])
        return prompt

    async def _tokenise_chat(self, request: Request) -> Any:
        """Return the prompt of a conversation. Control tokens' texts in it stay texts."""
        renderer = self._llm.renderer
        turns, chat = self._chats.turns(request), self._chats.params(request)
        hide = partial(self._chats.hide_control_tokens, turns, chat)
        turns, chat, hidden = hide() if is_short(request) else await asyncio.to_thread(hide)
        _, rendered = await renderer.render_messages_async(turns, chat)
        if hidden:
            pieces = self._chats.control.pieces_of(rendered["prompt"], hidden)
            await self._check_length(pieces)
            return await self._render_ids(await asyncio.to_thread(self._chats.ids_of, pieces))
        if "prompt_token_ids" not in rendered:  # some tokenizers render and tokenise in one step
            await self._check_length([rendered["prompt"]])
        unbounded = dataclasses.replace(renderer.default_chat_tok_params, max_total_tokens=None)
        (prompt,) = await renderer.render_cmpl_async([rendered], unbounded)
        return prompt

    async def _check_length(self, pieces: list[str | int]) -> None:
        """Raise PromptTooLongError if the prompt cannot fit, before it is tokenised."""
        check = partial(check_length, pieces, self._chats.lengths, self._context_length)
        size = sum(len(piece) for piece in pieces if isinstance(piece, str))
        if size <= SHORT_CHARACTERS:
            check()
        else:
            await asyncio.to_thread(check)

    async def _render_ids(self, ids: list[Any]) -> Any:
        """Return a prompt of token ids in vLLM's form."""
        renderer = self._llm.renderer
        unbounded = dataclasses.replace(renderer.default_cmpl_tok_params, max_total_tokens=None)
        (prompt,) = await renderer.render_cmpl_async([{"prompt_token_ids": ids}], unbounded)
        return prompt

    async def _generate(
        self, request: Request, prompt: Any, answer_format: AnswerFormat, sink: Sink
    ) -> None:
        room = self._context_length - len(prompt["prompt_token_ids"])
        if room <= 0:  # the engine died between the last token and the end
            sink.finish("length", 0)
            return
        max_tokens = min(request.max_tokens, room)
        params = sampling_params(request, max_tokens, answer_format)
        sink = answer_format.sink(sink)
        adding = asyncio.create_task(
            self._llm.add_request(request.id, prompt, params, **answer_format.begin)
        )
        try:
            outputs = await asyncio.shield(adding)
            await pass_on(outputs, sink, request.top_logprobs or 0, self._chats.tokenizer)
        except BaseException:
            # Abort only after the request is added: vLLM never forgets a request whose adding was
            # interrupted (https://github.com/vllm-project/vllm/issues/57061).
            outputs = await adding
            await self._llm.abort(outputs.request_id, internal=True)
            await self._core_answers()
            raise

    async def check(self, *, tries: bool) -> None:
        """Return once vLLM's core answers: between two steps, also while it reads a long prompt."""
        await self._llm.check_health()
        await self._core_answers()
        if tries:
            await self._warm_up()

    async def _core_answers(self) -> None:
        """Return once the core has obeyed what it was sent before: it takes all in order."""
        await self._llm.engine_core.is_sleeping_async()

    def _died(self) -> None:
        """End this process after vLLM's core has died, so that the server starts another."""
        if not self._stopping:
            end_process("vLLM's engine core has ended")


def lower_priority() -> None:
    """Give every other process of the machine priority over this process and its children.

    On a CPU vLLM's processes never sleep while they wait for each other. On a machine with few
    cores they would stop the server, and with it every stream, for up to a second.
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # some Linux systems weigh whole sessions
        Path("/proc/self/autogroup").write_text(f"{NICENESS}", encoding="ascii")


def configure(engine_args: dict[str, Any], tool_call_parser: str | None = None) -> tuple[Any, Any]:
    """Return vLLM's arguments and configuration without loading the model.

    Raises StartError if vLLM does not accept an argument.
    """
    check_names(tool_call_parser, engine_args.get("reasoning_parser"))
    names = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in engine_args:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else "See vLLM's engine arguments."
            raise StartError(f"vLLM has no engine argument {name!r}.", hint)
    try:
        args = AsyncEngineArgs(**engine_args)
        return args, args.create_engine_config()
    except Exception as error:  # vLLM raises many types; the message is the reason
        raise StartError(
            f"vLLM does not accept this configuration: {reason_of(error)}",
            "--model is a folder or a name on the Hugging Face hub, of a model that vLLM supports."
            " Engine arguments come from --engine-arg and penstock.toml.",
        ) from error


def reason_of(error: Exception) -> str:
    """Return vLLM's reason in one line, without pydantic's frame around it."""
    text = str(error)
    if errors := getattr(error, "errors", None):
        first = errors()[0]
        text = reason_from_pydantic(first["msg"])
        if first["loc"]:
            text = f"{first['loc'][0]}: {text}"
    words, _, _ = text.strip().partition("\n\n")  # the rest is advice for vLLM's own programs
    return " ".join(words.split()).rstrip(".") + "."


def cache_tokens_of(config: Any) -> int:
    """Return the number of tokens in the KV cache of vLLM, or 0 for a model that has none."""
    of_each = config.cache_config.kv_cache_size_tokens or 0
    return int(of_each * config.parallel_config.data_parallel_size)


def sampling_of(config: dict[str, Any]) -> Sampling:
    """Return the sampling of the model's `generation_config.json`, else vLLM's own defaults."""
    return Sampling(
        temperature=config.get("temperature", 1.0),
        top_p=config.get("top_p", 1.0),
        top_k=max(0, config.get("top_k", 0)),
        min_p=config.get("min_p", 0.0),
        repetition_penalty=config.get("repetition_penalty", 1.0),
    )


def sampling_params(request: Request, max_tokens: int, answer_format: AnswerFormat) -> Any:
    """Return vLLM's sampling parameters."""
    sampling = request.sampling
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_p == 0:  # only the likeliest token remains; vLLM needs a top_p above 0
        top_k, top_p = 1, 1.0
    shows_special_tokens = answer_format.shows_special_tokens or request.show_special_tokens
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=sampling.min_p,
        seed=None if sampling.seed is None else sampling.seed % NUM_SEEDS,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
        structured_outputs=answer_format.structure,
        skip_special_tokens=not shows_special_tokens,
        spaces_between_special_tokens=not (answer_format.form or request.show_special_tokens),
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens, max_tokens),
        ignore_eos=request.ignore_eos,
        stop_token_ids=list(request.stop_token_ids),
        thinking_token_budget=request.thinking_budget,
        skip_reading_prefix_cache=None if request.use_cache else True,
        output_kind=RequestOutputKind.DELTA,
    )
