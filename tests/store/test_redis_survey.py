"""Which logs a replica takes for orphans when time has passed without it."""

from typing import Any, cast

import pytest

from penstock.store.redis import survey
from penstock.store.redis.client import Client
from penstock.store.redis.survey import LATE_S, SURVEY_S, Survey
from penstock.store.redis.tenure import Tenure
from tests.store.stores import Reports

HAS_A_LEASE, HAS_LEFT_A_LOG = -1, 1


class World:
    """A clock, another replica with a log, and the store that tells of it."""

    name, is_given_back = "this one", False

    def __init__(self) -> None:
        self.now = 100.0
        self.other = HAS_A_LEASE
        self.reports = Reports()
        self.survey = Survey(cast("Client", self), cast("Tenure", self), lambda: 0.0)

    async def run(self, *_: Any) -> list[tuple[bytes, int]]:
        return [(b"other", self.other)]

    async def call(self, *_: Any) -> dict[bytes, bytes]:
        return {b"s": b"1"}

    async def look(self, after: float) -> dict[str, int]:
        """Look once, so many seconds later; return what was reported so far."""
        self.now += after
        await self.survey._look(self.reports)
        return self.reports.orphans


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(survey, "now", lambda: made.now)
    return made


async def test_a_lease_that_lapses_leaves_orphans_at_once(world: World) -> None:
    assert await world.look(SURVEY_S) == {}
    world.other = HAS_LEFT_A_LOG
    assert await world.look(SURVEY_S) == {"s": 1}


async def test_a_replica_that_was_held_up_gives_the_owners_time_to_renew_their_leases(
    world: World,
) -> None:
    """The machine was suspended, or its processors were taken: every lease on it has lapsed."""
    await world.look(SURVEY_S)
    world.other = HAS_LEFT_A_LOG
    assert await world.look(30.0) == {}
    assert await world.look(LATE_S / 2) == {}
    world.other = HAS_A_LEASE
    for _ in range(10):
        assert await world.look(LATE_S / 2) == {}


async def test_an_owner_that_does_not_come_back_either_is_dead(world: World) -> None:
    await world.look(SURVEY_S)
    world.other = HAS_LEFT_A_LOG
    assert await world.look(30.0) == {}
    assert await world.look(LATE_S / 2) == {}
    assert await world.look(LATE_S / 2 + SURVEY_S) == {"s": 1}
