"""Which slot a prompt gets: its own conversation's, and no other living one's if that can be."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.llamacpp.slot_caches import SlotCaches

# An agent's rules and tools, with which every session of it begins.
RULES = list(range(1000))


def session(name: int, num_tokens: int) -> list[int]:
    """Return the prompt of a session of the agent, with so many tokens of its own."""
    return RULES + [name] * num_tokens


def other(name: int, num_tokens: int = 500) -> list[int]:
    """Return a prompt that begins as nothing else does."""
    return [name] * num_tokens


def slots_of(caches: SlotCaches, *prompts: list[int]) -> list[int]:
    """Return the slots that these prompts get, one after the other."""
    slots = []
    for prompt in prompts:
        with caches.taken("a", prompt) as slot:
            slots.append(slot)
    return slots


def test_a_conversation_goes_on_in_its_slot_in_any_order() -> None:
    caches = SlotCaches(3)
    assert slots_of(caches, other(1), other(2), other(3)) == [0, 1, 2]
    assert slots_of(caches, other(3, 600), other(1, 600), other(2, 600)) == [2, 0, 1]
    assert slots_of(caches, other(2, 5000)) == [1]


def test_a_new_conversation_gets_the_slot_that_was_idle_longest() -> None:
    caches = SlotCaches(3)
    slots_of(caches, other(1), other(2), other(3), other(1, 600))
    assert slots_of(caches, other(4), other(5)) == [1, 2]


def test_a_prompt_that_shares_little_leaves_a_long_conversation_alone() -> None:
    caches = SlotCaches(2)
    short = [*other(1, 20), *other(9, 80)]
    assert slots_of(caches, other(1, 900), short) == [0, 1]


def test_sessions_that_follow_each_other_read_the_rules_once() -> None:
    caches = SlotCaches(4)
    sessions = [session(name, size) for name in range(1, 6) for size in (1, 200, 400)]
    assert set(slots_of(caches, *sessions)) == {0}


def test_two_sessions_that_both_go_on_part_after_one_turn_each() -> None:
    caches = SlotCaches(2)
    assert slots_of(caches, session(1, 300), session(2, 300)) == [0, 0]
    turns = [session(name, size) for size in (400, 500, 600) for name in (1, 2)]
    assert slots_of(caches, *turns) == [1, 0] * 3


def test_sessions_that_part_take_no_slot_of_a_conversation_that_goes_on() -> None:
    caches = SlotCaches(2)
    turns = [
        prompt
        for size in (300, 400, 500, 600)
        for prompt in (session(1, size), other(7, size), session(2, size))
    ]
    slots = slots_of(caches, *turns)
    assert slots[1::3] == [1] * 4
    assert set(slots[::3] + slots[2::3]) == {0}


def test_a_slot_that_was_left_is_the_next_request_s_own() -> None:
    caches = SlotCaches(2)
    with contextlib.ExitStack() as next_request:
        with caches.taken("a", other(1)) as slot:
            caches.leave("a")
            assert next_request.enter_context(caches.taken("b", other(1, 600))) == slot
        with caches.taken("c", other(1, 700)) as third:
            assert third != slot


@given(st.lists(st.lists(st.integers(0, 2), max_size=30), min_size=1, max_size=30), st.data())
def test_requests_never_share_a_slot(prompts: list[list[int]], data: st.DataObject) -> None:
    caches = SlotCaches(3)
    running: dict[int, contextlib.ExitStack] = {}
    for number, prompt in enumerate(prompts):
        if len(running) == 3 or (running and data.draw(st.booleans())):
            running.pop(data.draw(st.sampled_from(sorted(running)))).close()
        stack = contextlib.ExitStack()
        slot = stack.enter_context(caches.taken(str(number), prompt))
        assert slot not in running
        assert slot in {0, 1, 2}
        running[slot] = stack
