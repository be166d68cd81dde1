"""Which of several processes accepts the next connection."""

from pathlib import Path

import pytest

from penstock.processes import turns
from penstock.processes.turns import LeastConnections, new_loads


class Clock:
    """A clock that goes only when it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Process(LeastConnections):
    """A process that is ready until `is_up` is False."""

    def __init__(self, path: Path, own: int, clock: Clock) -> None:
        self.is_up = True
        super().__init__(path, own, lambda: self.is_up, clock)

    def accepts(self) -> bool:
        """Ask whose turn it is, and take it."""
        if self.delay() is not None:
            return False
        self.taken()
        return True


@pytest.fixture
def both(tmp_path: Path, clock: Clock) -> tuple[Process, Process]:
    path = new_loads(tmp_path / "loads", 2)
    return Process(path, 0, clock), Process(path, 1, clock)


def test_the_process_with_fewer_connections_takes_the_next(both: tuple[Process, Process]) -> None:
    one, two = both
    assert one.accepts()
    assert not one.accepts()
    assert two.accepts()
    assert two.accepts()  # now both have the same, and anybody may
    assert not two.accepts()
    two.closed()
    two.closed()
    assert not one.accepts()
    assert two.accepts()


def test_a_process_that_does_not_take_its_turn_is_passed_over_for_a_while(
    both: tuple[Process, Process], clock: Clock
) -> None:
    one, _ = both
    assert one.accepts()
    assert one.delay() == 0.0
    clock.now += 2 * turns.PATIENCE_S
    assert one.accepts()
    assert one.accepts()  # at once
    clock.now += 2 * turns.PASS_OVER_S
    assert one.delay() == 0.0


def test_a_process_that_cannot_serve_leaves_connections_to_the_others(
    both: tuple[Process, Process],
) -> None:
    one, two = both
    one.is_up = False
    assert one.delay() == turns.ABSENT_PAUSE_S
    assert two.accepts()
    assert two.accepts()  # nobody else counts
    two.is_up = False
    two.publish()
    assert one.accepts()  # somebody must say that none can serve
    one.is_up = two.is_up = True
    two.publish()
    one.publish()
    assert one.accepts()
    assert one.accepts()
    assert not one.accepts()


def test_a_new_process_has_no_connections(tmp_path: Path, clock: Clock) -> None:
    path = new_loads(tmp_path / "loads", 2)
    one, killed = Process(path, 0, clock), Process(path, 1, clock)
    for _ in range(3):
        killed.taken()
    assert all(one.accepts() for _ in range(3))
    Process(path, 1, clock)
    assert not one.accepts()
