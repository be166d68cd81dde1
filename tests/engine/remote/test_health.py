"""An upstream that fails is left out for growing pauses, and comes back by one trial request."""

from penstock.engine.remote.health import JITTER, MAX_PAUSE_S, Health


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
    health.begin()
    assert not takes_requests(health)
    health.succeed()
    assert state_of(health) == "well"


def test_a_trial_that_fails_makes_the_next_pause_longer() -> None:
    health = well()
    health.fail(0.0, 0.0)
    first = health.look_at
    health.answer()
    health.begin()
    health.fail(first, 0.0)
    assert state_of(health) == "sick"
    assert health.look_at - first > first


def test_a_trial_that_says_nothing_is_followed_by_another() -> None:
    health = well()
    health.fail(0.0, 0.0)
    health.answer()
    health.begin()
    health.drop()
    assert health.takes_requests
