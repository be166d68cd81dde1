"""What one upstream is, and what it can do."""

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
)
SUPPORTS: dict[tuple[Kind, Level], tuple[Feature, ...]] = {
    ("llamacpp", "ids"): _OF_LLAMA,
    ("vllm", "ids"): _OF_VLLM,
    ("penstock", "ids"): (*_OF_VLLM, "use_cache"),
}
_OF_TEXT: tuple[Feature, ...] = ("presence_penalty", "frequency_penalty", "tools")
# These servers can continue the last turn of the assistant.
CONTINUES: frozenset[Kind] = frozenset({"llamacpp", "vllm", "sglang", "penstock"})


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
            also: tuple[Feature, ...] = ("last_message",) if self.kind in CONTINUES else ()
            features = (*_OF_TEXT, *also)
        else:
            features = SUPPORTS[self.kind, level]
        return features if self.own is None else tuple(f for f in features if f in self.own)

    @property
    def is_unbounded(self) -> bool:
        """Return True if the upstream does not say how long its context is."""
        return not self.context_length
