"""Slots and places in the queue: single cases, and random requests of random owners."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.stream.admission import (
    TOKENS_OF_NOTHING,
    TOKENS_PER_SECOND,
    Admission,
    Ticket,
)


class Scene:
    """Admission, a clock, and tickets whose tokens the test sets."""

    def __init__(self, num_slots: int, max_queue: int = 1000) -> None:
        self.admission = Admission(num_slots, max_queue)
        self.now = 0.0
        self.tokens: dict[str, int] = {}
        self.started: list[str] = []

    def enter(self, name: str, owner: str = "a", max_tokens: int = 10, *, model: str = "") -> bool:
        self.tokens[name] = 0
        ticket = Ticket(name, owner, max_tokens, lambda: self.tokens[name], model=model)
        has_slot = self.admission.enter(ticket, self.now)
        if has_slot:
            self.started.append(name)
        return has_slot

    def leave(self, name: str, *, tokens: int = 0) -> list[str]:
        """Give back a slot or a place; return the tickets that start then."""
        self.tokens[name] = tokens
        self.admission.leave(name, self.now)
        begun = []
        while ticket := self.admission.next(self.now):
            begun.append(ticket.id)
        self.started += begun
        return begun

    def queue(self) -> list[str]:
        places = self.admission.places()
        return sorted(places, key=lambda name: places[name].position)


def test_all_begin_at_once_where_there_is_no_bound() -> None:
    scene = Scene(num_slots=0, max_queue=0)
    assert all(scene.enter(str(n)) for n in range(100))
    assert scene.admission.num_running == 100


def test_one_owner_is_served_in_order() -> None:
    scene = Scene(num_slots=2)
    assert [scene.enter(name) for name in "12345"] == [True, True, False, False, False]
    assert scene.queue() == ["3", "4", "5"]
    assert scene.leave("2") == ["3"]
    assert scene.leave("4") == []  # it left the queue
    assert scene.leave("1") == ["5"]
    assert scene.admission.num_waiting == 0


def test_leaving_twice_or_never_having_been_there_changes_nothing() -> None:
    scene = Scene(num_slots=1)
    scene.enter("1")
    scene.enter("2")
    assert scene.leave("1") == ["2"]
    assert scene.leave("1") == []
    scene.admission.leave("never", 0.0)
    assert (scene.admission.num_running, scene.admission.num_waiting) == (1, 0)


def test_a_newcomer_goes_before_the_flood_of_another() -> None:
    scene = Scene(num_slots=1)
    for n in range(50):
        scene.enter(f"flood {n}", "flood")
    scene.enter("quiet", "quiet")
    assert scene.queue()[0] == "quiet"
    assert scene.leave("flood 0", tokens=10) == ["quiet"]
    assert scene.leave("quiet", tokens=10) == ["flood 1"]


def test_owners_take_turns_by_tokens_not_by_requests() -> None:
    """The owner of short answers gets more turns than the owner of long answers."""
    scene = Scene(num_slots=1)
    cost = {"long": 90, "short": 10}
    for n in range(200):
        scene.enter(f"long {n}", "long")
        scene.enter(f"short {n}", "short")
    served = {"long": 0, "short": 0}
    for _ in range(100):
        owner = scene.started[-1].split()[0]
        served[owner] += cost[owner]
        scene.leave(scene.started[-1], tokens=cost[owner])
    assert abs(served["long"] - served["short"]) <= 180


def test_an_owner_that_leaves_and_comes_back_is_not_served_before_its_turn() -> None:
    """Usage counts though its owner was away for a moment."""
    scene = Scene(num_slots=2)
    scene.enter("b 1", "b")
    scene.enter("a 1", "a")
    scene.leave("a 1", tokens=1000)
    scene.enter("a 2", "a")
    scene.enter("a 3", "a")
    for n in range(2, 6):
        scene.enter(f"b {n}", "b")
    assert scene.leave("b 1", tokens=10) == ["b 2"]
    assert scene.leave("a 2", tokens=10) == ["b 3"]
    assert scene.leave("b 2", tokens=10) == ["b 4"]


def test_usage_while_an_owner_is_alone_does_not_count() -> None:
    scene = Scene(num_slots=1)
    scene.enter("a 1", "a")
    scene.leave("a 1", tokens=1000)
    scene.enter("b 1", "b")
    scene.enter("a 2", "a")
    scene.enter("b 2", "b")
    assert scene.leave("b 1", tokens=10) == ["a 2"]


def test_an_idle_owner_saves_up_no_turns() -> None:
    scene = Scene(num_slots=1)
    scene.enter("b 0", "b")
    scene.leave("b 0", tokens=1)
    for n in range(20):
        scene.enter(f"a {n}", "a")
    for n in range(10):
        scene.leave(f"a {n}", tokens=100)
    for n in range(1, 10):
        scene.enter(f"b {n}", "b")
    turns = []
    for _ in range(8):
        turns.append(scene.started[-1][0])
        scene.leave(scene.started[-1], tokens=100)
    assert turns.count("b") == 4


def test_the_queue_is_bounded_and_a_newcomer_finds_room_in_a_full_queue() -> None:
    scene = Scene(num_slots=1, max_queue=10)
    scene.enter("running", "flood")
    for n in range(10):
        assert scene.admission.has_room("flood")
        scene.enter(f"flood {n}", "flood")
    assert not scene.admission.has_room("flood")
    for n in range(5):  # each of two owners may fill half of the queue
        assert scene.admission.has_room("quiet")
        scene.enter(f"quiet {n}", "quiet")
    assert not scene.admission.has_room("quiet")
    assert scene.admission.has_room("third")
    for owner in range(100):
        if scene.admission.has_room(f"other {owner}"):
            scene.enter(f"other {owner}", f"other {owner}")
    assert scene.admission.num_waiting <= 20


def test_the_queue_s_memory_is_bounded_and_shared() -> None:
    admission = Admission(1, max_queue=100, max_queue_bytes=1000)
    admission.enter(Ticket("running", "flood", 1), 0.0)
    for n in range(10):
        assert admission.has_room("flood", 100)
        admission.enter(Ticket(f"flood {n}", "flood", 1, num_bytes=100), 0.0)
    assert not admission.has_room("flood", 1)
    assert admission.has_room("quiet", 500)
    assert not admission.has_room("quiet", 501)
    admission.enter(Ticket("quiet", "quiet", 1, num_bytes=500), 0.0)
    assert not admission.has_room("quiet", 1)
    admission.leave("flood 0", 0.0)
    assert not admission.has_room("flood", 1)
    for n in range(1, 10):
        admission.leave(f"flood {n}", 0.0)
    assert admission.has_room("flood", 500)


def test_without_a_queue_only_free_slots_are_given() -> None:
    scene = Scene(num_slots=1, max_queue=0)
    assert scene.admission.has_room("a")
    scene.enter("1")
    assert not scene.admission.has_room("a")
    assert not scene.admission.has_room("b")
    scene.leave("1")
    assert scene.admission.has_room("b")


def test_estimates_follow_from_how_long_slots_were_held() -> None:
    scene = Scene(num_slots=2)
    scene.enter("1")
    scene.enter("2")
    scene.enter("3")
    assert scene.admission.places()["3"].eta is None
    scene.now = 4.0
    scene.leave("1")
    scene.enter("4")
    scene.enter("5")
    places = scene.admission.places()
    assert (places["4"].position, places["4"].eta) == (1, 2.0)
    assert (places["5"].position, places["5"].eta) == (2, 4.0)
    assert scene.admission.eta_of_new("a") == 6.0


def test_refused_clients_retry_before_the_queue_is_empty_and_not_all_at_once() -> None:
    scene = Scene(num_slots=2)
    scene.enter("done")
    scene.now = 10.0
    scene.leave("done")
    for n in range(22):
        scene.enter(str(n))
    told = {scene.admission.retry_after() for _ in range(500)}  # 20 wait, 10 s each, 2 at once
    assert min(told) >= 52
    assert max(told) <= 106
    assert len(told) > 20


def test_retry_after_is_at_least_a_second_and_at_most_ten_minutes() -> None:
    scene = Scene(num_slots=1)
    assert scene.admission.retry_after() == 1
    scene.enter("slow")
    scene.now = 100_000.0
    scene.leave("slow")
    assert scene.admission.retry_after() == 600


def test_owners_that_are_gone_leave_nothing_behind() -> None:
    scene = Scene(num_slots=1)
    for n in range(1000):
        scene.enter(str(n), f"owner {n}")
        scene.leave(str(n), tokens=5)
    assert len(scene.admission._owners) == 0
    assert len(scene.admission._levels) == 0


# Several models, of which each has slots of its own.


def two_models(busy: int = 2, other: int = 2, num_slots: int = 4, max_queue: int = 1000) -> Scene:
    scene = Scene(num_slots, max_queue)
    scene.admission.bounds = {"busy": busy, "other": other}
    return scene


def test_a_busy_model_takes_no_slot_of_another_and_its_queue_is_passed() -> None:
    scene = two_models()
    assert [scene.enter(f"b{n}", model="busy") for n in range(5)] == [True, True, *[False] * 3]
    assert scene.enter("o0", model="other")
    assert scene.enter("o1", model="other")
    assert not scene.enter("o2", model="other")
    assert scene.leave("o0") == ["o2"]
    assert scene.leave("b0") == ["b2"]
    assert scene.leave("o1") == []
    assert scene.admission.num_running == 3


def test_places_and_waits_count_only_the_requests_of_the_same_model() -> None:
    scene = two_models(busy=1, other=2)
    for n in range(10):
        scene.enter(f"b{n}", model="busy")
    scene.now = 6.0
    scene.leave("b0")
    for n in range(4):
        scene.enter(f"o{n}", "another", model="other")
    places = scene.admission.places()
    assert {name: places[name].position for name in ("b2", "b9", "o2", "o3")} == {
        "b2": 1,
        "b9": 8,
        "o2": 1,
        "o3": 2,
    }
    assert (places["b2"].eta, places["o2"].eta) == (6.0, 3.0)
    assert scene.admission.eta_of_new("third", "busy") == 6.0
    scene.leave("o0")
    scene.leave("o1")
    scene.leave("o2")
    assert scene.admission.eta_of_new("third", "other") == 0.0


def test_requests_of_a_model_without_upstreams_wait_until_it_has_one() -> None:
    scene = two_models(busy=0)
    assert not scene.enter("b", model="busy")
    assert scene.enter("o", model="other")
    assert scene.admission.next(scene.now) is None
    assert scene.admission.places()["b"].eta is None
    scene.admission.bounds = {"busy": 1, "other": 2}
    ticket = scene.admission.next(scene.now)
    assert ticket is not None
    assert ticket.id == "b"


def test_a_cancelled_request_has_the_slot_of_its_model_until_the_engine_lets_go_of_it() -> None:
    scene = two_models()
    stopping = {"busy": 1}
    scene.admission.num_stopping_of = lambda model: stopping.get(model, 0)
    assert scene.enter("b0", model="busy")
    assert not scene.enter("b1", model="busy")
    assert scene.enter("o0", model="other")
    assert scene.enter("o1", model="other")
    assert scene.admission.next(scene.now) is None
    stopping.clear()
    ticket = scene.admission.next(scene.now)
    assert ticket is not None
    assert ticket.id == "b1"


def test_a_queue_that_is_full_of_one_model_refuses_none_that_another_can_start() -> None:
    scene = two_models(max_queue=3)
    for n in range(5):
        assert scene.admission.has_room("a", model="busy")
        scene.enter(f"b{n}", model="busy")
    assert not scene.admission.has_room("a", model="busy")
    assert scene.admission.has_room("a", model="other")
    assert scene.admission.has_room("a")  # before its model is known
    scene.enter("o0", model="other")
    scene.enter("o1", model="other")
    assert not scene.admission.has_room("a", model="other")
    assert not scene.admission.has_room("a")


def test_all_slots_together_are_bounded_and_go_round_the_owners_of_all_models() -> None:
    scene = two_models(busy=3, other=3, num_slots=3)
    for n in range(9):
        scene.enter(f"b{n}", "a", model="busy")
    assert not scene.enter("o0", "b", model="other")
    assert scene.leave("b0", tokens=10) == ["o0"]


# Random requests: in each step a request enters or leaves, and time passes.

steps = st.lists(
    st.tuples(st.sampled_from(["enter", "leave"]), st.integers(0, 3), st.integers(0, 50)),
    max_size=120,
)


@given(steps, st.integers(1, 4), st.integers(0, 8))
def test_no_slot_is_free_while_somebody_waits_and_counts_are_true(
    steps: list[tuple[str, int, int]], num_slots: int, max_queue: int
) -> None:
    scene = Scene(num_slots, max_queue)
    here: list[str] = []
    for number, (what, owner, amount) in enumerate(steps):
        scene.now += amount / 10
        if what == "enter" and scene.admission.has_room(f"{owner}"):
            here.append(str(number))
            scene.enter(str(number), f"{owner}")
        elif here:
            scene.leave(here.pop(amount % len(here)), tokens=amount)
        running = scene.admission.num_running
        assert running + scene.admission.num_waiting == len(here)
        assert running == min(num_slots, len(here))
        assert scene.admission.num_waiting <= 2 * max_queue
        places = scene.admission.places()
        assert sorted(place.position for place in places.values()) == list(
            range(1, scene.admission.num_waiting + 1)
        )
    for name in here:
        scene.leave(name)
    assert (scene.admission.num_running, scene.admission.num_waiting) == (0, 0)


@given(steps, st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))
def test_no_slot_of_a_model_is_free_while_its_requests_wait(
    steps: list[tuple[str, int, int]], num_slots: int, first: int, second: int
) -> None:
    scene = Scene(num_slots)
    bounds = scene.admission.bounds = {"0": first, "1": second}
    here: dict[str, str] = {}
    running: set[str] = set()
    for number, (what, owner, amount) in enumerate(steps):
        name, model = str(number), str(amount % 2)
        scene.now += amount / 10
        if what == "enter":
            here[name] = model
            running |= {name} if scene.enter(name, str(owner), model=model) else set()
        elif here:
            gone = list(here)[amount % len(here)]
            del here[gone]
            running = (running - {gone}) | set(scene.leave(gone, tokens=amount))
        busy = {each: sum(here[one] == each for one in running) for each in bounds}
        waiting = {each for name, each in here.items() if name not in running}
        assert scene.admission.num_running == len(running)
        assert all(busy[each] <= bounds[each] for each in bounds)
        assert not num_slots or len(running) <= num_slots
        if not num_slots or len(running) < num_slots:
            assert all(busy[each] == bounds[each] for each in waiting)
        places = scene.admission.places()
        assert {here[each] for each in places} == waiting
        for each in waiting:
            positions = sorted(p.position for name, p in places.items() if here[name] == each)
            assert positions == list(range(1, len(positions) + 1))


@given(steps, st.integers(1, 4))
def test_an_owner_s_requests_begin_in_their_order(
    steps: list[tuple[str, int, int]], num_slots: int
) -> None:
    scene = Scene(num_slots)
    running: list[str] = []
    entered: dict[int, list[str]] = {}
    for number, (what, owner, amount) in enumerate(steps):
        if what == "enter":
            entered.setdefault(owner, []).append(f"{owner} {number}")
            if scene.enter(f"{owner} {number}", str(owner)):
                running.append(f"{owner} {number}")
        elif running:
            running += scene.leave(running.pop(amount % len(running)), tokens=amount)
    for owner, names in entered.items():
        began = [name for name in scene.started if name.startswith(f"{owner} ")]
        assert began == names[: len(began)]


@pytest.mark.parametrize("num_slots", [1, 3, 8])
@pytest.mark.parametrize(
    "cost_of",
    [
        lambda owner: {"a": 5, "b": 50, "c": 200}[owner],
        lambda owner: random.randint(1, 200),
    ],
    ids=["each its own", "random"],
)
def test_owners_that_always_want_more_get_the_same_number_of_tokens(
    num_slots: int, cost_of: Callable[[str], int]
) -> None:
    random.seed(7)
    scene = Scene(num_slots)
    for n in range(20):
        for owner in "abc":
            scene.enter(f"{owner} {n}", owner, max_tokens=200)
    served = dict.fromkeys("abc", 0)
    running = list(scene.started)
    for n in range(20, 2000):
        name = running.pop(random.randrange(len(running)))
        tokens = cost_of(name[0])
        served[name[0]] += tokens
        begun = scene.leave(name, tokens=tokens)
        running += begun
        for each in begun:
            scene.enter(f"{each[0]} {n} again", each[0], max_tokens=200)
    # An owner may be ahead by all running tickets at their highest cost.
    assert max(served.values()) - min(served.values()) <= 200 * (num_slots + 2)


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 40),
    st.lists(st.integers(1, 60), min_size=5, max_size=60),
)
def test_a_flood_cannot_raise_a_newcomer_s_wait_beyond_its_share(
    num_slots: int, num_floods: int, depth: int, costs: list[int]
) -> None:
    """Once a newcomer waits, at most one more request of each other owner starts before it."""
    scene = Scene(num_slots)
    for n in range(depth + num_slots):
        for flood in range(num_floods):
            scene.enter(f"{flood} {n}", f"flood {flood}")
    running = list(scene.started)
    for cost in costs[: depth // 2]:
        running += scene.leave(running.pop(0), tokens=cost)
    if not scene.enter("quiet", "quiet"):
        began: list[str] = []
        while "quiet" not in began:
            cost = costs[len(began) % len(costs)]
            now = scene.leave(running.pop(0), tokens=cost)
            running += now
            began += now
        assert len(began) - 1 <= num_floods


# Work: what requests cost that end without a token.


def test_time_in_a_slot_is_work_also_without_a_token() -> None:
    scene = Scene(num_slots=1)
    for n in range(20):
        scene.enter(f"slow {n}", "slow")
        scene.enter(f"quick {n}", "quick")
    for _ in range(20):
        name = scene.started[-1]
        scene.now += 1.0 if name.startswith("slow") else 0.0
        scene.leave(name, tokens=0 if name.startswith("slow") else TOKENS_PER_SECOND)
    num_slow = sum(name.startswith("slow") for name in scene.started)
    # A second without a token costs what a second's tokens cost, and 16 more.
    assert 8 <= num_slow <= 10


def test_a_request_without_a_token_and_without_time_costs_something() -> None:
    scene = Scene(num_slots=1)
    for n in range(100):
        scene.enter(f"nothing {n}", "nothing")
        scene.enter(f"some {n}", "some")
    for _ in range(50):
        name = scene.started[-1]
        scene.leave(name, tokens=0 if name.startswith("nothing") else TOKENS_OF_NOTHING)
    assert 24 <= sum(name.startswith("some") for name in scene.started) <= 26


def test_leaving_the_queue_again_and_again_costs_something() -> None:
    scene = Scene(num_slots=1)
    scene.enter("running", "other")
    for n in range(100):
        scene.enter(f"waits {n}", "storm")
        scene.leave(f"waits {n}")
    scene.enter("storm", "storm")
    scene.enter("other", "other")
    assert scene.leave("running", tokens=100) == ["other"]


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 20)), max_size=60),
    st.integers(1, 3),
)
def test_newcomers_get_the_next_slots_in_the_order_of_their_arrival(
    num_slots: int, history: list[tuple[int, int, int]], num_newcomers: int
) -> None:
    """Whatever others had before: requests without tokens, slow ones, many owners."""
    scene = Scene(num_slots)
    running: list[str] = []
    here: list[str] = []
    firsts: set[str] = set()
    """The tickets of owners that had nothing running and nothing waiting."""

    def enter(name: str) -> None:
        owner = name.split()[0]
        if not any(each.split()[0] == owner for each in here):
            firsts.add(name)
        here.append(name)
        if scene.enter(name, owner):
            running.append(name)

    def leave(tokens: int) -> list[str]:
        name = running.pop(0)
        here.remove(name)
        begun = scene.leave(name, tokens=tokens)
        running.extend(begun)
        return begun

    for number, (owner, tokens, tenths) in enumerate(history):
        enter(f"{owner} {number} a")
        enter(f"{owner} {number} b")
        scene.now += tenths / 10
        leave(tokens)
    names = [f"new{number}" for number in range(num_newcomers)]
    for name in names:
        enter(name)
    waiting = [name for name in names if name not in running]
    began: list[str] = []
    while not set(waiting) <= set(began):
        began += leave(1)
    assert [name for name in began if name in waiting] == waiting
    # Only newcomers who came before them can start before them.
    assert set(began) <= firsts


def test_an_owner_that_comes_back_far_ahead_of_the_others_is_no_newcomer() -> None:
    """Otherwise it could send one huge request after the other, each before all others."""
    scene = Scene(num_slots=1)
    scene.enter("small 0", "small")
    for n in range(1, 100):
        scene.enter(f"small {n}", "small")
    scene.enter("huge 0", "huge")
    assert scene.leave("small 0", tokens=10) == ["huge 0"]
    assert scene.leave("huge 0", tokens=1000) == ["small 1"]
    scene.enter("huge 1", "huge")
    assert scene.leave("small 1", tokens=10) == ["small 2"]
    for n in range(2, 10):
        assert scene.leave(f"small {n}", tokens=10) == [f"small {n + 1}"]


def test_an_owner_that_comes_back_like_all_others_is_a_newcomer_again() -> None:
    scene = Scene(num_slots=1)
    for n in range(20):
        scene.enter(f"flood {n}", "flood")
    for n in range(5):
        scene.enter(f"quiet {n}", "quiet")
        assert scene.leave(f"flood {n}", tokens=10) == [f"quiet {n}"]
        assert scene.leave(f"quiet {n}", tokens=10) == [f"flood {n + 1}"]
