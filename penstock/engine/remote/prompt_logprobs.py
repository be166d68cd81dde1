"""Asks an upstream for the log probabilities of a prompt's tokens.

In: the prompt's tokens, and an upstream with vLLM's field `prompt_logprobs`. Out: the values for
`Sink.prompt_logprobs`, within bounds. vLLM reports them in whole answers only. So this is a
question of its own, whose one generated token is dropped.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from penstock.engine.remote.failures import GarbageError
from penstock.engine.remote.http import MAX_ANSWER_BYTES
from penstock.engine.remote.logprobs import Name, checked
from penstock.engine.remote.pool import Upstream
from penstock.engine.remote.probing import asked
from penstock.engine.remote.prompts import text_of
from penstock.events import PromptLogprobs, RankedToken

# A token as vLLM reports it: `"1234":{"logprob":-1.2345678,"rank":1234,"decoded_token":" word"}`.
MAX_ENTRY_BYTES = 128
MAX_ENTRIES = MAX_ANSWER_BYTES // MAX_ENTRY_BYTES


class _Entry(msgspec.Struct):
    logprob: float
    rank: Annotated[int, Meta(ge=0)] | None = None
    decoded_token: Name | None = None


_Place = dict[Annotated[int, Meta(ge=0)], _Entry]


class _Answer(msgspec.Struct):
    class Choice(msgspec.Struct):
        prompt_logprobs: tuple[_Place | None, ...]

    choices: Annotated[tuple[Choice, ...], Meta(min_length=1, max_length=1)]


def refusal_of_size(num_tokens: int, num_top: int) -> str | None:
    """Return the sentence that refuses a prompt with too many log probabilities, if it does."""
    limit = MAX_ENTRIES // (num_top + 1)
    if num_tokens <= limit:
        return None
    return f"With {num_top} prompt_logprobs, a prompt may have {limit} tokens at most."


async def prompt_logprobs_of(
    upstream: Upstream, prompt_ids: tuple[int, ...], num_top: int, timeout: float
) -> PromptLogprobs:
    """Return the log probabilities of a prompt, with `num_top` likeliest tokens at each place.

    Raises UpstreamError and RefusedError. The answer must come within `timeout` seconds.
    """
    if not prompt_ids:
        return ()
    profile = upstream.profile
    assert profile is not None
    body: dict[str, Any] = {
        "prompt": list(prompt_ids),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": num_top,
    }
    if profile.model:
        body["model"] = profile.model
    answer = await asked(upstream.client, "/v1/completions", body, _Answer, timeout)
    first, *others = answer.choices[0].prompt_logprobs or (None,)
    if first is not None or len(others) != len(prompt_ids) - 1:
        raise GarbageError("it sent the log probabilities of another prompt")
    begin = RankedToken(prompt_ids[0], await text_of(upstream, [prompt_ids[0]]))
    bound = profile.vocabulary_size or 2**31
    places = zip(prompt_ids[1:], others, strict=True)
    return ((begin,), *(_ranked(token, place, num_top, bound) for token, place in places))


def _ranked(token: int, place: _Place | None, num_top: int, bound: int) -> tuple[RankedToken, ...]:
    """Return the prompt's own token, then the likeliest ones. Raises GarbageError."""
    if place is None or token not in place or len(place) > num_top + 1 or max(place) >= bound:
        raise GarbageError("its log probabilities do not belong to the prompt")
    found = [
        RankedToken(name, each.decoded_token or "", checked(each.logprob), each.rank or 0)
        for name, each in place.items()
    ]
    return tuple(sorted(found, key=lambda each: (each.id != token, each.rank)))
