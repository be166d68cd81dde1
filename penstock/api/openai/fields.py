"""The fields that completions and chats share, and how a request's body is parsed.

In: a JSON object. Out: a model of the request, which turns itself into the `Request`s for the
engine, or InvalidFields. Every parameter of OpenAI's is supported, refused by name, or ignored
because no answer depends on it; docs/compatibility.md lists them. An unknown name is ignored.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from penstock.api.extras import Extras
from penstock.api.fields import (
    LEFT_OUT,
    MAX_TOKENS,
    WHOLE,
    ZERO_IS_UNSET,
    StopStrings,
    Strict,
    misplaced,
    parse,
)
from penstock.api.refusals import REFUSED, Refusal, without_refused
from penstock.api.sampling import AdditivePenalty, LogitBias, check_token_ids
from penstock.api.serving import left_out
from penstock.api.tolerance import Notes, notes_of
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import Request, Sampling
from penstock.stream.registry import new_stream_id

MAX_CHOICES_PER_PROMPT = 8
NUM_SEEDS = 2**63


class StreamOptions(Strict):
    """Optional parts of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[bool | None, LEFT_OUT] = None


def unlimited(value: object, info: ValidationInfo) -> object:
    """Return the largest limit for -1, which means no limit to llama.cpp."""
    return MAX_TOKENS if value == -1 and not notes_of(info.context).strict else value


TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE, BeforeValidator(unlimited)]
"""A limit of an answer's tokens. -1 means all the room in the context, as for llama.cpp."""


class Common(Extras):
    """The fields of both routes. `top_k` is Penstock's own."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[
        Annotated[int, WHOLE, Field(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None, ZERO_IS_UNSET
    ] = None
    max_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-1, le=NUM_SEEDS - 1)] | None = None
    stop: StopStrings | None = None
    presence_penalty: AdditivePenalty | None = None
    frequency_penalty: AdditivePenalty | None = None
    logit_bias: LogitBias | None = None
    user: Annotated[str | None, LEFT_OUT] = None
    _notes: Notes = PrivateAttr(default_factory=Notes)

    @property
    def num_choices(self) -> int:
        """Return the number of answers to each prompt."""
        return self.n or 1

    @property
    @abstractmethod
    def top_logprobs_asked(self) -> int | None:
        """Return the value for `Request.top_logprobs`."""

    @property
    @abstractmethod
    def max_tokens_asked(self) -> int | None:
        """Return the token limit of an answer; None means all the room in the context."""

    @abstractmethod
    def prompts(self) -> list[dict[str, Any]]:
        """Return, for each prompt, the fields of `Request` that only this route sets."""

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [
            ("presence_penalty", self.presence_penalty, "presence_penalty"),
            ("frequency_penalty", self.frequency_penalty, "frequency_penalty"),
            ("logit_bias", self.logit_bias, "logit_bias"),
            ("logprobs", self.top_logprobs_asked is not None, "top_logprobs"),
            *self.extra_needs(),
        ]

    def features(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        return {name: feature for name, is_used, feature in self.needs() if is_used}

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidFields if the model's engine lacks a feature or a token.

        A field that only hints at a feature is left out and noted.
        """
        for name in left_out(self.features(), info, self._notes):
            setattr(self, name, None)
        check_token_ids("logit_bias", self.logit_bias or (), info)
        check_token_ids("stop_token_ids", self.stop_token_ids or (), info)

    def requests(self, info: ModelInfo) -> list[Request]:
        """Return a request for each choice, the choices of a prompt together.

        A token limit is cut to the room in the context; if the server is strict, it must fit.
        """
        asked, strict = self.max_tokens_asked, self._notes.strict
        limit = asked if strict and asked else min(asked or MAX_TOKENS, info.context_length)
        shared: dict[str, Any] = {
            "max_tokens": limit,
            "must_fit": strict and asked is not None,
            "stop": tuple(self.stop or ()),
            "top_logprobs": self.top_logprobs_asked,
            "lax_schema": self.has_lax_schema and not strict,
            **self.extra_fields(),
        }
        return [
            Request(
                id=new_stream_id(),
                model=info.id,
                sampling=self._sampling(number, info.sampling),
                **prompt,
                **shared,
            )
            for prompt in self.prompts()
            for number in range(self.num_choices)
        ]

    def _sampling(self, number: int, default: Sampling) -> Sampling:
        """Return the sampling of a prompt's choice `number`: each choice has its own seed.

        `default` is the model's own sampling.
        """
        is_random = self.seed in (None, -1)
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            top_k=default.top_k if self.top_k is None else max(0, self.top_k),
            seed=None if is_random else ((self.seed or 0) + number) % NUM_SEEDS,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            **self.extra_sampling(default),
        )

    @model_validator(mode="after")
    def _stream_options_are_for_streams(self, info: ValidationInfo) -> "Common":
        options, notes = self.stream_options, notes_of(info.context)
        if options is None:
            return self
        if not self.stream and notes.strict:
            raise misplaced("stream_options", 'Set "stream" to true to use stream_options.')
        if options.continuous_usage_stats and not options.include_usage:
            refusal = 'Set "include_usage" to true to use continuous_usage_stats.'
            notes.ignore_or(
                misplaced("stream_options", refusal), "stream_options.continuous_usage_stats"
            )
        return self


Asked = TypeVar("Asked", bound=Common)


def parse_fields(
    model: type[Asked], body: dict[str, Any], refused: Mapping[str, Refusal], notes: Notes
) -> Asked:
    """Return the body as this model. Raises InvalidFields.

    `refused` has the parameters of this route that the server does not support. A value that asks
    for nothing is accepted.
    """
    asked = parse(model, without_refused(body, {**REFUSED, **refused}, notes), notes)
    asked._notes = notes
    return asked
