"""The bodies of `/v1/completions` and `/v1/chat/completions`: what may be asked, and what not.

In: an object of JSON. Out: what was asked in the words of the system, or InvalidFields. Each of
OpenAI's parameters is taken, or refused by name, or ignored because no answer depends on it:
docs/compatibility.md lists them all. A name that is none of them is refused, too.
"""

import json
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    JsonValue,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.api.fields import MAX_MESSAGES, StopStrings, Strict, invalid_fields
from penstock.api.openai.tools import Schema, ToolChoice, Tools, check_tools, tool_fields
from penstock.api.openai.turns import ChatTurn, check_calls_are_answered_for, misplaced
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import FieldError, InvalidFields
from penstock.request import Request, Sampling
from penstock.stream.registry import new_stream_id

MAX_CHOICES_PER_PROMPT = 8
MAX_PROMPTS = 16
MAX_LOGIT_BIASES = 300
MAX_TOKEN_ID = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16
NUM_SEEDS = 2**63

# OpenAI's, and not for us: refused by name, unless they say nothing (null).
REFUSED_CHAT = frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "moderation",
        "prediction",
        "verbosity",
        "web_search_options",
    }
)
REFUSED_COMPLETION = frozenset({"suffix"})


class StreamOptions(Strict):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Strict):
    """A schema with its name. It is kept to whether it is `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Text, or JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise PydanticCustomError("value_error", "json_schema goes with the type json_schema.")
        return self

    def schema_text(self) -> str | None:
        """The schema that the answer keeps to."""
        if self.type == "text":
            return None
        if self.json_schema is None:
            return '{"type": "object"}'
        return json.dumps(self.json_schema.schema_)


def _bias_of(value: object) -> dict[int, float]:
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "Give an object: ids of tokens and their biases.")
    if len(value) > MAX_LOGIT_BIASES:
        raise PydanticCustomError("too_long", f"Give {MAX_LOGIT_BIASES} tokens at most.")
    biases = {}
    for name, bias in value.items():
        if not (name.isascii() and name.isdigit() and len(name) < 11):
            raise PydanticCustomError("value_error", "A name here is a token's id, a number.")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError("float_type", "A token's bias is a number.")
        if not -100 <= bias <= 100:
            raise PydanticCustomError("less_than_equal", "A token's bias is from -100 to 100.")
        biases[int(name)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float], PlainValidator(_bias_of, json_schema_input_type=dict[str, float])
]


class Common(Strict):
    """What both may ask for. `top_k` is ours."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=100_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=NUM_SEEDS - 1)] | None = None
    stop: StopStrings | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    # No answer depends on it.
    user: str | None = None

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    @abstractmethod
    def top_logprobs_asked(self) -> int | None:
        """What `Request.top_logprobs` is."""

    @property
    @abstractmethod
    def max_tokens_asked(self) -> int | None:
        """The longest answer, None for whatever fits."""

    @abstractmethod
    def prompts(self) -> list[dict[str, Any]]:
        """The fields of `Request` that say what to go on from, for each prompt."""

    def features(self) -> dict[str, Feature]:
        """The fields that were given to some effect and need more than every engine can, with what
        they need."""
        needs: list[tuple[str, object, Feature]] = [
            ("presence_penalty", self.presence_penalty, "presence_penalty"),
            ("frequency_penalty", self.frequency_penalty, "frequency_penalty"),
            ("logit_bias", self.logit_bias, "logit_bias"),
            ("logprobs", self.top_logprobs_asked is not None, "top_logprobs"),
            ("response_format", self.schema_text() is not None, "json_schema"),
            *self.features_of_chats(),
        ]
        return {name: feature for name, value, feature in needs if value}

    def features_of_chats(self) -> list[tuple[str, object, Feature]]:
        """What of these only a chat has."""
        return []

    def schema_text(self) -> str | None:
        """The JSON schema that the answer keeps to."""
        return None

    def check(self, info: ModelInfo) -> None:
        """Raises InvalidFields for what this model's engine cannot do."""
        unknown = f"The {info.engine} engine does not have it with this model."
        lacking = [
            FieldError(name, "unsupported_field", f"{name}: {info.advice.get(feature, unknown)}")
            for name, feature in self.features().items()
            if feature not in info.supports
        ]
        if lacking:
            raise InvalidFields(lacking)
        if self.logit_bias and not all(map(_is_token_of(info), self.logit_bias)):
            raise InvalidFields(
                [
                    FieldError(
                        "logit_bias", "invalid_value", "logit_bias: The model has no such token."
                    )
                ]
            )

    def requests(self, info: ModelInfo) -> list[Request]:
        """One for each choice, in the order of their indices: those of a prompt together."""
        max_tokens = self.max_tokens_asked
        shared: dict[str, Any] = {
            "max_tokens": info.context_length if max_tokens is None else max_tokens,
            "must_fit": max_tokens is not None,
            "stop": tuple(self.stop or ()),
            "top_logprobs": self.top_logprobs_asked,
            "json_schema": self.schema_text(),
        }
        return [
            Request(id=new_stream_id(), sampling=self._sampling(number), **prompt, **shared)
            for prompt in self.prompts()
            for number in range(self.num_choices)
        ]

    def _sampling(self, number: int) -> Sampling:
        """That of a prompt's choice with this number: choices differ, and are reproducible where
        there is a seed."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=None if self.seed is None else (self.seed + number) % NUM_SEEDS,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
        )

    @model_validator(mode="after")
    def _stream_options_are_for_streams(self) -> "Common":
        options = self.stream_options
        if options is not None and not self.stream:
            raise misplaced("stream_options", "It is only for what is streamed.")
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            raise misplaced("stream_options", "continuous_usage_stats needs include_usage.")
        return self


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(Common):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    # No answer depends on these.
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, JsonValue] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    @property
    def top_logprobs_asked(self) -> int | None:
        """None unless `logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_tokens_asked(self) -> int | None:
        """By its new name or its old one."""
        return self.max_completion_tokens or self.max_tokens

    def schema_text(self) -> str | None:
        """That of `response_format`."""
        return None if self.response_format is None else self.response_format.schema_text()

    def prompts(self) -> list[dict[str, Any]]:
        """The one conversation. What is said under a schema is all answer."""
        return [
            {
                "messages": tuple(turn.to_message() for turn in self.messages),
                "separate_reasoning": self.schema_text() is None,
                "reasoning_effort": self.reasoning_effort,
                **tool_fields(self.tools, self.tool_choice, self.parallel_tool_calls),
            }
        ]

    @property
    def may_call(self) -> bool:
        """The model is shown tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def features_of_chats(self) -> list[tuple[str, object, Feature]]:
        """Tools, also those of earlier turns, and reasoning."""
        effort = self.reasoning_effort
        return [
            ("tools", self.tools, "tools"),
            ("messages", any(turn.has_to_do_with_tools for turn in self.messages), "tools"),
            ("reasoning_effort", effort == "none", "reasoning_switch"),
            ("reasoning_effort", effort not in (None, "none"), "reasoning_effort"),
        ]

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise misplaced("top_logprobs", 'It needs "logprobs": true.')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise misplaced("max_tokens", "Give it or max_completion_tokens, not both.")
        check_calls_are_answered_for(self.messages)
        check_tools(self.tools, self.tool_choice)
        if self.parallel_tool_calls is not None and not self.tools:
            raise misplaced("parallel_tool_calls", "It needs tools.")
        if self.may_call and self.logprobs:
            raise misplaced("logprobs", "There are none where tools may be called.")
        if self.may_call and self.schema_text() is not None:
            raise misplaced("response_format", "There is none where tools may be called.")
        return self


Prompt = str | tuple[int, ...]


def _prompts_of(value: object) -> list[Prompt]:
    many = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    if not many or many == [[]]:
        raise PydanticCustomError("empty_prompt", "Give a prompt.")
    if len(many) > MAX_PROMPTS:
        raise PydanticCustomError("too_long", f"Give {MAX_PROMPTS} prompts at most.")
    return [_prompt_of(each) for each in many]


def _prompt_of(value: object) -> Prompt:
    if value in ("", []):
        raise PydanticCustomError("empty_prompt", "Give at least a word.")
    if isinstance(value, str):
        return value
    if not _is_token_ids(value):
        raise PydanticCustomError(
            "string_type", "A prompt is a string, or a list of the ids of tokens."
        )
    assert isinstance(value, list)
    if not all(0 <= each <= MAX_TOKEN_ID for each in value):
        raise PydanticCustomError("value_error", "The model has no such token.")
    return tuple(value)


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


class CompletionRequest(Common):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        list[Prompt],
        PlainValidator(
            _prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def top_logprobs_asked(self) -> int | None:
        """As it is."""
        return self.logprobs

    @property
    def max_tokens_asked(self) -> int | None:
        """OpenAI's default is short."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def echoes(self) -> list[str]:
        """What each choice's text begins with."""
        texts = [str(prompt) if self.echo else "" for prompt in self.prompt]
        return [text for text in texts for _ in range(self.num_choices)]

    def prompts(self) -> list[dict[str, Any]]:
        """Texts, or ids of tokens."""
        return [
            {"prompt": each} if isinstance(each, str) else {"prompt_ids": each}
            for each in self.prompt
        ]

    def check(self, info: ModelInfo) -> None:
        """Token ids must be the model's own."""
        super().check(info)
        ids = [prompt for prompt in self.prompt if not isinstance(prompt, str)]
        if not all(all(map(_is_token_of(info), prompt)) for prompt in ids):
            raise InvalidFields([_no_such_token("prompt")])

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.num_choices:
            raise misplaced("best_of", "All answers are returned: it can only be n.")
        if self.echo and self.logprobs is not None:
            raise misplaced("echo", "The prompt has no logprobs here: ask for either.")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise misplaced("echo", "Only a prompt that is text can be echoed.")
        return self


Asked = TypeVar("Asked", bound=Common)


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """The fields of a chat. Raises InvalidFields."""
    return _parse(ChatRequest, body, REFUSED_CHAT)


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """The fields of a completion. Raises InvalidFields."""
    return _parse(CompletionRequest, body, REFUSED_COMPLETION)


def _parse(model: type[Asked], body: dict[str, Any], refused: frozenset[str]) -> Asked:
    asked_in_vain = [name for name in body if name in refused and body[name] is not None]
    if asked_in_vain:
        raise InvalidFields(
            [
                FieldError(name, "unsupported_field", f"{name}: This server does not have it.")
                for name in asked_in_vain
            ]
        )
    try:
        return model.model_validate({k: v for k, v in body.items() if k not in refused})
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False, include_context=True)
        for each in errors:
            if (field := each.get("ctx", {}).get("field")) is not None:
                each["loc"] = (*each["loc"], *field.split("."))
        raise invalid_fields(errors) from None


def _no_such_token(field: str) -> FieldError:
    return FieldError(field, "invalid_value", f"{field}: The model has no such token.")


def _is_token_of(info: ModelInfo) -> Callable[[int], bool]:
    bound = info.vocabulary_size or MAX_TOKEN_ID
    return lambda token_id: token_id < bound
