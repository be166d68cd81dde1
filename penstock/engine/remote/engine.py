"""The remote engine: upstreams answer, and an answer outlives any of them.

In: requests. Out: answers from vLLM, SGLang, llama.cpp's server, Penstock, Ollama and other servers
with OpenAI's API. If an upstream dies, hangs, refuses or cuts in mid-answer, the answer goes on at
another one. Nothing that was passed on changes. A request that two upstreams in a row fail, without
a token between, is given up: it may be the cause.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from penstock.engine.protocol import ModelInfo, Sink
from penstock.engine.reasoning import (
    SplitSink,
    Splitter,
    begun_answer,
    num_last_tokens,
)
from penstock.engine.remote.account import Account
from penstock.engine.remote.answering import MAX_DEATHS, NOT_BACK, Answering
from penstock.engine.remote.config import upstreams_of
from penstock.engine.remote.failures import GivenUpError, RefusedError, UpstreamError
from penstock.engine.remote.models import UNNAMED, Model
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.profile import Level
from penstock.engine.remote.prompts import generated_ids_of, prompt_ids_of, text_of
from penstock.engine.remote.routing import key_of
from penstock.engine.slots import Slots
from penstock.engine.tasks import TaskEngine, refusal, too_long, too_many_turns
from penstock.request import Request

log = logging.getLogger(__name__)

# The codes with which servers refuse a prompt that is too long.
TOO_LONG = ("context_length_exceeded", "prompt_too_long", "exceed_context_size_error")


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
        patience: Seconds = 300.0,
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
        self._pool.on_change = self._has_changed
        self._pool.on_model = self._has_model
        self.info: ModelInfo
        self.on_pause: Callable[[bool], None] = lambda is_paused: None
        self.on_info: Callable[[ModelInfo], None] = lambda info: None

    async def start(self) -> ModelInfo:
        """Wait for the first upstream, and find out what all of them can do."""
        pool = self._pool
        await pool.look_at_all()
        pool.watch()
        pool.decide()
        if not pool.models:
            log.warning("no upstream answers; waiting for the first one")
        while not pool.models:
            await pool.wait()
            pool.decide()
        self._default, *_ = pool.models.values()
        self.info = self._describe()
        if not self._num_slots:
            self._slots = Slots(self.info.slots)
        return self.info

    def _describe(self) -> ModelInfo:
        """Return the first model's information, with that of the others in it."""
        models = self._pool.models.values()
        others = tuple(each.info for each in models if each is not self._default)
        total = sum(each.slots for each in models)
        slots = self._num_slots or total
        for each in models if others else ():
            each.max_waiting = max(1, slots * each.slots // total)
        return msgspec.structs.replace(self._default.info, slots=slots, models=others)

    def _has_model(self) -> None:
        """Tell the server that one more model is there."""
        self.info = self._describe()
        self.on_info(self.info)

    async def stop(self) -> None:
        """Drop every request, and look at no upstream any more."""
        await self._pool.stop()
        await super().stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _has_changed(self, has_one: bool) -> None:
        """Tell the server to keep new requests in its queue while there is no upstream."""
        if has_one:
            log.info("an upstream is there again; requests go on")
        else:
            log.error("no upstream answers; requests wait")
        self.on_pause(not has_one)

    async def _run(self, request: Request, sink: Sink) -> None:
        model = await self._model_of(request)
        if model is None:
            sink.fail("model_not_found", "No upstream serves that model any more.")
            return
        try:
            await self._answer(model, request, sink)
        except GivenUpError as error:
            sink.fail(error.code, str(error))
        except RefusedError as error:
            sink.fail(*_refusal_of(error, model))

    async def _model_of(self, request: Request) -> Model | None:
        """Return the request's model; None if no upstream serves it.

        Waits for it: its upstreams may not have answered since this process began.
        """
        name = request.model or self._default.name
        models = self._pool.models
        if name in models:
            return models[name]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while name not in models:
                    await self._pool.wait()
        return models.get(name)

    async def _answer(self, model: Model, request: Request, sink: Sink) -> None:
        if refused := too_many_turns(request, model.context_length):
            sink.fail(*refused)
            return
        prompt_ids = request.prompt_ids or ()
        if model.level == "ids":
            if request.prompt_ids is None:
                prompt_ids = await self._ask_any(
                    model, request, lambda up: prompt_ids_of(up, request)
                )
            refused = refusal(request, len(prompt_ids), model.context_length, takes_empty=True)
            if refused:
                sink.fail(*refused)
                return
        sink.accepted(prompt_ids)
        if not await self._start(request, sink):
            return
        if model.level == "ids" and request.tools is None:
            sink = await self._split(model, request, prompt_ids, sink)
        account = Account(request, sink, model.info.vocabulary_size)
        bounds = {"silence": self._silence, "patience": self._patience}
        await Answering(self._pool, model, request, prompt_ids, account, **bounds).run()

    async def _ask_any(
        self, model: Model, request: Request, ask: Callable[[Upstream], Awaitable[Result]]
    ) -> Result:
        """Return the answer to a question that any upstream of the model can answer.

        Raises RefusedError, and GivenUpError if one upstream after the other fails.
        """
        failed: Upstream | None = None
        for _ in range(MAX_DEATHS):
            try:
                async with asyncio.timeout(self._patience):
                    upstream = await self._pool.take(
                        model, key_of(request), 0, failed, has_begun=bool(request.generated)
                    )
            except TimeoutError:
                break
            try:
                result = await ask(upstream)
                upstream.health.succeed()
                return result
            except UpstreamError as error:
                failed = upstream
                upstream.fail(error)
            finally:
                upstream.health.drop()
                self._pool.give_back(upstream, 0)
        raise GivenUpError("engine_died", NOT_BACK)

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

        end, generated = await self._ask_any(model, request, texts)
        return SplitSink(sink, Splitter.after(marks, end, generated, begun))


def _refusal_of(error: RefusedError, model: Model) -> tuple[str, str]:
    """Return the code and the sentence for a refusal; nothing of what the upstream wrote."""
    if error.code in TOO_LONG:
        return too_long(model.context_length, "too many")
    if error.code in ("template_refused", "no_chat_template"):
        return error.code, "The model cannot show this conversation. Change its turns."
    return "engine_refused", "The server that runs the model refuses the request."
