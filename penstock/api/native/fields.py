"""The body of `POST /generate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import MAX_MESSAGES, MAX_TOKENS, WHOLE, StopStrings, Strict
from penstock.request import MAX_TIMEOUT_S, Message, Request, Sampling
from penstock.stream.registry import new_stream_id

MAX_MODEL_CHARACTERS = 256


class Turn(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(Strict):
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
    max_tokens: Annotated[int, WHOLE] = Field(
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
        ge=0,
        le=100_000,
        description="Sample from this many of the likeliest tokens; 0 samples from all.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        description="The same seed samples the same tokens. By default the seed is random.",
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

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise PydanticCustomError("missing", "Give a prompt, or messages.")
        if self.prompt is not None and self.messages is not None:
            raise PydanticCustomError("value_error", "Give either a prompt or messages, not both.")
        if self.resumable and not self.stream:
            raise PydanticCustomError("value_error", "Only a streamed answer can be resumable.")
        if (self.queue_events or self.status_events) and not self.stream:
            raise PydanticCustomError("value_error", "Only a streamed answer has events.")
        return self

    def to_request(self, model: str = "") -> Request:
        """Return the request for the engine's model `model`, with a new stream id."""
        messages = None
        if self.messages is not None:
            messages = tuple(Message(turn.role, turn.content) for turn in self.messages)
        return Request(
            id=new_stream_id(),
            model=model,
            max_tokens=self.max_tokens,
            prompt=self.prompt,
            messages=messages,
            sampling=Sampling(self.temperature, self.top_p, self.top_k, self.seed),
            stop=tuple(self.stop or ()),
        )
