"""What was asked, already valid.

In: nothing; these are words. Out: frozen values that cross the process boundary to the engine as
they are. Not known here: HTTP, JSON field names, defaults of an API.
"""

import msgspec

MAX_TIMEOUT_S = 604_800
"""The longest that a request may give itself: a week."""


class UnnamedTokens(msgspec.Struct, frozen=True, array_like=True):
    """Generated text of which the engine told the number of tokens, but not their ids."""

    text: str
    num_tokens: int


class ToolUse(msgspec.Struct, frozen=True):
    """A call of a tool in a conversation; `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, to be rendered with the model's own chat template.

    An assistant's turn may have `tool_calls`, and the `reasoning` that came before it; one of the
    role `tool` answers the call `tool_call_id`.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolUse, ...] = ()
    tool_call_id: str = ""


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen.

    `temperature` 0 is greedy. `top_k` 0 is off. `seed` None draws a new one for each request.
    `presence_penalty` and `frequency_penalty` (-2 to 2) are taken from the logits of tokens that
    the text has already: once, or for each time. `logit_bias` is added to the logits of the tokens
    with these ids.
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

    `id` names the stream and is unguessable. `max_tokens` bounds the answer in tokens; where it
    `must_fit`, a prompt that leaves less room than that is refused, else the answer ends with the
    context. `stop` strings are not for the engine: the text layer cuts at them (see `text`).

    `top_logprobs` asks for each token's log probability and those of so many likeliest tokens in
    its place; None asks for nothing. `json_schema`, itself JSON, describes the answer: JSON that
    is valid under it.

    `tools`, itself JSON, are the functions that the model may call, in OpenAI's form.
    `tool_call_required`: it must call one. Without `parallel_calls` it calls one at most.
    `separate_reasoning`: the engine separates the model's reasoning from its answer, if it can.
    `reasoning_effort` is for the model's template; "none" asks it not to think.

    A request that an engine died with is submitted again as a continuation: `prompt_ids` are then
    the tokens that the engine made of the prompt, to be used in its stead, and `generated` what it
    generated before, to go on from; `max_tokens` is what is left.
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


# What an object in memory takes beside its characters, about.
OBJECT_BYTES = 100


def num_bytes_of(request: Request) -> int:
    """About how much memory a request takes."""
    texts = [request.prompt or "", request.json_schema or "", request.tools or "", *request.stop]
    for message in request.messages or ():
        texts += (message.role, message.content, message.reasoning)
        for call in message.tool_calls:
            texts += (call.name, call.arguments)
    num_ids = len(request.prompt_ids or ()) + len(request.sampling.logit_bias)
    # A character beyond ASCII can take four bytes, as can each other one of its text then.
    sizes = (len(text) * (1 if text.isascii() else 4) + OBJECT_BYTES for text in texts)
    return sum(sizes) + num_ids * OBJECT_BYTES
