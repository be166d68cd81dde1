"""What was asked, already valid.

In: nothing; these are words. Out: frozen values that cross the process boundary to the engine as
they are. Not known here: HTTP, JSON field names, defaults of an API.
"""

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, to be rendered with the model's own chat template."""

    role: str
    content: str


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen.

    `temperature` 0 is greedy. `top_k` 0 is off. `seed` None draws a new one for each request.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    seed: int | None = None


class Request(msgspec.Struct, frozen=True):
    """One generation. Exactly one of `prompt` and `messages` is set.

    `id` names the stream and is unguessable. `max_tokens` bounds the answer in tokens. `stop`
    strings are not for the engine: the text layer cuts at them (see `text`).
    """

    id: str
    max_tokens: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
