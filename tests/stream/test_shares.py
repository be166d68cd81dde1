"""A resource that owners share."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.stream.shares import Shares


def test_one_owner_may_take_all_and_another_still_gets_its_share() -> None:
    shares = Shares(100)
    assert shares.take("a", 100)
    assert not shares.take("a", 1)
    assert shares.take("b", 50)
    assert not shares.take("b", 1)
    assert shares.take("c", 33)
    assert not shares.take("d", 26)
    assert shares.held == 183
    shares.give_back("a", 100)
    assert shares.take("b", 17)
    assert not shares.take("b", 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans())))
def test_the_sum_is_right_and_never_beyond_twice_the_limit(
    steps: list[tuple[str, int, bool]],
) -> None:
    shares = Shares(100)
    held = {"a": 0, "b": 0, "c": 0}
    for owner, amount, takes in steps:
        if takes:
            held[owner] += amount * shares.take(owner, amount)
        else:
            back = min(amount, held[owner])
            held[owner] -= back
            shares.give_back(owner, back)
        assert shares.held == sum(held.values()) <= 200
        assert all(shares.held_by(name) == each for name, each in held.items())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 60))))
def test_an_owner_below_its_equal_share_is_never_kept_out(takes: list[tuple[str, int]]) -> None:
    shares = Shares(100)
    for owner, amount in takes:
        shares.take(owner, amount)
    if shares.held_by("c") == 0:
        assert shares.take("c", 33)
