"""The remote engine: upstreams answer, and an answer outlives any of them.

In: requests. Out: answers from vLLM, SGLang, llama.cpp's server, Penstock, Ollama and other servers
with OpenAI's API. If an upstream dies, hangs, refuses or cuts in mid-answer, the answer goes on at
another one. Nothing that was passed on changes. A request that two upstreams in a row fail, without
a token between, is given up: it may be the cause.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from penstock.engine.catalog import UPSTREAM_PATIENCE_S
from penstock.engine.protocol import ModelInfo, Sink, UpstreamState
from penstock.engine.reasoning import (
    SplitSink,
    Splitter,
    begun_answer,
    num_last_tokens,
)
from penstock.engine.remote.account import NO_LOGPROBS, Account
from penstock.engine.remote.answering import CANNOT_CONTINUE, Answering
from penstock.engine.remote.binding import Binder, Bound, UnboundError
from penstock.engine.remote.bonds import is_demanding, refusal_of
from penstock.engine.remote.config import upstreams_of
from penstock.engine.remote.failures import GivenUpError, RefusedError
from penstock.engine.remote.models import UNNAMED, Model
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.profile import Level
from penstock.engine.remote.prompt_logprobs import prompt_logprobs_of, refusal_of_size
from penstock.engine.remote.prompts import generated_ids_of, prompt_ids_of, text_of
from penstock.engine.remote.questions import Questions
from penstock.engine.tasks import TaskEngine, refusal, too_long, too_many_turns
from penstock.events import PromptLogprobs
from penstock.request import Request

log = logging.getLogger(__name__)

# The codes with which servers refuse a prompt that is too long.
TOO_LONG = ("context_length_exceeded", "prompt_too_long", "exceed_context_size_error")

NO_IDS = "The server that runs the model takes no token ids. Give the prompt as text."
NO_COUNT = (
    "The server that runs the model does not count the tokens of a prompt. Send the prompt for an"
    " answer: its usage has the number."
)

# The server is told at most so often what the upstreams do; at once if one goes or comes back.
REPORT_EVERY_S = 1.0

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Result = TypeVar("Result")


class Remote(TaskEngine):
    """Serves the models of its upstreams, by default under the names that they have there.

    With a `name` all upstreams serve one model of this name, but those whose table gives another.
    `urls` are the upstreams of `--upstream`, whose key is `key`; `upstreams` are tables (see
    `config.UpstreamTable`). `slots` 0 is the sum of the upstreams' own, and `context` 0 the least
    of their contexts. An upstream that sends nothing for `silence` seconds has failed: from a
    server that reads the prompt silently, the first token must come within it. An answer waits
    `patience` seconds for an upstream if there is none. Each upstream is looked at every
    `interval` seconds. With `level` "text", no token ids are used.
    """

    def __init__(
        self,
        *,
        name: str = UNNAMED,
        urls: Sequence[str] = (),
        key: str = "",
        upstreams: Sequence[Mapping[str, Any]] = (),
        slots: int = 0,
        context: int = 0,
        silence: Seconds = 120.0,
        patience: Seconds = UPSTREAM_PATIENCE_S,
        interval: Seconds = 5.0,
        level: Level = "ids",
    ) -> None:
        super().__init__(slots)
        self._num_slots = slots
        self._silence = silence
        self._patience = patience
        self._pool = Pool(
            upstreams_of(urls, upstreams, key),
            *(interval, "" if name == UNNAMED else name, level, context),
        )
        self._questions = Questions(self._pool, patience)
        self._binder = Binder()
        self._pool.on_change = self._has_changed
        self._pool.on_model = self._has_model
        self._pool.on_turn = self._has_turned
        self._turned = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._has_started = False
        self.info: ModelInfo
        self.on_pause: Callable[[bool], None] = lambda is_paused: None
        self.on_info: Callable[[ModelInfo], None] = lambda info: None
        self.on_upstreams: Callable[[tuple[UpstreamState, ...]], None] = lambda states: None

    async def start(self) -> ModelInfo:
        """Wait for the first upstream, and find out what all of them can do."""
        pool = self._pool
        await pool.look_at_all()
        pool.watch()
        pool.decide()
        self._reporting = asyncio.create_task(self._report())
        if not pool.models:
            log.warning("no upstream answers; waiting for the first one")
        while not pool.models:
            await pool.wait()
            pool.decide()
        self._default, *_ = pool.models.values()
        self.info = self._describe()
        self._slots.resize(self.info.slots)
        self._has_started = True
        return self.info

    def _describe(self) -> ModelInfo:
        """Return the first model's information, with that of the others in it."""
        pool, default = self._pool, self._default
        models = pool.models.values()
        total = sum(each.slots for each in models)
        slots = self._num_slots or total
        if len(models) == 1:
            return msgspec.structs.replace(default.info, slots=slots)
        for each in models:
            each.max_waiting = max(1, slots * each.slots // max(1, total))
            own = each.slots if pool.has_upstream(each) else 0
            each.info = msgspec.structs.replace(each.info, slots=each.slots, own_slots=own)
        others = tuple(each.info for each in models if each is not default)
        return msgspec.structs.replace(default.info, slots=slots, models=others)

    def _has_model(self) -> None:
        """Tell the server that one more model is there, or that a model has other slots."""
        info = self._describe()
        if info != self.info:
            self.info = info
            self._slots.resize(info.slots)
            self.on_info(info)

    def _has_turned(self) -> None:
        """Tell the server that an upstream has gone or come back."""
        self._turned.set()
        if self._has_started:
            self._has_model()

    async def _report(self) -> None:
        """Tell the server what the upstreams do, whenever that is something else."""
        told: tuple[UpstreamState, ...] = ()
        while True:
            self._turned.clear()
            states = self._pool.states()
            if states != told:
                told = states
                self.on_upstreams(states)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._turned.wait()

    async def stop(self) -> None:
        """Drop every request, and look at no upstream any more."""
        if self._reporting is not None:
            self._reporting.cancel()
        self._binder.stop()
        await self._pool.stop()
        await super().stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _has_changed(self, has_one: bool) -> None:
        """Tell the server to keep new requests in its queue while there is no upstream."""
        if not has_one:
            log.error("no upstream answers; requests wait")
        elif self._has_started:
            log.info("an upstream is there again; requests go on")
        self.on_pause(not has_one)

    async def _run(self, request: Request, sink: Sink) -> None:
        model = await self._model_of(request, sink)
        if model is None:
            sink.fail("model_not_found", "No upstream serves that model any more.")
            return
        try:
            await self._answer(model, request, sink)
        except (GivenUpError, UnboundError) as error:
            sink.fail(error.code, str(error))
        except RefusedError as error:
            sink.fail(*_refusal_of(error, model))

    async def _model_of(self, request: Request, sink: Sink) -> Model | None:
        """Return the request's model; None if no upstream serves it.

        Waits for it: its upstreams may not have answered since this process began.
        """
        name = request.model or self._default.name
        models = self._pool.models
        if name in models:
            return models[name]
        sink.interrupted(waits=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while name not in models:
                    await self._pool.wait()
        return models.get(name)

    async def _answer(self, model: Model, request: Request, sink: Sink) -> None:
        if refused := too_many_turns(request, model.context_length):
            sink.fail(*refused)
            return
        _check_level(model, request)
        bound = await self._binder.bind(request)
        if is_demanding(request):
            self._check_upstreams(model, request, bound)
        prompt_ids = request.prompt_ids or ()
        if model.level == "ids":
            if not prompt_ids and not _is_of_ids(request):
                prompt_ids = await self._questions.ask(
                    model, request, sink, lambda up: prompt_ids_of(up, request)
                )
            refused = refusal(request, len(prompt_ids), model.context_length, takes_empty=True)
            if refused:
                sink.fail(*refused)
                return
        num_top = request.prompt_logprobs
        if num_top is not None and (too_many := refusal_of_size(len(prompt_ids), num_top)):
            sink.fail("unsupported_field", too_many)
            return
        sink.accepted(prompt_ids, bound.notes)
        if not await self._start(request, sink):
            return
        if num_top is not None:
            sink.prompt_logprobs(await self._prompt_logprobs(model, request, prompt_ids, sink))
            request = msgspec.structs.replace(request, prompt_logprobs=None)
        sends_ids = model.level == "ids" and request.tools is None
        if sends_ids:
            sink = await self._split(model, request, prompt_ids, sink)
        size = model.info.vocabulary_size
        account = Account(*(request, sink, size), keeps_text=bound.binds, knows_prompt=sends_ids)
        bounds = {"silence": self._silence, "patience": self._patience}
        await Answering(self._pool, model, request, prompt_ids, account, bound, **bounds).run()

    def _check_upstreams(self, model: Model, request: Request, bound: Bound) -> None:
        """Raise GivenUpError if no upstream of the model can answer as the request asks.

        An upstream that has not answered yet may be able to: then the request waits for it.
        """
        refusals = [
            refusal_of(each.profile, model.level, request, bound)
            for each in self._pool.serving(model)
            if each.profile is not None
        ]
        if refusals and all(refusals):
            raise GivenUpError("unsupported_field", str(refusals[0]))

    async def _prompt_logprobs(
        self, model: Model, request: Request, prompt_ids: tuple[int, ...], sink: Sink
    ) -> PromptLogprobs:
        """Return the log probabilities of the prompt, from an upstream that reports them."""
        num_top = request.prompt_logprobs or 0
        return await self._questions.ask(
            *(model, request, sink),
            lambda up: prompt_logprobs_of(up, prompt_ids, num_top, self._silence),
            lambda up: up.profile is not None and "prompt_logprobs" in up.profile.supports("ids"),
        )

    async def _split(
        self, model: Model, request: Request, prompt_ids: tuple[int, ...], sink: Sink
    ) -> Sink:
        """Return a sink that separates the reasoning, if the request asks and the model reasons."""
        marks = model.marks
        if marks is None or not request.separate_reasoning:
            return sink
        begun = begun_answer(request.messages)
        last = list(prompt_ids[-num_last_tokens(begun) :])

        async def texts(upstream: Upstream) -> tuple[str, str]:
            generated = await generated_ids_of(upstream, list(request.generated))
            return await text_of(upstream, last), await text_of(upstream, generated)

        end, generated = await self._questions.ask(model, request, sink, texts)
        return SplitSink(sink, Splitter.after(marks, end, generated, begun))


def _is_of_ids(request: Request) -> bool:
    """Return True if the client gave the prompt as token ids."""
    return request.prompt is None and request.messages is None


def _check_level(model: Model, request: Request) -> None:
    """Raise GivenUpError if a model that is talked to at this level cannot answer the request.

    An answer that began at one level cannot go on at the other, for example after a restart of
    this process: with texts nobody knows the text of its tokens, and with ids nobody knows which
    of its text was reasoning.
    """
    has_ids = model.level == "ids"
    if request.generated and has_ids != bool(request.prompt_ids):
        raise GivenUpError("engine_died", CANNOT_CONTINUE)
    if not has_ids and _is_of_ids(request):
        raise GivenUpError("unsupported_field", NO_IDS)
    if not has_ids and not request.max_tokens:  # it asks for nothing but the prompt's tokens
        raise GivenUpError("unsupported_field", NO_COUNT)


def _refusal_of(error: RefusedError, model: Model) -> tuple[str, str]:
    """Return the code and the sentence for a refusal; nothing of what the upstream wrote."""
    if error.code == NO_LOGPROBS:
        return "unsupported_field", "The server that runs the model reports no log probabilities."
    if error.code in TOO_LONG:
        return too_long(model.context_length, "too many")
    if error.code in ("template_refused", "no_chat_template"):
        return error.code, "The model cannot show this conversation. Change its turns."
    return "engine_refused", "The server that runs the model refuses the request."
