"""A validated request for one generation, as frozen plain values.

The values cross the process boundary to the engine unchanged. They know nothing about HTTP, JSON
field names, or an API's defaults.
"""

import msgspec

MAX_TIMEOUT_S = 604_800
"""The longest timeout a request may set: one week, in seconds."""


class UnnamedTokens(msgspec.Struct, frozen=True, array_like=True):
    """Generated text whose tokens the engine counted without naming their ids."""

    text: str
    num_tokens: int


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
    numbers that are added to their logits.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Request(msgspec.Struct, frozen=True):
    """One generation. Exactly one of `prompt`, `messages` and `prompt_ids` is set.

    `id` names the stream; it is unguessable. `max_tokens` limits the answer, in tokens. With
    `must_fit`, the engine refuses a prompt that leaves less room than `max_tokens`; otherwise the
    answer ends when the context is full. Engines ignore `stop`: the stream's text layer finds stop
    strings (see `text`).

    `top_logprobs` asks for each token's log probability, and for those of this many likeliest
    tokens at its position; None asks for neither. `json_schema` is a JSON schema, as text, that
    the answer must satisfy.

    `tools` is a JSON list of functions the model may call, in OpenAI's form. With
    `tool_call_required` the model must call one of them. Without `parallel_calls` it calls one at
    most. With `separate_reasoning` the engine separates the model's reasoning from its answer, if
    it can. `reasoning_effort` goes to the model's template; "none" asks it not to reason.

    A request whose engine died is submitted again as a continuation: `prompt_ids` then holds the
    prompt's tokens and `generated` everything generated so far; `max_tokens` is what remains.
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
    tools: str | None = None
    tool_call_required: bool = False
    parallel_calls: bool = True
    separate_reasoning: bool = False
    reasoning_effort: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    generated: tuple[int | UnnamedTokens, ...] = ()


# Roughly what a Python object takes in memory, in bytes, without its characters.
OBJECT_BYTES = 100


def num_bytes_of(request: Request) -> int:
    """Estimate how much memory a request takes, in bytes."""
    texts = [request.prompt or "", request.json_schema or "", request.tools or "", *request.stop]
    for message in request.messages or ():
        texts += (message.role, message.content, message.reasoning)
        for call in message.tool_calls:
            texts += (call.name, call.arguments)
    num_ids = len(request.prompt_ids or ()) + len(request.sampling.logit_bias)
    # A single character outside ASCII can make every character of a string take four bytes.
    sizes = (len(text) * (1 if text.isascii() else 4) + OBJECT_BYTES for text in texts)
    return sum(sizes) + num_ids * OBJECT_BYTES
