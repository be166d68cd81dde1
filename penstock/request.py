"""A validated request for one generation, as frozen plain values.

The values cross the process boundary to the engine unchanged. They know nothing about HTTP, JSON
field names, or an API's defaults.
"""

from typing import Literal

import msgspec

MAX_TIMEOUT_S = 604_800
"""The longest timeout a request may set: one week, in seconds."""


class UnnamedTokens(msgspec.Struct, frozen=True, array_like=True):
    """Generated text whose tokens the engine counted without naming their ids.

    `is_reasoning`: the text precedes the answer.
    """

    text: str
    num_tokens: int
    is_reasoning: bool = False


class ToolUse(msgspec.Struct, frozen=True):
    """A tool call in a conversation; `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, rendered later with the model's chat template.

    An assistant's turn may have `tool_calls` and the `reasoning` that preceded it. A turn with the
    role `tool` answers the call named by `tool_call_id`.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolUse, ...] = ()
    tool_call_id: str = ""


class Sampling(msgspec.Struct, frozen=True):
    """How the engine chooses the next token.

    `temperature` 0 is greedy. `top_k` 0 is off. `seed` None draws a new seed for each request.
    `presence_penalty` and `frequency_penalty` (-2 to 2) lower the logits of tokens that the text
    already contains: once per token, or once per occurrence. `logit_bias` pairs token ids with
    numbers that are added to their logits. `min_p` drops tokens whose probability is below this
    part of the likeliest token's; 0 is off. `repetition_penalty` divides the logits of tokens that
    the prompt or the answer already contains (multiplies them if they are negative); 1 is off.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Grammar(msgspec.Struct, frozen=True):
    """A language that the answer must belong to, other than JSON schemas.

    `text` is a regular expression, a JSON list of the possible answers, a grammar (in llama.cpp's
    GBNF or in Lark's form), or one of vLLM's structural tags (JSON).
    """

    kind: Literal["regex", "choice", "grammar", "structural_tag"]
    text: str


class Gap(msgspec.Struct, frozen=True):
    """A gap in a text, which the answer fills.

    `suffix` is the text after the gap. `files` are other texts for reference, each with its name.
    """

    suffix: str
    files: tuple[tuple[str, str], ...] = ()

    def texts(self) -> list[str]:
        """Return all texts and names."""
        return [self.suffix, *(text for file in self.files for text in file)]


class Request(msgspec.Struct, frozen=True):
    """One generation. Exactly one of `prompt`, `messages` and `prompt_ids` is set.

    `id` names the stream; it is unguessable. `model` names one of the models of an engine that has
    several; "" means its first, and other engines ignore it. `max_tokens` limits the answer, in
    tokens; a request for 0 tokens is accepted, which counts its prompt, and ends without a slot.
    With `must_fit`, the engine refuses a prompt that leaves less room than `max_tokens`; otherwise
    the answer ends when the context is full. Engines ignore `stop`: the stream's text layer finds
    stop strings (see `text`).

    `top_logprobs` asks for each token's log probability, and for those of this many likeliest
    tokens at its position; None asks for neither. `json_schema` is a JSON schema, as text, that
    the answer must satisfy; with `lax_schema` the engine may leave out of it what it cannot bind.

    `tools` is a JSON list of functions the model may call, in OpenAI's form. The engine may leave
    out what it cannot bind of the parameters of a function that is not `strict`. With
    `tool_call_required` the model must call one of them. Without `parallel_calls` it calls one at
    most. With `separate_reasoning` the engine separates the model's reasoning from its answer, if
    it can. `reasoning_effort` goes to the model's template; "none" asks it not to reason.

    Until the answer has `min_tokens` tokens, nothing ends it. `ignore_eos` lets it go on after the
    model has ended it. A token of `stop_token_ids` ends the answer and does not show its text.
    `grammar` binds the answer like `json_schema`; a request has one of them at most. After
    `thinking_budget` tokens the engine ends the model's reasoning; with `lax_budget` the engine may
    leave the budget out. `show_special_tokens` shows the
    text of the model's control tokens. `use_cache` False computes the whole prompt anew.

    `template_kwargs` is a JSON object of variables for the chat template. With
    `continue_last_message` the answer continues the last message. Without `open_answer` the
    template does not begin an answer after the last message.

    With `show_prompt`, a request for 0 tokens tells the prompt's text: the rendered conversation,
    or the text of `prompt_ids`. Without `add_special_tokens`, a `prompt` has only the tokens of its
    own text, not those with which the model's texts begin and end. With a `gap`, the `prompt` is
    the text before the gap, and may be empty.

    `return_token_ids` puts the ids of the tokens into the stream's deltas. `prompt_logprobs` asks
    for the log probabilities of the prompt's tokens, and of this many likeliest tokens at each
    place.

    A request whose engine died is submitted again as a continuation: `prompt_ids` then holds the
    prompt's tokens and `generated` everything generated so far; `max_tokens` and `min_tokens` are
    what remains.
    """

    id: str
    max_tokens: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    must_fit: bool = False
    top_logprobs: int | None = None
    json_schema: str | None = None
    lax_schema: bool = False
    tools: str | None = None
    tool_call_required: bool = False
    parallel_calls: bool = True
    separate_reasoning: bool = False
    reasoning_effort: str | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None
    thinking_budget: int | None = None
    lax_budget: bool = False
    show_special_tokens: bool = False
    use_cache: bool = True
    template_kwargs: str | None = None
    continue_last_message: bool = False
    open_answer: bool = True
    return_token_ids: bool = False
    prompt_logprobs: int | None = None
    show_prompt: bool = False
    add_special_tokens: bool = True
    gap: Gap | None = None
    prompt_ids: tuple[int, ...] | None = None
    generated: tuple[int | UnnamedTokens, ...] = ()
    model: str = ""
