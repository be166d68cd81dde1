"""Requests go where their prompt is in the cache, unless that upstream has too much to do."""

import collections
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing import POLICIES, simulate
from penstock.engine.remote.engine import Remote
from penstock.engine.remote.routing import FEW_REQUESTS, MAX_LOAD, choose, key_of, seed_of
from penstock.request import Message, Request
from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.remote import ask


@dataclass(eq=False)
class Candidate:
    seed: int
    weight: float = 1.0
    in_flight: int = 0


def candidates(number: int) -> list[Candidate]:
    return [Candidate(seed_of(f"http://gpu{n}:8000")) for n in range(number)]


def test_a_key_goes_to_the_same_candidate_each_time() -> None:
    several = candidates(5)
    for key in map(seed_of, "abcdefgh"):
        assert len({choose(key, 0, several).seed for _ in range(3)}) == 1
        assert choose(key, 0, several) is choose(key, 0, several[::-1])


def test_only_the_keys_of_a_candidate_that_goes_move() -> None:
    several = candidates(5)
    gone = several[2]
    for n in range(500):
        before = choose(seed_of(f"{n}"), 0, several)
        after = choose(seed_of(f"{n}"), 0, [each for each in several if each is not gone])
        assert after is before or before is gone


def test_weights_divide_the_keys() -> None:
    several = candidates(3)
    several[0].weight = 3.0
    found = collections.Counter(choose(seed_of(f"{n}"), 0, several).seed for n in range(5000))
    assert 0.55 < found[several[0].seed] / 5000 < 0.65


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.1, 10)), min_size=2, max_size=9),
    st.integers(1, 5000),
    st.integers(0, 2**64 - 1),
)
def test_a_candidate_gets_more_only_within_the_bound_or_if_it_has_little(
    loads: list[tuple[int, float]], num_tokens: int, key: int
) -> None:
    several = candidates(len(loads))
    for each, (load, weight) in zip(several, loads, strict=True):
        each.in_flight, each.weight = load, weight
    chosen = choose(key, num_tokens, several)
    total = sum(each.in_flight for each in several) + num_tokens
    bound = MAX_LOAD * total / sum(each.weight for each in several)

    def load_of(each: Candidate) -> float:
        has_little = each.in_flight < FEW_REQUESTS * num_tokens
        return (each.in_flight + (0 if has_little else num_tokens)) / each.weight

    least = min(load_of(each) for each in several)
    assert load_of(chosen) <= max(least, bound * (1 + 1e-9))


def test_a_few_requests_do_not_leave_their_cache() -> None:
    several = candidates(8)
    home = choose(seed_of("a"), 1000, several)
    home.in_flight = 1000  # all others have nothing
    assert choose(seed_of("a"), 1000, several) is not home, "it would have more than its part"
    for each in several:
        each.in_flight = 1000
    assert choose(seed_of("a"), 1000, several) is home


def test_the_turns_of_a_conversation_have_one_key() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hello"))
    more = (*turns, Message("assistant", "Hi"), Message("user", "And now?"))
    other = (turns[0], Message("user", "Good day"))
    first, second, third = (key_of(Request("a", 1, messages=each)) for each in (turns, more, other))
    assert first == second != third
    assert key_of(Request("a", 1, prompt="x" * 5000)) == key_of(Request("b", 1, prompt="x" * 6000))
    assert key_of(Request("a", 1, prompt_ids=(1, 2))) != key_of(Request("a", 1, prompt_ids=(2, 1)))


def test_conversations_find_their_cache_and_the_load_stays_even() -> None:
    whole = simulate("one server", num_upstreams=8, num_requests=4000)
    ours = simulate("penstock", num_upstreams=8, num_requests=4000)
    blind = simulate("round robin", num_upstreams=8, num_requests=4000)
    assert ours.cached_part >= 0.9 * whole.cached_part
    assert blind.cached_part < 0.8 * whole.cached_part
    assert ours.max_load <= MAX_LOAD
    assert set(POLICIES) == {"one server", "round robin", "least connections", "penstock"}


async def test_a_full_upstream_gets_nothing_while_another_has_a_free_slot() -> None:
    async def go_on(exchange: Exchange) -> None:
        await exchange.tokens(1)
        await exchange.until_gone()

    one, two = FakeUpstream(), FakeUpstream()
    one.always = two.always = go_on
    async with fakes(one, two):
        engine = Remote(upstreams=[{"url": each.url, "slots": 2} for each in (one, two)])
        await engine.start()
        try:
            # The long prompt is more load than all the short ones, but needs only one slot.
            for name, prompt in (("long", "word " * 2000), *((f"short {n}", "a b") for n in "123")):
                await ask(engine, name, 9, prompt=prompt).until("delta")
            assert len(one.asked) == len(two.asked) == 2
        finally:
            await engine.stop()
