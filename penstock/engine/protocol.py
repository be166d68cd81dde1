"""What an engine is: all that need be read to add one.

An engine turns a `Request` into pieces of text, pushed into the request's `Sink`. It knows nothing
of streams, readers or HTTP. It runs in a child process of its own (see `child`), so that its
crash, its interpreter lock and its threads are not the server's; the same protocol is spoken on
both sides of the process boundary, and `tests/engine/test_conformance.py` holds every engine to
it.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from penstock.events import TokenLogprob
from penstock.request import Request

EngineFinish = Literal["stop", "length"]
"""How an engine ends a request well: the model said so, or `max_tokens` or the context did."""


Feature = Literal[
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "json_schema",
    "tools",
    "reasoning_effort",
    "reasoning_switch",
]
"""What a request may ask for that not every engine can do, or not with every model: the names are
those of the fields of `Request` and `Sampling`. `reasoning_switch` is the effort "none",
`reasoning_effort` every other one."""


class ModelInfo(msgspec.Struct, frozen=True):
    """What an engine serves.

    `context_length` bounds prompt and answer of one request together, in tokens. `slots` is how
    many requests run at once (further ones wait in order), 0 where there is no bound. `supports`
    is what it can do beyond what every engine must; it is never asked for the rest.
    `vocabulary_size` bounds the ids of tokens; 0 means that every id is one. `advice` says, of what
    it cannot do as it was started, how it could: a sentence.
    """

    id: str
    engine: str
    context_length: int
    slots: int
    supports: tuple[Feature, ...] = ()
    vocabulary_size: int = 0
    advice: Mapping[Feature, str] = msgspec.field(default_factory=dict)


class Sink(Protocol):
    """Where an engine pushes one request's progress. No method blocks or raises.

    The order is `accepted`, `started`, any number of `delta`s (and, where the request has to do
    with them, `reasoning`s and `tool_call`s), then exactly one of `finish` and `fail`; `fail` may
    come at any point, also first, and `working` after `started`. After the request was cancelled
    the engine may still push what was under way; the sink ignores it.
    """

    def accepted(self, prompt_ids: tuple[int, ...]) -> None:
        """The prompt has these tokens and fits into the context; the request waits for a slot."""

    def started(self) -> None:
        """The request has a slot."""

    def working(self) -> None:
        """The engine is at the prompt, which may take minutes: it is alive."""

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """`num_tokens` more tokens were generated, which add `piece` (UTF-8, cut anywhere).

        `token_ids` names them all, or is empty where the engine does not know them. `logprobs` are
        for those tokens that have text, only where the request asks for them.
        """

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """The same, of what the model thinks: only where the request `separate_reasoning`."""

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        """`num_tokens` more tokens were generated, which begin a call (it has `call_id` and `name`)
        or add to the `arguments` of the one with this number: only where there are `tools`."""

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """The request is done after `completion_tokens` tokens, those before a continuation not
        counted."""

    def fail(self, code: str, message: str) -> None:
        """The request cannot be done, or not be brought to its end.

        `code` is one of `errors.PROBLEMS`, or a label of the engine's own (500); `message` is a
        sentence.
        """


def refusal(request: Request, prompt_tokens: int, context_length: int) -> tuple[str, str] | None:
    """The code and the sentence with which an engine refuses a prompt of this length, if it does:
    every engine in the same words."""
    room = context_length - prompt_tokens
    if room <= 0:
        return (
            "prompt_too_long",
            f"The prompt has {prompt_tokens} tokens; the model's context of {context_length} leaves"
            " no room for an answer. Shorten the prompt.",
        )
    if request.must_fit and request.max_tokens > room:
        return (
            "answer_too_long",
            f"The prompt has {prompt_tokens} tokens and the answer may have {request.max_tokens}:"
            f" more than the model's context of {context_length}. Shorten the prompt, or ask for"
            f" {room} tokens at most.",
        )
    return None


class Engine(Protocol):
    """A model, ready to be asked. Its constructor takes its own settings as keyword arguments."""

    async def start(self) -> ModelInfo:
        """Load the model. Raises `StartError` with the reason where it cannot be loaded."""

    async def stop(self) -> None:
        """End every request without a word and give everything back. Called once."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request, or the continuation of one (see `Request`), and return at once; `sink`
        is told of everything else."""

    def cancel(self, request_id: str) -> None:
        """Stop a request and free its slot at once. Unknown or ended ids are ignored."""
