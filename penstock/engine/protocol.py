"""The protocol between the server and its engines: all you need to read to add an engine.

An engine turns a `Request` into pieces of text and pushes them into the request's `Sink`. It knows
nothing of streams, readers or HTTP. It runs in a child process (see `process/supervisor.py`), so
its crashes, its interpreter lock and its threads do not affect the server. Requests and sinks are
the same on both sides of the process boundary. `tests/engine/test_conformance.py` tests every
engine against this protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from penstock.events import PromptLogprobs, TokenLogprob
from penstock.request import Request, Sampling

EngineFinish = Literal["stop", "length"]
"""Why an engine finished a request: "stop" if the model ended the answer, "length" if `max_tokens`
or the context did."""


Feature = Literal[
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "json_schema",
    "tools",
    "tools_with_schema",
    "reasoning_effort",
    "reasoning_switch",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "grammar",
    "structural_tag",
    "thinking_budget",
    "show_special_tokens",
    "use_cache",
    "template_kwargs",
    "last_message",
    "return_token_ids",
    "prompt_logprobs",
    "show_prompt",
    "add_special_tokens",
    "gap",
]
"""A field of `Request` or `Sampling` that only some engines or models support.

`reasoning_switch` is the `reasoning_effort` "none"; `reasoning_effort` is every other effort.
`tools_with_schema` is `tools` together with `json_schema`. `structural_tag` is that kind of
`grammar`; `grammar` is every other kind. `last_message` is `continue_last_message` and
`open_answer`. `add_special_tokens` is the value False."""


class ModelFacts(msgspec.Struct, frozen=True):
    """What an engine knows of the model's file, for clients that show it.

    `architecture` is the model's family ("llama"), `num_bytes` the size of its weights. An engine
    that does not know a fact leaves it out: 0 or "".
    """

    architecture: str = ""
    num_parameters: int = 0
    num_bytes: int = 0
    chat_template: str = ""


class UpstreamFacts(msgspec.Struct, frozen=True):
    """What another server that answers for an engine is, without its address.

    `kind` is its software ("vllm"). `level` is "ids" if it takes and returns token ids, so that
    counts are exact and answers continue exactly after a failure, else "text".
    """

    kind: str
    level: str
    model: str
    context_length: int
    slots: int


UPSTREAM_OUTCOMES = ("answered", "failed", "refused", "cancelled")
"""The ends that an answer of an upstream can have. They are fields of `UpstreamState`."""

UPSTREAM_COUNTS = (*UPSTREAM_OUTCOMES, "failures", "failovers")
"""Everything that is counted of an upstream: fields of `UpstreamState`."""


class UpstreamState(msgspec.Struct, frozen=True):
    """The state of an upstream of a remote engine, and its counts since the engine began.

    `name` is its address without a key, and `model` the name here of the model that it serves, ""
    until that is known. `is_up` is False while it is left out. `running` answers are under way. Of
    the answers that it was asked for, `answered` ended well, `failed` failed, `refused` were
    refused and `cancelled` were not wanted any more. `failures` counts all failures, also those of
    looks and of tokenizing. `failovers` counts the answers that went on elsewhere after it failed.
    The last look took `look_time` seconds.
    """

    name: str
    model: str
    is_up: bool
    running: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    failures: int = 0
    failovers: int = 0
    look_time: float = 0.0


class ModelInfo(msgspec.Struct, frozen=True):
    """The model that an engine serves, and what it can do.

    `context_length` bounds the prompt and the answer of a request together, in tokens. `slots` is
    the number of requests that run at once, 0 if there is no bound; other requests wait in order.
    `supports` names the optional features that work; the engine never receives a request for
    another one. `vocabulary_size` bounds the token ids; 0 means any id is valid. `advice` contains
    a sentence for each unsupported feature that would work if the engine were started differently.
    `sampling` is the model's own, or the engine's where the model's files say nothing: for requests
    that do not choose. `facts` describe the model's file. `upstreams` are the servers that answer
    for a remote engine now. `models` are the other models of an engine
    that has several; a request names one in `Request.model`. `slots` then is for all together, and
    `own_slots` bounds the running requests of this model: None is no bound, and 0 means that
    requests for it must wait.
    `cache_tokens` is the number of tokens for which the KV cache has room, those of all requests
    together; 0 if it is not known. `vocabulary` tells two vocabularies of the same size apart, if
    the engine may have either: an answer goes on only with the same one.
    """

    id: str
    engine: str
    context_length: int
    slots: int
    supports: tuple[Feature, ...] = ()
    vocabulary_size: int = 0
    advice: Mapping[Feature, str] = msgspec.field(default_factory=dict)
    sampling: Sampling = Sampling()
    facts: ModelFacts = ModelFacts()
    upstreams: tuple[UpstreamFacts, ...] = ()
    models: tuple["ModelInfo", ...] = ()
    cache_tokens: int = 0
    own_slots: int | None = None
    vocabulary: str = ""

    def of(self, name: str) -> "ModelInfo":
        """Return the information of the engine's model `name`; this model's if there is none."""
        for each in self.models:
            if each.id == name:
                return each
        return self


class Sink(Protocol):
    """The receiver of one request's progress. No method blocks or raises.

    An engine calls `accepted`, `started`, any number of `delta`s (and `reasoning`s or `tool_call`s,
    if the request asks for them), then exactly one of `finish` and `fail`. It may call `fail` at
    any point, also first, and `working` at any point after `started`. After a request is cancelled,
    the engine may still push what it was working on; the sink ignores it.

    Every call but `accepted`, `started` and `fail` shows that the engine itself has got on.
    """

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        """The prompt has these tokens and fits into the context; the request waits for a slot.

        `notes` names what was changed so that the model can be asked: `messages (merged)`.
        """

    def started(self) -> None:
        """The request has a slot."""

    def working(self, num_read: int = 0) -> None:
        """The engine is alive and reads the prompt, which may take minutes.

        It has read `num_read` tokens of it; 0 means that it does not tell.
        """

    def interrupted(self, *, waits: bool) -> None:
        """The server that the engine asked for the answer failed, and another one goes on with it.

        With `waits` there is no other now: the request waits for one. Called at any point, and only
        by engines that ask other servers.
        """

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        """The engine has `num_tokens` of the prompt's tokens in its cache.

        Called before the first delta; later calls are ignored. Without a call the number is 0.

        An engine that tells the prompt's tokens to `accepted` not at all, or not for certain, tells
        their number here as soon as it knows it: `prompt_tokens`, perhaps only before `finish`.
        """

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        """The prompt's tokens have these log probabilities.

        Called once, before the first delta, and only if the request has `prompt_logprobs`.
        """

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """`num_tokens` more tokens were generated; they add `piece` (UTF-8, cut anywhere).

        `token_ids` has the id of every token, or is empty if the engine does not know all of them.
        `logprobs` has an entry for each token that has text, if the request asks for them. The only
        delta of a request with `show_prompt` is the prompt's text, with no tokens, before `finish`.
        """

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """`num_tokens` more tokens were generated; they add `text` to the model's reasoning.

        Called only if the request has `separate_reasoning`.
        """

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        """`num_tokens` more tokens were generated; they add `arguments` to tool call `number`.

        The first part of a call, and only the first, has a `call_id` and a `name`. Called only if
        the request has `tools`.
        """

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """The request ended after `completion_tokens` tokens.

        The count of a continuation leaves out the tokens generated before it.
        """

    def fail(self, code: str, message: str) -> None:
        """The engine refuses the request, or cannot finish it.

        `code` is one of `errors.PROBLEMS`, or a label of the engine's own, whose HTTP status is
        500. `message` is a sentence.
        """


class Addition(msgspec.Struct, array_like=True, gc=False, tag="delta"):
    """A call of `Sink.delta`, as a value: what a step added to the request `request_id`."""

    request_id: str
    piece: Any  # str or bytes; msgspec does not support that union
    num_tokens: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class Engine(Protocol):
    """An engine inside its process. Its constructor takes its parameters as keyword arguments."""

    async def start(self) -> ModelInfo:
        """Load the model. Raises StartError with the reason if it cannot be loaded."""

    async def stop(self) -> None:
        """Drop every request without telling its sink and release all resources. Called once."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request or a continuation (see `Request`) and return at once.

        `sink` is told everything else, also that the engine refuses the request.
        """

    def cancel(self, request_id: str, stopped: Callable[[], None]) -> None:
        """Stop a request. Call `stopped` as soon as the engine works on it no more.

        Until then the request has its slot. An unknown or ended request has stopped already.
        """

    async def check(self, *, tries: bool) -> None:
        """Return if the engine itself answers, without a slot; raise if it cannot answer any more.

        While the engine computes, the answer may take as long as a step; an engine that hangs never
        answers. With `tries` every recent request has failed: then also generate a token, and raise
        if there is none. The engine's process ends if this method raises.
        """


@runtime_checkable
class PausingEngine(Protocol):
    """An engine that sometimes can take no new requests, although it lives.

    It calls `on_pause` with True, and with False when it takes requests again: meanwhile they wait
    in the server's queue. Requests that come in between must wait in the engine.
    """

    on_pause: Callable[[bool], None]


@runtime_checkable
class ChangingEngine(Protocol):
    """An engine whose models, or their slots, change after its start. It calls `on_info` then."""

    on_info: Callable[[ModelInfo], None]


@runtime_checkable
class ReportingEngine(Protocol):
    """An engine that asks other servers. It calls `on_upstreams` with the state of all of them: at
    once when one goes or comes back, and otherwise at most once a second."""

    on_upstreams: Callable[[tuple[UpstreamState, ...]], None]


EngineState = Literal["loading", "ready", "down", "stopped"]
"""The states of an engine. Only a "ready" engine takes requests; a "down" engine has died and is
being restarted."""


class LosableSink(Sink, Protocol):
    """A sink in the server's process, which outlives the engine's process."""

    def lost(self) -> None:
        """The engine's process died with the request in it.

        Nothing more will come, but the request may be submitted again. Replaces `finish` and
        `fail`.
        """

    def silent(self, seconds: float, limit: float) -> None:
        """The engine has given no sign of life for so many seconds; after `limit` it is killed.

        With 0 seconds, it gives signs again.
        """


Tell = Callable[[Any], None]
"""Tells a sink about something other than an `Addition`."""

Deliver = Callable[[Sequence[Any], Mapping[str, LosableSink], Tell], None]
"""Delivers a batch, in order: each `Addition` to the sink of its request, the rest with `Tell`.

A request without a sink has ended. This is the seam for everything between an engine's batch and
its sinks: the straight path (see `stream.straight`), or a store that must have the batch first.
"""


class EngineHandle(Protocol):
    """An engine as the server sees it: an `Engine` that is restarted when it dies.

    `catalog.create_engine` makes one.
    """

    @property
    def state(self) -> EngineState:
        """The engine's state; requests can be submitted only while it is "ready"."""

    @property
    def info(self) -> ModelInfo | None:
        """The model's information, or None until the engine is ready for the first time."""

    @property
    def num_restarts(self) -> int:
        """How often the engine has come back after it died."""

    @property
    def num_stopping(self) -> int:
        """How many cancelled requests the engine still works on. They keep their slots."""

    def num_stopping_of(self, model: str) -> int:
        """Return how many cancelled requests for a model (`ModelInfo.id`) the engine still runs."""

    @property
    def is_congested(self) -> bool:
        """Return True while the engine does not read what it was sent, or asks for no new requests
        (see `PausingEngine`); submit no more then."""

    @property
    def upstreams(self) -> tuple[UpstreamState, ...]:
        """The servers that answer for the engine, as it last told. Counts never go back."""

    on_room: Callable[[], None]
    """Called when the engine has let go of a cancelled request, or reads again."""

    on_info: Callable[[ModelInfo], None]
    """Called when `info` has changed, and before `on_room`."""

    async def start(self) -> ModelInfo:
        """Load the model. Raises StartError if it cannot be loaded."""

    async def stop(self) -> None:
        """End the engine and drop every request."""

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""

    def submit(self, request: Request, sink: LosableSink) -> None:
        """Hand over a request and return at once.

        Raises EngineUnavailable unless `state` is "ready".
        """

    def cancel(self, request_id: str, model: str = "") -> None:
        """Stop a request for `model`; its sink is told nothing more.

        `model` is `Request.model`. Unknown and ended ids are ignored.
        """
