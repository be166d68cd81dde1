"""Runs a whole benchmark: find the model, warm up, play the load, compute the figures.

In: `BenchOptions`. Out: a `Result`, which is also the content of the JSON file. Raises `BenchError`
with a hint if nothing can be measured.
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
from penstock.bench.answer import NO_CONNECTION, NOT_EVENTS, TIMEOUT, MeasuredAnswer
from penstock.bench.figures import Figures, client_figures, figures
from penstock.bench.http import HttpClient
from penstock.bench.load import Run, ask, sender, sentence_of
from penstock.bench.monitor import ClientMonitor
from penstock.bench.plan import ROUTES, Api, Lengths, Load, Prompts, RequestTemplate, words

SHOW_EVERY_S = 0.25
FEW_WORDS, MANY_WORDS = 16, 144
MODELS_TIMEOUT_S = 30.0

clock = time.perf_counter


class BenchError(Exception):
    """Nothing can be measured. The message says why; `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BenchOptions(msgspec.Struct, frozen=True):
    """The user's choices.

    `model`: None for the first model that the server lists. `warm_up`: the number of warm-up
    requests. `fields`: fields of the request's body. `limits_s`: the limits for goodput, in
    seconds, by name.
    """

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
    """A request of a run. Times in seconds.

    `at_s`: when the request was due, after the start of the run. `late_s`: how long after that the
    client began it.
    """

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
    """The result of a run: how it was done, its figures, and a row for each request."""

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
"""Called with a description of the current step, and a few times a second with the run."""


async def bench(options: BenchOptions, on_progress: OnProgress) -> tuple[Result, Run]:
    """Measure a server. Ctrl-C ends the run early, with the results so far.

    Raises BenchError if nothing can be measured, ValueError if the URL or the key is malformed.
    """
    http = HttpClient(options.url, options.api_key, clock)
    try:
        return await _Bench(options, http, on_progress).run()
    except BenchError as error:
        raise BenchError(hidden(str(error), options.api_key), error.hint) from None
    finally:
        await http.close()


class _Bench:
    def __init__(self, options: BenchOptions, http: HttpClient, on_progress: OnProgress) -> None:
        self._options = options
        self._http = http
        self._on_progress = on_progress
        self._send = sender(http, ROUTES[options.api])
        self._models: list[str] = []

    async def run(self) -> tuple[Result, Run]:
        options = self._options
        self._on_progress("finding the model", None)
        model = await self._model()
        template = RequestTemplate(
            options.api, model, options.max_tokens, options.include_usage, options.fields
        )
        prompts = options.prompts
        if options.warm_up:
            self._on_progress("warming up", None)
            if prompts.lengths is not None and options.include_usage:
                prompts = await self._calibrated(prompts, template)
            await self._warm_up(prompts, template)
        bodies = template.bodies(prompts, options.seed, options.load.num_requests)
        run = Run(self._send, clock, options.timeout_s)
        monitor = ClientMonitor(clock)
        playing = asyncio.create_task(run.play(options.load, bodies, options.seed))
        helpers = [asyncio.create_task(monitor.run()), asyncio.create_task(self._show(run))]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, playing.cancel)
        try:
            await asyncio.wait([playing, *helpers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            cpu = monitor.cpu()
            for task in helpers:
                task.cancel()
        was_interrupted = playing.cancelled()
        for task in [playing, *helpers]:
            if task.done() and not task.cancelled():
                task.result()  # raises the task's error
        return self._result(model, prompts, run, monitor, cpu, was_interrupted), run

    async def _show(self, run: Run) -> None:
        while True:
            self._on_progress("", run)
            await asyncio.sleep(SHOW_EVERY_S)

    async def _model(self) -> str:
        """Return the chosen model, or the first that the server lists.

        Raises BenchError if the server does not answer, or if there is no model to choose.
        """
        whole = _WholeResponse()
        url = self._http.url
        try:
            async with asyncio.timeout(min(self._options.timeout_s, MODELS_TIMEOUT_S)):
                await self._http.send(self._http.get("/models"), whole)
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
                return self._options.model  # some servers do not list their models
            said = f"HTTP {whole.status}" if whole.status != 200 else "no list of models"
            if location := whole.headers.get("location"):
                said += f", a redirect to {location}"
            raise BenchError(
                f"{url}/models answered with {said}.",
                "Give the base URL that OpenAI's clients take (it often ends in /v1). Add"
                " --model NAME if the server lists no models.",
            )
        self._models = [each.id for each in listed.data]
        if self._options.model is not None:
            return self._options.model
        if not self._models:
            raise BenchError(f"{url}/models lists no model.", "Choose one with --model NAME.")
        return self._models[0]

    async def _calibrated(self, prompts: Prompts, template: RequestTemplate) -> Prompts:
        """Calibrate prompts with the server's token counts for a short and a long prompt."""
        counts = []
        for num in (FEW_WORDS, MANY_WORDS):
            dice = random.Random(f"calibration {self._options.seed}")  # noqa: S311 - no secret
            body = template.body(words(num, dice), 1)
            answer = await self._try(body, template.model)
            if answer.usage is None:
                return prompts
            counts.append((num, answer.usage.prompt_tokens))
        return prompts.calibrated(counts[0], counts[1])

    async def _warm_up(self, prompts: Prompts, template: RequestTemplate) -> None:
        """Send the first request alone, to report its error once, and then the others together."""
        options = self._options
        # Other prompts than the run's, so that the server's prefix cache does not help it.
        bodies = template.bodies(prompts, options.seed + 1, options.warm_up)
        for body in itertools.islice(bodies, 1):
            await self._try(body, template.model)
        at_once = options.load.concurrency or options.warm_up
        await Run(self._send, clock, options.timeout_s).play(
            Load(concurrency=min(at_once, options.warm_up)), bodies, options.seed
        )

    async def _try(self, body: bytes, model: str) -> MeasuredAnswer:
        """Send one request and return its answer. Raises BenchError if it fails."""
        answer = MeasuredAnswer(clock(), clock())
        await ask(self._send, body, answer, self._options.timeout_s)
        if answer.failure is None:
            return answer
        url = self._http.url + ROUTES[self._options.api]
        said = f": {answer.message}" if answer.message else "."
        if answer.failure == NO_CONNECTION:
            raise _unreachable(url, answer.message)
        if answer.status in (401, 403):
            raise self._unauthorized(answer.status)
        raise BenchError(
            f"The first request to {url} failed ({answer.failure}){said}", self._hint(answer, model)
        )

    def _hint(self, answer: MeasuredAnswer, model: str) -> str:
        message = answer.message.lower()
        if answer.status == 404 and self._models and model not in self._models:
            return f"The server has: {', '.join(self._models[:10])}. Choose one with --model."
        if answer.status == 404:
            return "Give the base URL of the API (it often ends in /v1). Check --api and --model."
        if "stream_options" in message:
            return "Add --no-usage to leave stream_options out."
        if "max_completion_tokens" in message:
            return "Add --field max_tokens=null --field max_completion_tokens=128."
        if "template" in message:
            return "Add --api completions, which needs no chat template."
        if answer.failure == TIMEOUT:
            return "Add --timeout SECONDS to wait longer."
        if answer.failure == NOT_EVENTS:
            return "Does this server speak OpenAI's API, and does it stream?"
        if answer.status == 400:
            return "" if answer.message else "Try --no-usage or --api completions."
        return "Add --warm-up 0 to start without a first request and count its errors."

    def _unauthorized(self, status: int) -> BenchError:
        if self._options.api_key is None:
            return BenchError(
                f"The server requires an API key (HTTP {status}).", "Put it into PENSTOCK_API_KEY."
            )
        return BenchError(
            f"The server rejected the API key (HTTP {status}).",
            "Check --api-key or PENSTOCK_API_KEY.",
        )

    def _result(
        self,
        model: str,
        prompts: Prompts,
        run: Run,
        monitor: ClientMonitor,
        cpu: float,
        was_interrupted: bool,
    ) -> Result:
        options = self._options
        client = client_figures(
            run.answers, monitor.lags, cpu, monitor.peak_cpu, is_open=options.load.rate is not None
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
            url=self._http.url,
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


def rows(answers: Sequence[MeasuredAnswer], began: float) -> list[Row]:
    """Return a row for each request, in the order in which they were due."""
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
    """Remove the API key from a server's text: some servers repeat it in error messages."""
    return text.replace(api_key, "[the key]") if api_key else text


def _unreachable(url: str, reason: str) -> BenchError:
    hint = "Is the server running, and is this its port?"
    if "certificate" in reason:
        hint = "To trust your own authority, set SSL_CERT_FILE=authority.pem."
    elif "TLS" in reason or "HTTP/1.1" in reason or "ended before" in reason:
        hint = "Is it http instead of https, or https instead of http?"
    return BenchError(f"No answer from {url}: {reason}.", hint)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _WholeResponse:
    """A receiver that collects a response."""

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
