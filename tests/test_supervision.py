"""Tasks that must run for ever are started again, counted, and end the process as a last resort."""

import asyncio
import logging

import pytest

from penstock import supervision
from penstock.supervision import keep


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "DELAYS_S", (0.0,))


class Task:
    """A task that fails in a given way so many times, and then waits."""

    def __init__(self, num_failures: int, error: BaseException) -> None:
        self.num_runs = 0
        self.runs = asyncio.Event()
        self._num_failures = num_failures
        self._error = error

    async def run(self) -> None:
        self.num_runs += 1
        if self.num_runs <= self._num_failures:
            raise self._error
        self.runs.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("error", [KeyError("secret"), asyncio.CancelledError(), MemoryError()])
async def test_a_task_that_fails_is_logged_counted_and_started_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"test {type(error).__name__}"
    task = Task(3, error)
    kept = keep(name, task.run)
    assert supervision.failures[name] == 0
    await task.runs.wait()
    assert task.num_runs == 4
    assert supervision.failures[name] == 3
    # asyncio may tell of what an earlier test has left.
    records = [record for record in caplog.records if record.name != "asyncio"]
    assert [record.levelno for record in records] == [logging.ERROR] * 3
    assert all(name in record.getMessage() for record in records)
    assert "secret" not in "".join(record.getMessage() for record in records)
    kept.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kept
    assert task.num_runs == 4


async def test_a_task_that_returns_has_ended() -> None:
    async def run() -> None:
        pass

    await keep("test", run)
    assert supervision.failures["test"] == 0


@pytest.mark.parametrize("is_essential", [True, False])
async def test_the_process_ends_if_an_essential_task_cannot_be_helped(
    is_essential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(supervision, "end_process", reasons.append)
    task = Task(supervision.MAX_FAILURES, KeyError())
    kept = keep("hopeless", task.run, is_essential=is_essential)
    await task.runs.wait()
    kept.cancel()
    wanted = ["the task 'hopeless' failed 10 times in a row"] if is_essential else []
    assert reasons == wanted
