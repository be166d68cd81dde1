"""The remote engine: upstreams answer, and an answer outlives any of them.

In: requests. Out: answers from vLLM, SGLang, llama.cpp's server, Penstock, Ollama and other servers
with OpenAI's API. If an upstream dies, hangs, refuses or cuts in mid-answer, the answer goes on at
another one. Nothing that was passed on changes. A request that two upstreams in a row fail, without
a token between, is given up: it may be the cause.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from penstock.engine.protocol import Feature, ModelFacts, ModelInfo, Sink, UpstreamFacts
from penstock.engine.reasoning import (
    SplitSink,
    Splitter,
    begun_answer,
    marks_in,
    num_last_tokens,
    reasoning_features,
)
from penstock.engine.remote.account import Account
from penstock.engine.remote.answering import MAX_DEATHS, NOT_BACK, Answering, GivenUpError
from penstock.engine.remote.config import upstreams_of
from penstock.engine.remote.failures import RefusedError, UpstreamError
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.profile import Level, Profile
from penstock.engine.remote.prompts import generated_ids_of, prompt_ids_of, text_of
from penstock.engine.remote.routing import key_of
from penstock.engine.slots import Slots
from penstock.engine.tasks import TaskEngine, refusal, too_long, too_many_turns
from penstock.request import Request, Sampling

log = logging.getLogger(__name__)

# What a server that does not say how long its context is can take.
UNKNOWN_CONTEXT = 131_072
# The codes with which servers refuse a prompt that is too long.
TOO_LONG = ("context_length_exceeded", "prompt_too_long", "exceed_context_size_error")

# The name that the settings give a model without a name: this engine's.
UNNAMED = "remote"

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Result = TypeVar("Result")


class Remote(TaskEngine):
    """Serves the model of its upstreams as `name`; by default under the name that it has there.

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
        self._name = "" if name == UNNAMED else name
        self._num_slots = slots
        self._context = context
        self._silence = silence
        self._patience = patience
        self._level = level
        self._pool = Pool(upstreams_of(urls, upstreams, key), interval, (name,))
        self._pool.on_change = self._has_changed
        self.info: ModelInfo
        self._marks: tuple[str, str] | None = None
        self.on_pause: Callable[[bool], None] = lambda is_paused: None

    async def start(self) -> ModelInfo:
        """Wait for the first upstream, and find out what all of them can do."""
        pool = self._pool
        await pool.look_at_all()
        pool.watch()
        if not pool.known:
            log.warning("no upstream answers; waiting for the first one")
            while not pool.known:
                await pool.wait()
        self._decide()
        self.info = self._describe(pool.known)
        if not self._num_slots:
            self._slots = Slots(self.info.slots)
        return self.info

    def _decide(self) -> None:
        """Decide how all upstreams are talked to; leave out those that do not fit."""
        pool = self._pool
        profiles = pool.known
        first = profiles[0]
        can = all(each.level == "ids" for each in profiles)
        pool.level = "ids" if can and self._level == "ids" else "text"
        pool.vocabulary = first.vocabulary
        pool.context_length = self._context or min(
            (each.context_length for each in profiles if each.context_length),
            default=UNKNOWN_CONTEXT,
        )
        pool.recheck()
        log.info(
            "the remote engine talks to %d upstreams with %s",
            len(profiles),
            "token ids" if pool.level == "ids" else "texts",
        )

    def _describe(self, profiles: list[Profile]) -> ModelInfo:
        pool = self._pool
        first = profiles[0]
        assert pool.level is not None
        supports: tuple[Feature, ...] = first.supports(pool.level)
        for each in profiles[1:]:
            others = each.supports(pool.level)
            supports = tuple(feature for feature in supports if feature in others)
        size = 0
        if pool.level == "ids":
            self._marks = marks_in(first.chat_template)
            size = first.vocabulary_size
            supports += reasoning_features(first.chat_template, has_effort=False)
        slots = sum(each.slots for each in pool.upstreams if each.profile is not None)
        return ModelInfo(
            self._name or name_of(first.model) or UNNAMED,
            "remote",
            pool.context_length,
            self._num_slots or slots,
            supports,
            size,
            sampling=first.sampling or Sampling(),
            facts=ModelFacts(chat_template=first.chat_template),
            upstreams=tuple(
                UpstreamFacts(
                    each.kind, pool.level, name_of(each.model), each.context_length, each.slots
                )
                for each in profiles
            ),
        )

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
        try:
            await self._answer(request, sink)
        except GivenUpError as error:
            sink.fail(error.code, str(error))
        except RefusedError as error:
            sink.fail(*self._refusal_of(error))

    async def _answer(self, request: Request, sink: Sink) -> None:
        info, pool = self.info, self._pool
        if refused := too_many_turns(request, info.context_length):
            sink.fail(*refused)
            return
        prompt_ids = request.prompt_ids or ()
        if pool.level == "ids":
            if request.prompt_ids is None:
                prompt_ids = await self._ask_any(request, lambda up: prompt_ids_of(up, request))
            refused = refusal(request, len(prompt_ids), info.context_length, takes_empty=True)
            if refused:
                sink.fail(*refused)
                return
        sink.accepted(prompt_ids)
        if not await self._start(request, sink):
            return
        if pool.level == "ids" and request.tools is None:
            sink = await self._split(request, prompt_ids, sink)
        account = Account(request, sink, info.vocabulary_size)
        bounds = {"silence": self._silence, "patience": self._patience}
        await Answering(pool, request, prompt_ids, account, marks=self._marks, **bounds).run()

    async def _ask_any(
        self, request: Request, ask: Callable[[Upstream], Awaitable[Result]]
    ) -> Result:
        """Return the answer to a question that any upstream can answer.

        Raises RefusedError, and GivenUpError if one upstream after the other fails.
        """
        failed: Upstream | None = None
        for _ in range(MAX_DEATHS):
            try:
                async with asyncio.timeout(self._patience):
                    upstream = await self._pool.take(key_of(request), 0, failed)
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

    async def _split(self, request: Request, prompt_ids: tuple[int, ...], sink: Sink) -> Sink:
        """Return a sink that separates the reasoning, if the request asks and the model reasons."""
        marks = self._marks
        if marks is None or not request.separate_reasoning:
            return sink
        begun = begun_answer(request.messages)
        last = list(prompt_ids[-num_last_tokens(begun) :])

        async def texts(upstream: Upstream) -> tuple[str, str]:
            generated = await generated_ids_of(upstream, list(request.generated))
            return await text_of(upstream, last), await text_of(upstream, generated)

        end, generated = await self._ask_any(request, texts)
        return SplitSink(sink, Splitter.after(marks, end, generated, begun))

    def _refusal_of(self, error: RefusedError) -> tuple[str, str]:
        """Return the code and the sentence for a refusal; nothing of what the upstream wrote."""
        if error.code in TOO_LONG:
            return too_long(self.info.context_length, "too many")
        if error.code in ("template_refused", "no_chat_template"):
            return error.code, "The model cannot show this conversation. Change its turns."
        return "engine_refused", "The server that runs the model refuses the request."


def name_of(model: str) -> str:
    """Return the name of an upstream's model; llama.cpp's server names its file."""
    return PurePath(model).name.removesuffix(".gguf") if model.endswith(".gguf") else model
