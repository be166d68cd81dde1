"""The bodies of llama-server's and vLLM's own routes, where their forms differ from OpenAI's.

In: a JSON object. Out: a model of the request, or InvalidFields. Both servers' forms are accepted.
"""

from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import HINT, MAX_TOKENS, Strict, misplaced, parse
from penstock.api.openai.chat import ChatRequest, parse_chat
from penstock.api.openai.completion import CompletionRequest, Prompt
from penstock.api.openai.fields import TokenLimit, unlimited
from penstock.api.sampling import MAX_TOKEN_ID, check_token_ids
from penstock.api.serving import left_out
from penstock.api.tolerance import Notes
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import Gap, Request
from penstock.stream.registry import new_stream_id

MAX_MODEL_CHARACTERS = 256
MAX_FILES = 256
_MODEL = Annotated[str, Field(max_length=MAX_MODEL_CHARACTERS)]


def _no_text() -> list[Prompt]:
    return [""]


def _one_text(value: object) -> list[Prompt]:
    if not isinstance(value, str | None):
        raise PydanticCustomError("string_type", "Give a string.")
    return [value or ""]


class TokenizeRequest(Strict):
    """A text (`content` for llama-server, `prompt` for vLLM) or a conversation to tokenize.

    The tokens that begin every text of the model are added if `add_special` or
    `add_special_tokens` says so; by default, to a `prompt` only.
    """

    model: _MODEL | None = None
    content: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: Annotated[Any, HINT] = None
    return_token_strs: Annotated[Any, HINT] = None

    @property
    def text(self) -> str:
        """Return the text to tokenize."""
        return self.content or self.prompt or ""

    @property
    def adds_special(self) -> bool:
        """Return True if the text gets the tokens that begin and end every text."""
        asked = (self.add_special, self.add_special_tokens)
        is_prompt = self.prompt is not None and not self.content
        return next((each for each in asked if each is not None), is_prompt)

    @model_validator(mode="after")
    def _has_one_text(self) -> "TokenizeRequest":
        given = [each for each in (self.content, self.prompt, self.messages) if each is not None]
        if not given or len([each for each in given if each]) > 1:
            raise PydanticCustomError("missing", "Give content, prompt or messages.")
        return self


class DetokenizeRequest(Strict):
    """Token ids whose text is asked for."""

    model: _MODEL | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(fail_fast=True)]


class CompletionOfLlama(CompletionRequest):
    """A text to continue, in llama-server's form: `n_predict` tokens, by default all the room."""

    n_predict: Annotated[TokenLimit | None, Field()] = None
    # The answer's form has no place for these.
    n_probs: Annotated[Any, HINT] = None
    logprobs: Annotated[None, HINT] = None
    echo: Annotated[None, HINT] = None
    return_token_ids: Annotated[None, HINT] = None
    prompt_logprobs: Annotated[None, HINT] = None
    stream_options: Annotated[None, HINT] = None

    @property
    def max_tokens_asked(self) -> int | None:
        """Return the token limit; None means all the room in the context."""
        return self.n_predict or self.max_tokens

    @model_validator(mode="after")
    def _has_one_choice(self) -> "CompletionOfLlama":
        if len(self.prompt) * self.num_choices > 1:
            raise PydanticCustomError("too_long", "Give one prompt, and ask for one answer.")
        return self


class File(Strict):
    """A text beside the one with the gap, and the name of its file."""

    text: str
    filename: str = "tmp"


class InfillOfLlama(CompletionOfLlama):
    """A gap in a text to fill, in llama-server's form.

    The gap is between `input_prefix` with `prompt`, and `input_suffix`. `input_extra` has other
    files for reference. With `n_predict` 0 nothing is generated.
    """

    prompt: Annotated[list[Prompt], PlainValidator(_one_text, json_schema_input_type=str)] = Field(
        default_factory=_no_text
    )
    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[File], Field(max_length=MAX_FILES, fail_fast=True)] | None = None
    n_predict: Annotated[int | None, Field(ge=0, le=MAX_TOKENS), BeforeValidator(unlimited)] = None

    @model_validator(mode="after")
    def _has_one_suffix(self) -> "InfillOfLlama":
        if self.suffix:
            raise misplaced("suffix", "Give what follows the gap as input_suffix.")
        return self

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [*super().needs(), ("input_suffix", True, "gap")]

    def prompts(self) -> list[dict[str, Any]]:
        """Return the fields of `Request` for the text and its gap."""
        files = tuple((each.filename, each.text) for each in self.input_extra or ())
        (begun,) = self.prompt
        return [
            {"prompt": f"{self.input_prefix}{begun}", "gap": Gap(self.input_suffix, files)},
        ]

    def requests(self, info: ModelInfo) -> list[Request]:
        """Return the request. Without tokens to generate, it counts its prompt."""
        requests = super().requests(info)
        if self.n_predict == 0:  # editors send it before a gap, to warm the server up
            return [replace(each, max_tokens=0, must_fit=False) for each in requests]
        return requests


def tokenize_request(body: dict[str, Any], info: ModelInfo, notes: Notes) -> Request:
    """Return the request that tokenizes a text or a conversation. Raises InvalidFields."""
    if body.get("messages") and not (body.get("content") or body.get("prompt")):
        body = {name: value for name, value in body.items() if name not in ("content", "prompt")}
        return chat_request(body, info, notes)
    asked = parse(TokenizeRequest, body, notes)
    adds = asked.adds_special
    if not adds:
        needs: dict[str, Feature] = {"add_special": "add_special_tokens"}
        adds = bool(left_out(needs, info, notes, hints=frozenset({"add_special_tokens"})))
    if asked.parse_special is False:
        notes.ignore("parse_special")
    return Request(new_stream_id(), 0, prompt=asked.text, add_special_tokens=adds, model=info.id)


def detokenize_request(body: dict[str, Any], info: ModelInfo, notes: Notes) -> Request:
    """Return the request that finds the text of tokens. Raises InvalidFields."""
    asked = parse(DetokenizeRequest, body, notes)
    left_out({"tokens": "show_prompt"}, info, notes)
    check_token_ids("tokens", asked.tokens, info)
    ids = tuple(asked.tokens)
    return Request(new_stream_id(), 0, prompt_ids=ids, show_prompt=True, model=info.id)


def template_request(body: dict[str, Any], info: ModelInfo, notes: Notes) -> Request:
    """Return the request that renders a conversation. Raises InvalidFields."""
    left_out({"messages": "show_prompt"}, info, notes)
    return chat_request(body, info, notes, show_prompt=True)


def chat_request(
    body: dict[str, Any], info: ModelInfo, notes: Notes, *, show_prompt: bool = False
) -> Request:
    """Return the request that reads a chat's prompt. Raises InvalidFields."""
    asked: ChatRequest = parse_chat(body, notes)
    asked.check(info)
    (request, *_) = asked.requests(info)
    return replace(request, max_tokens=0, must_fit=False, show_prompt=show_prompt)
