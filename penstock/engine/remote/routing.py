"""Chooses the upstream for a request: the one that has its prompt in the cache, unless it is busy.

In: the key of the prompt, its size, and the candidates with their load. Out: one candidate. Pure:
no clock, no chance, no upstream. This is rendezvous hashing with bounded loads: a key ranks all
candidates, in the same order each time, by their weights. The first one gets the request that then
has at most `MAX_LOAD` times its part of the whole load. If a candidate comes or goes, only its own
keys move.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from penstock.request import Request

MAX_LOAD = 1.25
"""How much of the mean load a candidate may have."""
# A candidate with less than so many requests of this size is not busy: one more does not count as
# load. Otherwise a few requests could find no cache.
FEW_REQUESTS = 4
# Prompts that begin with the same text share a cache. A key sees this much of the beginning.
KEY_CHARACTERS = 1024
KEY_TOKENS = 256
_MASK = 2**64 - 1


class Load(Protocol):
    """A candidate. `seed` identifies it, and `in_flight` is its load, in tokens."""

    seed: int
    weight: float
    in_flight: int


Candidate = TypeVar("Candidate", bound=Load)


def seed_of(name: str) -> int:
    """Return the seed of the candidate `name`: the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def key_of(request: Request) -> int:
    """Return the key of a request's prompt.

    The turns of a conversation have the same key, because it ends with the first turn of the user.
    """
    if request.messages is not None:
        begin = []
        for message in request.messages:
            begin.append(message.content[:KEY_CHARACTERS])
            if message.role == "user":
                break
        text = "\0".join(begin)
    elif request.prompt is not None:
        text = request.prompt[:KEY_CHARACTERS]
    else:
        text = " ".join(map(str, (request.prompt_ids or ())[:KEY_TOKENS]))
    return seed_of(text)


def choose(key: int, num_tokens: int, candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate for `num_tokens` more tokens with this key. There must be one."""
    if len(candidates) == 1:
        return candidates[0]
    total = weights = 0.0
    for each in candidates:
        total += each.in_flight
        weights += each.weight
    bound = MAX_LOAD * (total + num_tokens) / weights
    few = FEW_REQUESTS * num_tokens
    best, best_rank = None, -math.inf
    least, least_load = candidates[0], math.inf
    for each in candidates:
        load = each.in_flight / each.weight
        if each.in_flight >= few:
            load += num_tokens / each.weight
        if load < least_load:
            least, least_load = each, load
        if load <= bound:
            rank = _rank(key, each)
            if rank > best_rank:
                best, best_rank = each, rank
    return least if best is None else best


def _rank(key: int, candidate: Load) -> float:
    """Return the candidate's rank for a key: the greater its weight, the more often the first."""
    mixed = (key ^ candidate.seed) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & _MASK
    mixed ^= mixed >> 32
    return candidate.weight / -math.log((mixed + 0.5) / 2**64)
