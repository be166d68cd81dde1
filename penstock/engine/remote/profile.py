"""The profile of an upstream: its kind of server, its model and its abilities."""

from typing import Literal

import msgspec

from penstock.engine.protocol import Feature
from penstock.request import Sampling

Kind = Literal["llamacpp", "vllm", "sglang", "penstock", "ollama", "openai"]
Level = Literal["ids", "text"]
"""How an upstream is talked to: with the ids of tokens, or with texts and conversations."""

DEFAULT_SLOTS = 64
NAMES: dict[Kind, str] = {
    "llamacpp": "llama.cpp's server",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "penstock": "Penstock",
    "ollama": "Ollama",
    "openai": "a server with OpenAI's API",
}
_OF_OPENAI: tuple[Feature, ...] = ("presence_penalty", "frequency_penalty", "logit_bias")
_OF_VLLM: tuple[Feature, ...] = (
    *_OF_OPENAI,
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "last_message",
    "return_token_ids",
    "add_special_tokens",
    "template_kwargs",
    "tools",
    "json_schema",
    "grammar",
    "structural_tag",
    "top_logprobs",
)
_OF_LLAMA: tuple[Feature, ...] = (
    *_OF_OPENAI,
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "use_cache",
    "last_message",
    "return_token_ids",
    "add_special_tokens",
    "template_kwargs",
    "tools",
    "json_schema",
    "grammar",
    "top_logprobs",
)
SUPPORTS: dict[tuple[Kind, Level], tuple[Feature, ...]] = {
    ("llamacpp", "ids"): _OF_LLAMA,
    ("vllm", "ids"): (*_OF_VLLM, "prompt_logprobs"),
    ("sglang", "ids"): _OF_VLLM,
    ("penstock", "ids"): (*_OF_VLLM, "use_cache", "tools_with_schema", "prompt_logprobs"),
}
_OF_TEXT: tuple[Feature, ...] = (
    *("presence_penalty", "frequency_penalty", "tools"),
    *("json_schema", "top_logprobs"),
)
# The features that these servers have with texts, in addition to those of OpenAI's API.
_ALSO_WITH_TEXT: dict[Kind, tuple[Feature, ...]] = {
    "llamacpp": ("last_message", "grammar"),
    "vllm": ("last_message", "grammar", "structural_tag"),
    "sglang": ("last_message", "grammar", "structural_tag"),
    "penstock": ("last_message", "grammar", "structural_tag", "tools_with_schema"),
    "openai": ("tools_with_schema",),
}
# These servers can continue the last turn of the assistant.
CONTINUES: frozenset[Kind] = frozenset({"llamacpp", "vllm", "sglang", "penstock"})
# These servers go on after a prompt. Ollama does not: it makes a prompt the turn of a user.
CONTINUES_PROMPTS: frozenset[Kind] = CONTINUES | {"openai"}


class Profile(msgspec.Struct, frozen=True):
    """One upstream's profile.

    `vocabulary` is a hash of how it tokenizes, "" if it does not. `own` has what a Penstock says
    of its own engine, None for others.
    """

    kind: Kind
    level: Level
    model: str
    context_length: int
    slots: int
    vocabulary: str = ""
    vocabulary_size: int = 0
    chat_template: str = ""
    sampling: Sampling | None = None
    own: tuple[Feature, ...] | None = None

    def supports(self, level: Level) -> tuple[Feature, ...]:
        """Return the optional features that work at `level`."""
        if level == "text":
            features = (*_OF_TEXT, *_ALSO_WITH_TEXT.get(self.kind, ()))
        else:
            features = SUPPORTS[self.kind, level]
        return features if self.own is None else tuple(f for f in features if f in self.own)

    @property
    def is_unbounded(self) -> bool:
        """Return True if the upstream does not say how long its context is."""
        return not self.context_length
