"""An upstream that fails is left out for growing pauses, and comes back by one trial request."""

from penstock.engine.remote.health import FIRST_PAUSE_S, JITTER, MAX_PAUSE_S, Health

ONE, OTHER = "one", "other"
"""Two requests."""


def state_of(health: Health) -> str:
    return health.state


def takes_requests(health: Health) -> bool:
    return health.takes_requests


def well() -> Health:
    health = Health()
    health.answer()
    return health


def test_an_upstream_is_sick_until_it_has_answered() -> None:
    health = Health()
    assert not health.takes_requests
    health.answer()
    assert state_of(health) == "well"


def test_pauses_grow_up_to_a_bound() -> None:
    health = well()
    now, pauses = 0.0, []
    for _ in range(12):
        health.fail(now, 0.0)
        pauses.append(health.look_at - now)
        now = health.look_at
    assert pauses == sorted(pauses)
    assert pauses[1] == 2 * pauses[0]
    assert pauses[-1] == MAX_PAUSE_S
    health.fail(now, 1.0)
    assert health.look_at - now == MAX_PAUSE_S * (1 + JITTER)


def test_the_pauses_after_failed_looks_grow_only_to_the_time_between_two_looks() -> None:
    health, now = well(), 0.0
    for _ in range(12):
        health.fail(now, 0.0, longest=5.0)
        now = health.look_at
    health.fail(now, 0.0, longest=5.0)
    assert health.look_at - now == 5.0


def test_failures_of_requests_that_were_under_way_do_not_make_the_pause_longer() -> None:
    health = well()
    health.fail(0.0, 0.0)
    until = health.look_at
    for _ in range(50):
        health.fail(until / 2, 0.0)
    assert (health.look_at, health.num_failures) == (until, 1)


def test_one_request_tries_an_upstream_that_answers_again() -> None:
    health = well()
    health.fail(0.0, 0.0)
    health.answer()
    assert state_of(health) == "trial"
    assert health.takes_requests
    health.begin(ONE)
    assert not takes_requests(health)
    health.succeed(ONE)
    assert state_of(health) == "well"


def test_a_trial_that_fails_makes_the_next_pause_longer() -> None:
    health = well()
    health.fail(0.0, 0.0)
    first = health.look_at
    health.answer()
    health.begin(ONE)
    health.fail(first, 0.0)
    assert state_of(health) == "sick"
    assert health.look_at - first > first


def test_a_trial_that_says_nothing_is_followed_by_another() -> None:
    health = well()
    health.fail(0.0, 0.0)
    health.answer()
    health.begin(ONE)
    health.drop(ONE)
    assert health.takes_requests


def test_only_the_request_that_tries_an_upstream_decides_about_it() -> None:
    health = well()
    health.begin(OTHER)
    health.fail(0.0, 0.0)
    health.answer()
    health.begin(ONE)
    health.drop(OTHER)  # it began before the failure
    assert not takes_requests(health)
    health.succeed(OTHER)
    assert (state_of(health), takes_requests(health)) == ("trial", False)
    health.succeed(ONE)
    assert state_of(health) == "well"


def test_an_earlier_trial_does_not_end_the_next_one() -> None:
    health = well()
    health.fail(0.0, 0.0)
    health.answer()
    health.begin(OTHER)
    health.fail(health.look_at, 0.0)
    health.answer()
    health.begin(ONE)
    health.drop(OTHER)
    assert not takes_requests(health)
    health.drop(ONE)
    assert takes_requests(health)


def test_an_upstream_may_ask_for_a_longer_pause_up_to_the_bound() -> None:
    for asked, pause in ((0.1, FIRST_PAUSE_S), (7.0, 7.0), (3600.0, MAX_PAUSE_S)):
        health = well()
        health.fail(0.0, 0.0, asked=asked)
        assert health.look_at == pause
