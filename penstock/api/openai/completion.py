"""The body of `POST /v1/completions`, and its requests to the engine."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import WHOLE, misplaced
from penstock.api.openai.fields import Common, parse_fields
from penstock.api.sampling import MAX_TOKEN_ID, check_token_ids
from penstock.api.tolerance import Notes, notes_of
from penstock.engine.protocol import Feature, ModelInfo
from penstock.request import Gap

MAX_PROMPTS = 16
DEFAULT_COMPLETION_TOKENS = 16

Prompt = str | tuple[int, ...]


def _prompts_of(value: object) -> list[Prompt]:
    many = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    if not many or many == [[]]:
        raise PydanticCustomError("empty_prompt", "Give a prompt.")
    if len(many) > MAX_PROMPTS:
        raise PydanticCustomError("too_long", f"Give at most {MAX_PROMPTS} prompts.")
    return [_prompt_of(each) for each in many]


def _prompt_of(value: object) -> Prompt:
    if value in ("", []):
        raise PydanticCustomError("empty_prompt", "Give at least one word.")
    if isinstance(value, str):
        return value
    if not _is_token_ids(value):
        raise PydanticCustomError("string_type", "Give a string or a list of token ids.")
    assert isinstance(value, list)
    if not all(0 <= each <= MAX_TOKEN_ID for each in value):
        raise PydanticCustomError("value_error", f"Give token ids from 0 to {MAX_TOKEN_ID}.")
    return tuple(value)


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


class CompletionRequest(Common):
    """One or several texts to continue, and how to continue them."""

    prompt: Annotated[
        list[Prompt],
        PlainValidator(
            _prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    best_of: Annotated[int, WHOLE] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None

    @property
    def top_logprobs_asked(self) -> int | None:
        """Return how many alternatives each token gets; None without `logprobs`."""
        return self.logprobs

    @property
    def max_tokens_asked(self) -> int | None:
        """Return the token limit; OpenAI's default is 16."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def echoes(self) -> list[str]:
        """Return the text that each choice begins with: its prompt with `echo`, else nothing."""
        texts = [str(prompt) if self.echo else "" for prompt in self.prompt]
        if self.echoes_logprobs:  # the prompt's tokens have the texts
            texts = [""] * len(self.prompt)
        return [text for text in texts for _ in range(self.num_choices)]

    def prompts(self) -> list[dict[str, Any]]:
        """Return, for each prompt, the fields of `Request` for its text or its token ids."""
        gap = Gap(self.suffix) if self.suffix else None
        return [
            {"prompt": each, "gap": gap} if isinstance(each, str) else {"prompt_ids": each}
            for each in self.prompt
        ]

    @property
    def echoes_logprobs(self) -> bool:
        """Return True if the answer begins with the prompt and its log probabilities."""
        return bool(self.echo) and self.logprobs is not None

    def needs(self) -> list[tuple[str, object, Feature]]:
        """Return the fields that need an optional feature: name, whether it is used, feature."""
        return [
            *super().needs(),
            ("echo", self.echoes_logprobs, "prompt_logprobs"),
            ("suffix", self.suffix, "gap"),
        ]

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of `Request` that the fields of other servers set, and an echo."""
        fields = super().extra_fields()
        if self.echoes_logprobs:
            fields["prompt_logprobs"] = max(self.prompt_logprobs or 0, self.logprobs or 0)
        return fields

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidFields if the model's engine lacks a feature or a token."""
        super().check(info)
        for prompt in self.prompt:
            if not isinstance(prompt, str):
                check_token_ids("prompt", prompt, info)

    @model_validator(mode="after")
    def _fields_agree(self, info: ValidationInfo) -> "CompletionRequest":
        neutral = () if notes_of(info.context).strict else (0, 1)
        if self.best_of not in (None, self.num_choices, *neutral):
            raise misplaced(
                "best_of", "Leave out best_of, or set it to n: every generated answer is returned."
            )
        if self.echoes_logprobs and self.stream:
            raise misplaced("echo", "Only a whole answer has an echo with logprobs.")
        is_text = all(isinstance(prompt, str) for prompt in self.prompt)
        if self.echo and not is_text and not self.echoes_logprobs:
            raise misplaced("echo", "Leave out echo, or give the prompt as text.")
        if self.suffix and not is_text:
            raise misplaced("suffix", "Leave out suffix, or give the prompt as text.")
        return self


def parse_completion(body: dict[str, Any], notes: Notes | None = None) -> CompletionRequest:
    """Return the fields of a completion, and note those left out. Raises InvalidFields."""
    return parse_fields(CompletionRequest, body, {}, notes or Notes())
