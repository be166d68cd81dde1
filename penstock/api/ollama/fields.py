"""The bodies of `POST /api/chat` and `/api/generate`.

In: a JSON object. Out: a model of the request, which turns itself into the `Request` for the
engine, or InvalidFields. docs/ollama.md lists every parameter.
"""

import json
from abc import abstractmethod
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.api.fields import (
    HINT,
    LEFT_OUT,
    MAX_TOKENS,
    WHOLE,
    StopStrings,
    Strict,
    misplaced,
    parse,
)
from penstock.api.ollama.turns import Images, OllamaTurn, messages_of
from penstock.api.serving import HINTS, can_reason, left_out
from penstock.api.tolerance import Notes, notes_of
from penstock.api.tools import (
    MAX_TOOLS,
    Schema,
    ToolName,
    bounded_schema,
    shown_function,
    shown_tools,
)
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import Gap, Message, Request, Sampling
from penstock.stream.registry import new_stream_id

MAX_MODEL_CHARACTERS = 256
ANY_OBJECT = '{"type": "object"}'

ModelName = Annotated[str, Field(max_length=MAX_MODEL_CHARACTERS)]
Effort = Literal["low", "medium", "high"]


def _refusing(sentence: str) -> AfterValidator:
    """Return a validator that refuses every value but an empty one."""

    def refuse(value: Any) -> Any:
        if value:
            raise PydanticCustomError("unsupported_field", sentence)
        return value

    return AfterValidator(refuse)


NO_TEMPLATE = _refusing("This server uses the model's own chat template. Leave out template.")
NO_CONTEXT = _refusing(
    "This server returns no context and takes none. Send the whole conversation to /api/chat."
)


def _format_of(value: object) -> object:
    if value in ("json", ""):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("literal_error", "Give json, or a JSON schema as an object.")
    return bounded_schema(value)


def _think_of(value: object) -> object:
    if isinstance(value, bool) or value in get_args(Effort):
        return value
    raise PydanticCustomError("literal_error", "Give true, false, low, medium or high.")


Format = Annotated[
    str | dict[str, Any],
    PlainValidator(_format_of, json_schema_input_type=Literal["json", ""] | dict[str, JsonValue]),
]
Think = Annotated[bool | str, PlainValidator(_think_of, json_schema_input_type=bool | Effort)]


class OllamaOptions(Strict):
    """How the engine chooses tokens. The defaults are the model's own."""

    num_predict: Annotated[int, WHOLE, Field(ge=-2, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, WHOLE, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, WHOLE, Field(ge=-1, lt=2**63)] | None = None
    stop: StopStrings | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    num_ctx: Annotated[int, WHOLE, Field(ge=0, le=MAX_TOKENS)] | None = None
    # They hint at an answer that this server cannot give.
    repeat_last_n: Annotated[Any, HINT] = None
    typical_p: Annotated[Any, HINT] = None
    tfs_z: Annotated[Any, HINT] = None
    mirostat: Annotated[Any, HINT] = None
    mirostat_tau: Annotated[Any, HINT] = None
    mirostat_eta: Annotated[Any, HINT] = None
    penalize_newline: Annotated[Any, HINT] = None
    # They are about the machine. The operator decides that.
    num_keep: Annotated[Any, LEFT_OUT] = None
    num_batch: Annotated[Any, LEFT_OUT] = None
    num_gpu: Annotated[Any, LEFT_OUT] = None
    main_gpu: Annotated[Any, LEFT_OUT] = None
    num_thread: Annotated[Any, LEFT_OUT] = None
    use_mmap: Annotated[Any, LEFT_OUT] = None
    use_mlock: Annotated[Any, LEFT_OUT] = None
    low_vram: Annotated[Any, LEFT_OUT] = None
    numa: Annotated[Any, LEFT_OUT] = None
    f16_kv: Annotated[Any, LEFT_OUT] = None
    logits_all: Annotated[Any, LEFT_OUT] = None
    vocab_only: Annotated[Any, LEFT_OUT] = None
    embedding_only: Annotated[Any, LEFT_OUT] = None

    def sampling(self, default: Sampling) -> Sampling:
        """Return the sampling; `default` is the model's own."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return msgspec.structs.replace(
            default, **{name: value for name, value in given.items() if value is not None}
        )

    def needs(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        needs: dict[str, tuple[object, Feature]] = {
            "min_p": (self.min_p, "min_p"),
            "repeat_penalty": (self.repeat_penalty not in (None, 1), "repetition_penalty"),
            "presence_penalty": (self.presence_penalty, "presence_penalty"),
            "frequency_penalty": (self.frequency_penalty, "frequency_penalty"),
        }
        return {f"options.{name}": feature for name, (used, feature) in needs.items() if used}


class Common(Strict):
    """The fields that both routes share. An answer is streamed unless `stream` is false."""

    model: ModelName | None = None
    stream: bool | None = None
    options: OllamaOptions | None = None
    format: Format | None = None
    think: Think | None = None
    keep_alive: Annotated[str | float | None, LEFT_OUT] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncate: Annotated[bool | None, LEFT_OUT] = None
    shift: Annotated[bool | None, LEFT_OUT] = None
    _notes: Notes = PrivateAttr(default_factory=Notes)

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Return True if there is nothing to answer: Ollama then loads the model."""

    @abstractmethod
    def prompt_fields(self, info: ModelInfo) -> dict[str, Any]:
        """Return the fields of `Request` that only this route sets."""

    @property
    def schema_text(self) -> str | None:
        """Return the JSON schema of the answer as text."""
        if not self.format:
            return None
        return ANY_OBJECT if self.format == "json" else json.dumps(self.format)

    @property
    def max_tokens(self) -> int | None:
        """Return the token limit. 0, -1 and -2 mean all the room in the context."""
        asked = self.options.num_predict if self.options is not None else None
        return asked if asked is not None and asked > 0 else None

    def needs(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        needs = {} if self.options is None else self.options.needs()
        if self.format:
            needs["format"] = "json_schema"
        if self.logprobs:
            needs["logprobs"] = "top_logprobs"
        return needs

    def request(self, info: ModelInfo) -> Request:
        """Return the request to the engine. Raises InvalidFields.

        A token limit is cut to the room in the context; if the server is strict, it must fit.
        """
        left_out(self.needs(), info, self._notes, hints=HINTS)
        options, strict, asked = (
            self.options or OllamaOptions(),
            self._notes.strict,
            self.max_tokens,
        )
        if options.num_ctx and options.num_ctx > info.context_length:
            too_large = misplaced(
                "options.num_ctx", f"The context has {info.context_length} tokens at most."
            )
            self._notes.ignore_or(too_large, "options.num_ctx")
        return Request(
            id=new_stream_id(),
            model=info.id,
            max_tokens=asked if strict and asked else min(asked or MAX_TOKENS, info.context_length),
            must_fit=strict and asked is not None,
            sampling=options.sampling(info.sampling),
            stop=tuple(options.stop or ()),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=self.schema_text,
            lax_schema=not strict,
            **self.prompt_fields(info),
        )

    def reasoning_fields(self, info: ModelInfo) -> dict[str, Any]:
        """Return the fields of `Request` for the model's reasoning.

        An answer bound by a schema has no reasoning: all of it is answer.
        """
        supports = set(info.supports)
        can_switch, has_effort = "reasoning_switch" in supports, "reasoning_effort" in supports
        effort = self.think if isinstance(self.think, str) else None
        is_bound = self.schema_text is not None
        if self.think and (is_bound or not (has_effort if effort else can_reason(info))):
            self._notes.ignore("think")
        if is_bound or self.think is False:
            return {
                "separate_reasoning": not is_bound,
                "reasoning_effort": "none" if can_switch else None,
            }
        fields: dict[str, Any] = {"separate_reasoning": True}
        if has_effort:
            fields["reasoning_effort"] = effort
        if self.think and can_reason(info) and {"reasoning_switch", "template_kwargs"} <= supports:
            fields["template_kwargs"] = '{"enable_thinking": true}'  # some templates begin without
        return fields

    @model_validator(mode="after")
    def _has_logprobs_for_top(self) -> "Common":
        if self.top_logprobs and not self.logprobs:
            raise misplaced("top_logprobs", 'Set "logprobs" to true to use top_logprobs.')
        return self


class OllamaFunction(Strict):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: Schema | None = None


class OllamaTool(Strict):
    """A tool. Only functions are supported."""

    type: Literal["function"] = "function"
    function: OllamaFunction


class OllamaChatRequest(Common):
    """A conversation to answer, and how to generate the answer."""

    messages: list[OllamaTurn] | None = None
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS)] | None = None

    @property
    def is_empty(self) -> bool:
        """Return True if there is nothing to answer."""
        return not self.messages

    def needs(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        needs = super().needs()
        if self.tools:
            needs["tools"] = "tools"
        if self.tools and self.format:
            needs["format"] = "tools_with_schema"
        return needs

    def prompt_fields(self, info: ModelInfo) -> dict[str, Any]:
        """Return the fields of `Request` for the conversation and the tools."""
        messages = messages_of(self.messages or (), self._notes)
        last = messages[-1]
        is_begun = last.role == "assistant" and bool(last.content) and not last.tool_calls
        fields = {
            "messages": messages,
            "continue_last_message": is_begun and "last_message" in info.supports,
            **self.reasoning_fields(info),
        }
        if self.tools:
            fields |= shown_tools(
                [
                    shown_function(
                        tool.function.name,
                        tool.function.description,
                        tool.function.parameters,
                        strict=self._notes.strict,
                    )
                    for tool in self.tools
                ],
                required=False,
                parallel=True,
            )
        return fields

    @model_validator(mode="after")
    def _fields_agree(self, info: ValidationInfo) -> "OllamaChatRequest":
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise misplaced("tools", "Give each tool its own name.")
        if self.tools and self.logprobs:
            refusal = misplaced("logprobs", "Leave out logprobs if the model may call tools.")
            notes_of(info.context).ignore_or(refusal, "logprobs")
            self.logprobs = None
        return self


class OllamaGenerateRequest(Common):
    """A prompt to answer, and how to generate the answer.

    The prompt is the user's turn of a conversation; with `raw` it is a text to continue. With a
    `suffix`, the prompt is a text too, and the answer fills the gap between the two.
    """

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: Annotated[str, NO_TEMPLATE] | None = None
    context: Annotated[list[Any], NO_CONTEXT] | None = None
    images: Images | None = None
    # The size of an image to make.
    width: Annotated[Any, HINT] = None
    height: Annotated[Any, HINT] = None
    steps: Annotated[Any, HINT] = None

    @property
    def is_empty(self) -> bool:
        """Return True if there is nothing to answer."""
        return not (self.prompt or self.suffix)

    def needs(self) -> dict[str, Feature]:
        """Return the optional feature that each used field needs, by the field's name."""
        needs = super().needs()
        if self.suffix:
            needs["suffix"] = "gap"
        return needs

    def prompt_fields(self, info: ModelInfo) -> dict[str, Any]:
        """Return the fields of `Request` for the prompt."""
        prompt = self.prompt or ""
        if self.raw or self.suffix:
            for name in ("system", "think"):
                if getattr(self, name):
                    self._notes.ignore(name)
            return {"prompt": prompt, "gap": Gap(self.suffix) if self.suffix else None}
        system = (Message("system", self.system),) if self.system else ()
        return {
            "messages": (*system, Message("user", prompt)),
            **self.reasoning_fields(info),
        }


Asked = TypeVar("Asked", bound=Common)


def parse_fields(model: type[Asked], body: dict[str, Any], notes: Notes) -> Asked:
    """Return the body as this model, and note what is left out. Raises InvalidFields."""
    asked = parse(model, body, notes)
    asked._notes = notes
    return asked
