"""How much of the prompts each way of routing finds in a cache: `python -m benchmarks.routing`.

The prefix caches are simulated: each upstream keeps the blocks that it used last, as vLLM and
SGLang do. Conversations begin with one of a few system prompts and grow by a turn each time. "one
server" has the memory of all upstreams together: nothing can find more.
"""

import argparse
import collections
import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.engine.remote.routing import choose, key_of, seed_of
from penstock.request import Message, Request

BLOCK = 16
SYSTEM_TOKENS = 512
NUM_SYSTEM_PROMPTS = 6
TURN_TOKENS = (64, 400)
MAX_TURNS = 12
ANSWER_TOKENS = (32, 256)
CACHE_BLOCKS = 40_000  # of each upstream
NUM_CONVERSATIONS = 1500  # at once
TOKENS_PER_SECOND = 2000.0


@dataclass(eq=False)
class Upstream:
    """A simulated upstream with a cache of blocks, the last used last."""

    seed: int
    num_blocks: int
    weight: float = 1.0
    in_flight: int = 0
    num_requests: int = 0
    cache: collections.OrderedDict[tuple[int, ...], None] = field(
        default_factory=collections.OrderedDict
    )

    def read(self, blocks: list[tuple[int, ...]]) -> int:
        """Return how many blocks from the first on are cached, and cache all of them."""
        num_cached = 0
        for block in blocks:
            if block not in self.cache:
                break
            num_cached += 1
        for block in reversed(blocks):  # a beginning is used last: it outlives its ends
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.num_blocks:
            self.cache.popitem(last=False)
        return num_cached


@dataclass
class Conversation:
    """A conversation that grows."""

    number: int
    system: int
    num_tokens: int = SYSTEM_TOKENS
    num_turns: int = 0

    def request(self) -> Request:
        """Return the request for the next answer."""
        first = Message("user", f"question {self.number}")
        return Request("", 1, messages=(Message("system", f"system {self.system}"), first))

    def blocks(self) -> list[tuple[int, ...]]:
        """Return the names of the prompt's blocks; those of the system prompt are shared."""
        num_shared = SYSTEM_TOKENS // BLOCK
        number = self.num_tokens // BLOCK
        shared: list[tuple[int, ...]] = [(-1 - self.system, n) for n in range(num_shared)]
        return shared + [(self.number, n) for n in range(num_shared, number)]


Policy = Callable[[Request, int, list[Upstream], int], Upstream]


def _round_robin(_: Request, __: int, upstreams: list[Upstream], turn: int) -> Upstream:
    return upstreams[turn % len(upstreams)]


def _least_connections(_: Request, __: int, upstreams: list[Upstream], ___: int) -> Upstream:
    return min(upstreams, key=lambda each: each.num_requests)


def _penstock(request: Request, num_tokens: int, upstreams: list[Upstream], _: int) -> Upstream:
    return choose(key_of(request), num_tokens, upstreams)


POLICIES: dict[str, Policy] = {
    "one server": _round_robin,
    "round robin": _round_robin,
    "least connections": _least_connections,
    "penstock": _penstock,
}


@dataclass(frozen=True)
class Outcome:
    """The figures of one policy."""

    cached_part: float
    """The part of all prompt tokens that were cached."""
    max_load: float
    """The busiest upstream's load divided by the mean, at the 99th percentile of all moments."""
    choice_us: float
    """The CPU time of one choice, in microseconds."""


def simulate(
    policy: str, *, num_upstreams: int, num_requests: int, rate: float = 320.0, seed: int = 19
) -> Outcome:
    """Route the same requests with a policy. `rate` requests come each second."""
    chance = random.Random(seed)
    number = 1 if policy == "one server" else num_upstreams
    blocks = CACHE_BLOCKS * num_upstreams // number
    upstreams = [Upstream(seed_of(f"http://gpu{n}:8000"), blocks) for n in range(number)]
    numbers = itertools.count()
    open_ones: list[Conversation] = []
    ends: list[tuple[float, int, Upstream, int]] = []
    num_tokens = num_cached = 0
    loads: list[float] = []
    spent = now = 0.0
    for turn in range(num_requests):
        now += chance.expovariate(rate)
        while ends and ends[0][0] <= now:
            _, _, upstream, size = heapq.heappop(ends)
            upstream.in_flight -= size
            upstream.num_requests -= 1
        if len(open_ones) < NUM_CONVERSATIONS or chance.random() < 0.05:
            open_ones.append(Conversation(next(numbers), chance.randrange(NUM_SYSTEM_PROMPTS)))
        talk = chance.choice(open_ones)
        talk.num_tokens += chance.randrange(*TURN_TOKENS)
        talk.num_turns += 1
        if talk.num_turns == MAX_TURNS:
            open_ones.remove(talk)
        answer = chance.randrange(*ANSWER_TOKENS)
        size = talk.num_tokens + answer
        began = time.thread_time()
        upstream = POLICIES[policy](talk.request(), size, upstreams, turn)
        spent += time.thread_time() - began
        upstream.in_flight += size
        upstream.num_requests += 1
        num_cached += BLOCK * upstream.read(talk.blocks())
        num_tokens += talk.num_tokens
        heapq.heappush(ends, (now + answer * 20 / TOKENS_PER_SECOND, turn, upstream, size))
        if turn > num_requests // 10:
            mean = sum(each.in_flight for each in upstreams) / number
            loads.append(max(each.in_flight for each in upstreams) / mean)
    loads.sort()
    worst = loads[int(len(loads) * 0.99)]
    return Outcome(num_cached / num_tokens, worst, spent / num_requests * 1e6)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstreams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20_000)
    given = parser.parse_args()
    print(f"{'policy':<20}{'cached':>8}{'of one':>9}{'p99 max/mean load':>20}{'µs/request':>12}")
    best = 0.0
    for name in POLICIES:
        outcome = simulate(name, num_upstreams=given.upstreams, num_requests=given.requests)
        best = best or outcome.cached_part
        print(
            f"{name:<20}{outcome.cached_part:>8.1%}{outcome.cached_part / best:>9.1%}"
            f"{outcome.max_load:>20.2f}{outcome.choice_us:>12.1f}"
        )


if __name__ == "__main__":
    main()
