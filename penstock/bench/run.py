"""A bench from its beginning to its end: look at the server, warm up, play the load, sum up.

In: `Options`. Out: a `Result`, which is also what stands in the JSON file. Raises `BenchError`,
with what to do next, where there is nothing to measure.
"""

import asyncio
import datetime
import itertools
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from penstock import __version__
from penstock.bench.answer import NO_CONNECTION, NOT_EVENTS, TIMEOUT, Answer
from penstock.bench.figures import Figures, client_figures, figures
from penstock.bench.http import Server
from penstock.bench.load import Run, ask, sender, sentence_of
from penstock.bench.plan import ROUTES, Api, Asking, Lengths, Load, Prompts, words
from penstock.bench.watch import Watch

SHOW_EVERY_S = 0.25
FEW_WORDS, MANY_WORDS = 16, 144
MODELS_TIMEOUT_S = 30.0

clock = time.perf_counter


class BenchError(Exception):
    """There is nothing to measure. The message says why, `hint` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Options(msgspec.Struct, frozen=True):
    """What a person chose; `model` None is the server's first."""

    url: str
    load: Load
    api: Api
    model: str | None
    prompts: Prompts
    max_tokens: Lengths
    warm_up: int
    timeout_s: float
    include_usage: bool
    fields: dict[str, Any]
    limits_s: dict[str, float] | None
    seed: int
    api_key: str | None


class Row(msgspec.Struct, frozen=True):
    """One request. Times in seconds; `at_s` is when it was due, after the run's first moment."""

    at_s: float
    late_s: float
    ttft_s: float | None
    e2e_s: float | None
    events: int
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    error: str | None


class Result(msgspec.Struct, frozen=True):
    """All that is known after a run."""

    date: str
    url: str
    api: Api
    model: str
    load: Load
    prompts: str
    max_tokens: str
    warm_up: int
    timeout_s: float
    seed: int
    fields: dict[str, Any]
    was_interrupted: bool
    machine: str
    versions: dict[str, str]
    figures: Figures
    requests: list[Row]


OnProgress = Callable[[str, Run | None], None]
"""Told what is being done, and once the load runs, of the run, a few times a second."""


async def bench(options: Options, on_progress: OnProgress) -> tuple[Result, Run]:
    """Play the load. Ctrl-C ends it early, with what was measured until then."""
    server = Server(options.url, options.api_key, clock)
    try:
        return await _Bench(options, server, on_progress).run()
    except BenchError as error:
        raise BenchError(hidden(str(error), options.api_key), error.hint) from None
    finally:
        await server.close()


class _Bench:
    def __init__(self, options: Options, server: Server, on_progress: OnProgress) -> None:
        self._options = options
        self._server = server
        self._on_progress = on_progress
        self._send = sender(server, ROUTES[options.api])
        self._models: list[str] = []

    async def run(self) -> tuple[Result, Run]:
        options = self._options
        self._on_progress("looking at the server", None)
        model = await self._model()
        asking = Asking(
            options.api, model, options.max_tokens, options.include_usage, options.fields
        )
        prompts = options.prompts
        if options.warm_up:
            self._on_progress("warming up", None)
            if prompts.lengths is not None and options.include_usage:
                prompts = await self._calibrated(prompts, asking)
            await self._warm_up(prompts, asking)
        bodies = asking.bodies(prompts, options.seed, options.load.num_requests)
        run = Run(self._send, clock, options.timeout_s)
        watch = Watch(clock)
        playing = asyncio.create_task(run.play(options.load, bodies, options.seed))
        beside = [asyncio.create_task(watch.run()), asyncio.create_task(self._show(run))]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, playing.cancel)
        try:
            await asyncio.wait([playing, *beside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            cpu = watch.cpu()
            for task in beside:
                task.cancel()
        was_interrupted = playing.cancelled()
        for task in [playing, *beside]:
            if task.done() and not task.cancelled():
                task.result()  # an error of ours is not hidden
        return self._result(model, prompts, run, watch, cpu, was_interrupted), run

    async def _show(self, run: Run) -> None:
        while True:
            self._on_progress("", run)
            await asyncio.sleep(SHOW_EVERY_S)

    async def _model(self) -> str:
        """The model to ask for; a server that lists none must be told."""
        whole = _Whole()
        url = self._server.url
        try:
            async with asyncio.timeout(min(self._options.timeout_s, MODELS_TIMEOUT_S)):
                await self._server.ask(self._server.get("/models"), whole)
        except TimeoutError:
            raise BenchError(f"{url} does not answer.", "Is it the right port?") from None
        except OSError as error:
            raise _unreachable(url, sentence_of(error)) from None
        if whole.status in (401, 403):
            raise self._unauthorized(whole.status)
        try:
            listed = msgspec.json.decode(whole.body, type=_Models) if whole.status == 200 else None
        except msgspec.DecodeError:
            listed = None
        if listed is None:
            if self._options.model is not None:
                return self._options.model  # some servers list nothing
            what = f"HTTP {whole.status}" if whole.status != 200 else "no list of models"
            if location := whole.headers.get("location"):
                what += f", a redirection to {location}"
            raise BenchError(
                f"{url}/models answered with {what}.",
                "Give the URL of the API, as OpenAI's clients take it (it often ends in /v1), and"
                " --model NAME where a server lists no models.",
            )
        self._models = [each.id for each in listed.data]
        if self._options.model is not None:
            return self._options.model
        if not self._models:
            raise BenchError(f"{url}/models lists no model.", "Say which with --model NAME.")
        return self._models[0]

    async def _calibrated(self, prompts: Prompts, asking: Asking) -> Prompts:
        """With the server's own count of tokens for few words and for many."""
        counts = []
        for num in (FEW_WORDS, MANY_WORDS):
            dice = random.Random(f"calibration {self._options.seed}")  # noqa: S311 - no secret
            body = asking.body(words(num, dice), 1)
            answer = await self._try(body, asking.model)
            if answer.usage is None:
                return prompts
            counts.append((num, answer.usage.prompt_tokens))
        return prompts.calibrated(counts[0], counts[1])

    async def _warm_up(self, prompts: Prompts, asking: Asking) -> None:
        """The first request alone, so that one error is told once; then the rest together."""
        options = self._options
        # Other prompts than the run's: what the server keeps of them must not help it.
        bodies = asking.bodies(prompts, options.seed + 1, options.warm_up)
        for body in itertools.islice(bodies, 1):
            await self._try(body, asking.model)
        at_once = options.load.concurrency or options.warm_up
        await Run(self._send, clock, options.timeout_s).play(
            Load(concurrency=min(at_once, options.warm_up)), bodies, options.seed
        )

    async def _try(self, body: bytes, model: str) -> Answer:
        """One request that must go well: raises BenchError where it does not."""
        answer = Answer(clock(), clock())
        await ask(self._send, body, answer, self._options.timeout_s)
        if answer.failure is None:
            return answer
        url = self._server.url + ROUTES[self._options.api]
        said = f": {answer.message}" if answer.message else "."
        if answer.failure == NO_CONNECTION:
            raise _unreachable(url, answer.message)
        if answer.status in (401, 403):
            raise self._unauthorized(answer.status)
        raise BenchError(
            f"The first request to {url} failed ({answer.failure}){said}", self._hint(answer, model)
        )

    def _hint(self, answer: Answer, model: str) -> str:
        message = answer.message.lower()
        if answer.status == 404 and self._models and model not in self._models:
            return f"It has: {', '.join(self._models[:10])}. Say which with --model."
        if answer.status == 404:
            return "Give the URL of the API (it often ends in /v1); see also --api and --model."
        if "stream_options" in message:
            return "--no-usage does not ask for usage."
        if "max_completion_tokens" in message:
            return "Add --field max_tokens=null --field max_completion_tokens=128."
        if "template" in message:
            return "--api completions asks without a chat template."
        if answer.failure == TIMEOUT:
            return "--timeout SECONDS waits longer."
        if answer.failure == NOT_EVENTS:
            return "Is it a server with OpenAI's API, and does it stream?"
        if answer.status == 400:
            return "" if answer.message else "--no-usage and --api completions ask for less."
        return "--warm-up 0 begins without a first request, and counts errors."

    def _unauthorized(self, status: int) -> BenchError:
        if self._options.api_key is None:
            return BenchError(
                f"The server wants an API key (HTTP {status}).", "Put it into PENSTOCK_API_KEY."
            )
        return BenchError(
            f"The server does not take this API key (HTTP {status}).",
            "It comes from --api-key or PENSTOCK_API_KEY.",
        )

    def _result(
        self,
        model: str,
        prompts: Prompts,
        run: Run,
        watch: Watch,
        cpu: float,
        was_interrupted: bool,
    ) -> Result:
        options = self._options
        client = client_figures(
            run.answers, watch.lags, cpu, watch.peak_cpu, is_open=options.load.rate is not None
        )
        found = figures(
            run.answers,
            run.ended - run.began,
            client,
            max_in_flight=run.max_in_flight,
            limits_s=options.limits_s,
        )
        messages = {k: hidden(v, options.api_key) for k, v in found.messages.items()}
        return Result(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            url=self._server.url,
            api=options.api,
            model=model,
            load=options.load,
            prompts=prompts.describe(),
            max_tokens=str(options.max_tokens),
            warm_up=options.warm_up,
            timeout_s=options.timeout_s,
            seed=options.seed,
            fields=options.fields,
            was_interrupted=was_interrupted,
            machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            versions={"penstock": __version__, "python": platform.python_version()},
            figures=msgspec.structs.replace(found, messages=messages),
            requests=rows(run.answers, run.began),
        )


def rows(answers: Sequence[Answer], began: float) -> list[Row]:
    """A row for each request, in the order in which they were due."""
    return [
        Row(
            at_s=answer.intended - began,
            late_s=answer.began - answer.intended,
            ttft_s=answer.ttft_s,
            e2e_s=answer.e2e_s,
            events=len(answer.arrivals),
            prompt_tokens=None if answer.usage is None else answer.usage.prompt_tokens,
            completion_tokens=None if answer.usage is None else answer.usage.completion_tokens,
            finish_reason=answer.finish_reason,
            error=answer.failure,
        )
        for answer in sorted(answers, key=lambda each: each.intended)
    ]


def hidden(text: str, api_key: str | None) -> str:
    """The text, of a server's, without the key: some servers say it back."""
    return text.replace(api_key, "[the key]") if api_key else text


def _unreachable(url: str, reason: str) -> BenchError:
    hint = "Is the server running, and is this its port?"
    if "certificate" in reason:
        hint = "SSL_CERT_FILE=authority.pem in the environment trusts an authority of your own."
    elif "TLS" in reason or "HTTP/1.1" in reason or "ended before" in reason:
        hint = "Is it http where you wrote https, or the other way round?"
    return BenchError(f"No answer from {url}: {reason}.", hint)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Whole:
    """A receiver for an answer in one piece."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    def piece(self, data: bytes, now: float) -> None:
        del now
        self.body += data

    def complete(self, now: float) -> None:
        del now
