"""llama.cpp's description of the model that it has loaded."""

import msgspec

from penstock.engine.protocol import Feature
from penstock.engine.reasoning import marks_in, reasoning_features
from penstock.request import Sampling

SUPPORTS: tuple[Feature, ...] = (
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "json_schema",
    "tools",
    "tools_with_schema",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "grammar",
    "use_cache",
    "template_kwargs",
    "last_message",
    "return_token_ids",
    "show_prompt",
    "add_special_tokens",
)
# llama.cpp's numbers have single precision.
DECIMALS = 6


class Props(msgspec.Struct):
    """The answer of `/props`: the model's context, template and sampling defaults."""

    class Generation(msgspec.Struct):
        class Params(msgspec.Struct):
            temperature: float
            top_p: float
            top_k: int
            min_p: float
            repeat_penalty: float

        n_ctx: int
        params: Params

    class Caps(msgspec.Struct):
        supports_tools: bool = False
        supports_tool_calls: bool = False
        supports_reasoning_effort: bool = False
        supports_system_role: bool = True
        supports_object_arguments: bool = False
        supports_string_content: bool = True
        supports_typed_content: bool = False

    default_generation_settings: Generation
    total_slots: int
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    chat_template_caps: Caps = msgspec.field(default_factory=Caps)

    def sampling(self) -> Sampling:
        """Return the sampling of the model's file (`general.sampling.*`), else llama.cpp's own."""
        params = self.default_generation_settings.params
        return Sampling(
            temperature=round(params.temperature, DECIMALS),
            top_p=round(params.top_p, DECIMALS),
            top_k=max(0, params.top_k),
            min_p=round(params.min_p, DECIMALS),
            repetition_penalty=round(params.repeat_penalty, DECIMALS),
        )

    def supports(self, *, fills_gaps: bool) -> tuple[Feature, ...]:
        """Return the optional features that work with the model's template and vocabulary."""
        caps = self.chat_template_caps
        effort = reasoning_features(self.chat_template, has_effort=caps.supports_reasoning_effort)
        budget: tuple[Feature, ...] = ("thinking_budget",) if marks_in(self.chat_template) else ()
        gap: tuple[Feature, ...] = ("gap",) if fills_gaps else ()
        return SUPPORTS + effort + budget + gap

    @property
    def shows_tools(self) -> bool:
        """Return True if the chat template has a form for tools and their calls."""
        return (
            self.chat_template_caps.supports_tools and self.chat_template_caps.supports_tool_calls
        )


class Models(msgspec.Struct):
    """The answer of `/v1/models`: the sizes of the vocabulary and of the model."""

    class Model(msgspec.Struct):
        class Meta(msgspec.Struct):
            n_vocab: int
            n_params: int = 0
            size: int = 0

        meta: Meta

    data: list[Model]
