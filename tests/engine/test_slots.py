from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.slots import Slots


def test_requests_begin_in_the_order_of_their_arrival() -> None:
    begun: list[str] = []
    slots = Slots(2)
    for name in "abcd":
        assert slots.acquire(name, lambda name=name: begun.append(name))  # type: ignore[misc]
    assert begun == ["a", "b"]
    slots.release("b")
    slots.release("a")
    assert begun == ["a", "b", "c", "d"]


def test_a_full_queue_refuses() -> None:
    slots = Slots(1, max_waiting=1)
    assert slots.acquire("a", lambda: None)
    assert slots.acquire("b", lambda: None)
    assert not slots.acquire("c", lambda: None)


def test_no_bound_means_no_queue() -> None:
    slots = Slots(0)
    assert all(slots.acquire(str(n), lambda: None) for n in range(100))
    assert (slots.num_running, slots.num_waiting) == (100, 0)


def test_new_slots_go_to_those_who_wait_and_slots_that_are_taken_stay_taken() -> None:
    begun: list[str] = []
    slots = Slots(2)
    for name in "abcde":
        slots.acquire(name, lambda name=name: begun.append(name))  # type: ignore[misc]
    slots.resize(3)
    assert begun == ["a", "b", "c"]
    slots.resize(1)
    slots.release("a")
    slots.release("b")
    assert (begun, slots.num_running) == (["a", "b", "c"], 1)
    slots.release("c")
    assert begun == ["a", "b", "c", "d"]
    slots.resize(0)
    assert begun == ["a", "b", "c", "d", "e"]


@given(st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_never_more_than_the_slots_run_and_no_request_is_forgotten(
    num_slots: int, steps: list[tuple[bool, int]]
) -> None:
    slots = Slots(num_slots)
    begun: list[int] = []
    arrived: list[int] = []
    left: set[int] = set()
    for number, (arrives, which) in enumerate(steps):
        if arrives:
            arrived.append(number)
            slots.acquire(str(number), lambda number=number: begun.append(number))  # type: ignore[misc]
        elif arrived:
            leaver = arrived[which % len(arrived)]
            left.add(leaver)
            slots.release(str(leaver))
        assert slots.num_running <= num_slots
        assert slots.num_waiting == 0 or slots.num_running == num_slots
    for number in arrived:
        slots.release(str(number))
    assert (slots.num_running, slots.num_waiting) == (0, 0)
    assert begun == sorted(begun)
    assert set(arrived) - left <= set(begun)
