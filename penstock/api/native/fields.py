"""The body of `POST /generate`."""

from typing import Annotated, Any, Literal, Self

from msgspec.structs import replace
from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.extras import Extras, ReasoningEffort, TemplateExtras
from penstock.api.fields import (
    MAX_MESSAGES,
    MAX_TOKENS,
    MEANINGFUL_FALSE,
    StopStrings,
    Strict,
    misplaced,
    parse,
)
from penstock.api.native.frames import DetailedForm, NativeForm
from penstock.api.refusals import REFUSED, Refusal, without_refused
from penstock.api.sampling import AdditivePenalty, LogitBias, check_token_ids
from penstock.api.serving import left_out
from penstock.api.tolerance import Notes, is_neutral, notes_of
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import MAX_TIMEOUT_S, Gap, Message, Request, Sampling
from penstock.stream.registry import new_stream_id

MAX_MODEL_CHARACTERS = 256


class Turn(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(TemplateExtras):
    """A prompt to continue or a conversation to answer, and how to generate the answer."""

    prompt: str | None = Field(default=None, description="Text to continue.")
    messages: (
        Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None
    ) = Field(
        default=None,
        description="A conversation to answer, instead of `prompt`. The model's own chat template"
        " renders it.",
    )
    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL_CHARACTERS)] | None = Field(
        default=None,
        description="The name of a model of `/v1/models`. Without it, the first one answers.",
    )
    max_tokens: int = Field(
        default=100,
        ge=1,
        le=MAX_TOKENS,
        description="Longest answer, in tokens. It is cut to the room in the model's context.",
    )
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="0 always takes the likeliest token."
    )
    top_p: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Sample from the likeliest tokens that together have this probability.",
    )
    top_k: int = Field(
        default=40,
        ge=-1,
        le=100_000,
        description="Sample from this many of the likeliest tokens; 0 and -1 sample from all.",
    )
    seed: int | None = Field(
        default=None,
        ge=-1,
        le=2**63 - 1,
        description="The same seed samples the same tokens. By default, and with -1, the seed is"
        " random.",
    )
    presence_penalty: AdditivePenalty | None = Field(
        default=None, description="Lowers the logits of tokens that the text already contains."
    )
    frequency_penalty: AdditivePenalty | None = Field(
        default=None,
        description="Lowers the logits of tokens that the text already contains, once per"
        " occurrence.",
    )
    logit_bias: LogitBias | None = Field(
        default=None, description="Numbers from -100 to 100 to add to the logits of token ids."
    )
    logprobs: bool | None = Field(
        default=None, description="Each token comes with its log probability."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None,
        description="With `logprobs`: this many of the likeliest tokens at each token's place.",
    )
    reasoning_effort: ReasoningEffort | None = Field(
        default=None,
        description="`none` turns the model's reasoning off; the model's chat template gets other"
        " values.",
    )
    suffix: str | None = Field(
        default=None, description="The answer fills the gap between `prompt` and this text."
    )
    stop: StopStrings | None = Field(
        default=None, description="The answer ends before the first of these strings."
    )
    stream: bool = Field(
        default=True, description="Answer with Server-Sent Events; false: with one JSON object."
    )
    resumable: bool = Field(
        default=False,
        description="The stream continues when its connection is cut; GET /streams/{id} reads on.",
    )
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = Field(
        default=None,
        description="Seconds, including the wait in the queue, after which the answer ends with"
        " the finish reason deadline.",
    )
    queue_events: bool = Field(
        default=False,
        description="While the stream waits in the queue, report its place in events named queue"
        " instead of comments.",
    )
    status_events: bool = Field(
        default=False,
        description="Report what happens to the stream (its place in the queue, the engine's"
        " restarts) in events named status.",
    )

    @property
    def form(self) -> NativeForm:
        """Return how the answer is shown."""
        shown = (bool(self.logprobs), bool(self.return_token_ids), self.prompt_logprobs is not None)
        return DetailedForm(*shown) if any(shown) else NativeForm()

    def to_request(self, model: str = "") -> Request:
        """Return the request for the engine's model `model`, with a new stream id.

        It lacks what only some engines support.
        """
        messages = None
        if self.messages is not None:
            messages = tuple(Message(turn.role, turn.content) for turn in self.messages)
        return Request(
            id=new_stream_id(),
            model=model,
            max_tokens=self.max_tokens,
            prompt=self.prompt,
            messages=messages,
            sampling=Sampling(
                self.temperature,
                self.top_p,
                0 if self.top_k == -1 else self.top_k,
                None if self.seed == -1 else self.seed,
            ),
            stop=tuple(self.stop) if self.stop else (),
        )

    def to_whole_request(self, model: str, info: ModelInfo, notes: Notes) -> Request:
        """Return the request with everything. Raises InvalidFields.

        The model's engine may lack a feature or a token. A field that only hints is left out.
        """
        for name in left_out(self._features(), info, notes):
            setattr(self, name, None)
        check_token_ids("logit_bias", self.logit_bias or (), info)
        check_token_ids("stop_token_ids", self.stop_token_ids or (), info)
        plain = self.to_request(model)
        return replace(
            plain,
            sampling=replace(
                plain.sampling,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                logit_bias=tuple((self.logit_bias or {}).items()),
                **self.extra_sampling(plain.sampling),
            ),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            reasoning_effort=self.effort_of(self.reasoning_effort),
            gap=Gap(self.suffix) if self.suffix else None,
            lax_schema=self.has_lax_schema and not notes.strict,
            **self.extra_fields(),
        )

    def _features(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        effort = self.reasoning_effort
        needs: list[tuple[str, object, Feature]] = [
            ("presence_penalty", self.presence_penalty, "presence_penalty"),
            ("frequency_penalty", self.frequency_penalty, "frequency_penalty"),
            ("logit_bias", self.logit_bias, "logit_bias"),
            ("logprobs", self.logprobs, "top_logprobs"),
            ("suffix", self.suffix, "gap"),
            ("reasoning_effort", effort == "none", "reasoning_switch"),
            ("reasoning_effort", effort not in (None, "none"), "reasoning_effort"),
            *self.extra_needs(),
        ]
        return {name: feature for name, is_used, feature in needs if is_used}

    @model_validator(mode="after")
    def _fields_agree(self, info: ValidationInfo) -> Self:
        if self.prompt is None and self.messages is None:
            raise PydanticCustomError("missing", "Give a prompt, or messages.")
        if self.messages is not None and self.prompt == "":
            self.prompt = None
        if self.prompt is not None and self.messages is not None:
            raise PydanticCustomError("value_error", "Give either a prompt or messages, not both.")
        if self.resumable and not self.stream:
            raise PydanticCustomError("value_error", "Only a streamed answer can be resumable.")
        if (self.queue_events or self.status_events) and not self.stream:
            raise PydanticCustomError("value_error", "Only a streamed answer has events.")
        if self.top_logprobs and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        if self.suffix and self.prompt is None:
            raise misplaced(
                "suffix", "Leave out suffix, or give the text before the gap as prompt."
            )
        if self.messages is None and not self.__pydantic_fields_set__.isdisjoint(OF_CHATS):
            self._leave_out_of_chats(notes_of(info.context))
        return self

    def _leave_out_of_chats(self, notes: Notes) -> None:
        """Leave out what has no effect without messages, and note it."""
        for name in sorted(self.model_fields_set & OF_CHATS):
            value = getattr(self, name)
            if not is_neutral(value) or (value is False and name in MEANINGFUL_FALSE):
                notes.ignore_or(misplaced(name, f"{name} is for messages. Leave it out."), name)
            setattr(self, name, None)


OF_CHATS = {"reasoning_effort", *TemplateExtras.model_fields} - set(Extras.model_fields)
"""The fields that need messages."""
OPTIONAL = {
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "suffix",
    "reasoning_effort",
    *TemplateExtras.model_fields,
}
"""The fields that only some engines support."""

_AS_IT_IS = (
    "The native API shows the model's text as it is, with its reasoning. Leave it out, or use"
    " /v1/chat/completions."
)
_BUDGET = Refusal(_AS_IT_IS, neutral=(-1,), meaningful=(0,))
_TOOLS = Refusal("The native API has no tools. Use /v1/chat/completions.")
# Parameters of other APIs that change the answer, but that this API cannot do.
REFUSED_NATIVE = {
    **REFUSED,
    "include_reasoning": Refusal(_AS_IT_IS, neutral=(True,), meaningful=(False,)),
    "thinking_budget": _BUDGET,
    "thinking_token_budget": _BUDGET,
    "thinking_budget_tokens": _BUDGET,
    "reasoning_budget_tokens": _BUDGET,
    "tools": _TOOLS,
    "functions": _TOOLS,
}
_REFUSED_NAMES = frozenset(REFUSED_NATIVE)


def parse_generate(body: dict[str, Any], notes: Notes) -> GenerateRequest:
    """Return the fields of a body, and note those left out. Raises InvalidFields."""
    if not _REFUSED_NAMES.isdisjoint(body):
        body = without_refused(body, REFUSED_NATIVE, notes)
    return parse(GenerateRequest, body, notes)
