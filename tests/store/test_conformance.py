"""Every store keeps the protocol of `penstock/store/protocol.py`: one test for all of them."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from penstock.store.protocol import CLAIMED, MAX_GROUP, Entry, StoredLog
from tests.store.stores import LONG_S, PLACES, Reading, Replica, ReplicaProcess, Replicas
from tests.store.stores import replicas_of as open_replicas


@pytest.fixture(params=PLACES)
async def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with open_replicas(request.param, tmp_path) as opened:
        yield opened


def numbers(first: int, end: int) -> list[Entry]:
    return [str(number).encode() for number in range(first, end)]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again: for what a store answers but does not report."""
    async with asyncio.timeout(LONG_S):
        while not await condition():  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.01)


# Appending.


async def test_thens_are_called_in_the_order_of_the_calls(replicas: Replicas) -> None:
    store = (await replicas.new()).store
    log, other = store.open("s", b"header"), store.open("other", b"header")
    order: list[str] = []
    done, nested_done = asyncio.Event(), asyncio.Event()

    def nested() -> None:
        order.append("nested")
        nested_done.set()

    def first() -> None:
        order.append("first")
        store.append([(other, b"nested")], nested)

    store.append([(log, b"1")], first)
    store.append([], lambda: order.append("nothing"))
    store.append([(log, b"2")], lambda: order.append("second"))
    store.end(log, b"3", 60.0, lambda: order.append("end"))
    store.append([], done.set)
    async with asyncio.timeout(LONG_S):
        await done.wait()
        await nested_done.wait()
    # The nested call came after `append` for "first", and some time before its `then`.
    assert [each for each in order if each != "nested"] == ["first", "nothing", "second", "end"]
    assert order.index("nested") > order.index("first")


async def test_a_then_comes_after_everything_appended_before_is_stored(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    logs = [a.store.open(f"s{number}", b"h") for number in range(3)]
    for log in logs:
        a.store.append([(log, log.stream_id.encode())])
    await a.stored(logs[0])  # nothing: it waits for the others
    for log in logs:
        assert await b.all_of(log.stream_id) == [log.stream_id.encode()]


async def test_a_log_is_read_as_it_was_appended(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    entries = [bytes(range(256)), b"\x00", "é\n".encode(), b"x" * 10_000, *numbers(0, 200)]
    header = bytes(range(256)) * 8192  # 2 MiB
    log = a.store.open("s", header)
    assert (log.stream_id, log.epoch) == ("s", 1)
    await a.stored(log, *entries[:100])
    await a.stored(log, *entries[100:])
    await a.ended(log, b"last")
    for replica in (a, b):
        reading = await replica.reading("s")
        assert reading.followed.header == header
        assert reading.followed.epoch == 1
        assert reading.entries == [*entries, b"last"]
        reading.followed.close()
        reading.followed.close()


async def test_a_log_is_read_after_any_of_its_entries(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    log = a.store.open("s", b"h")
    for number in numbers(0, 300):
        a.store.append([(log, number)])
    await a.stored(log)
    for after in (0, 1, 63, 64, 65, 128, 299, 300, 301, 1000):
        reading = await b.reading("s", after)
        assert reading.entries == numbers(after, 300)
        reading.followed.close()
    later = await b.reading("s", 302)
    await a.stored(log, *numbers(300, 305))
    await later.until_it_has(3)
    assert later.entries == numbers(302, 305)


async def test_an_unknown_log_is_none(replicas: Replicas) -> None:
    a = await replicas.new()
    assert (await a.reading("unknown")).following is None
    assert not await a.store.is_followed("unknown")
    assert await a.claim("unknown", 1) is None
    a.store.drop("unknown")


# Following.


async def test_followers_that_begin_at_any_time_get_each_entry_once(replicas: Replicas) -> None:
    owner, *others = [await replicas.new() for _ in range(3)]
    log = owner.store.open("s", b"h")
    noise = [owner.store.open(f"noise{number}", b"h") for number in range(20)]
    readings: list[Reading] = []

    async def begin(replica: Replica) -> None:
        readings.append(await replica.reading("s"))

    begun = []
    for number in range(1500):
        entry = str(number).encode()
        owner.store.append([(log, entry), *((each, b"noise") for each in noise)])
        if number % 100 == 50:
            begun += [asyncio.create_task(begin(each)) for each in (owner, *others)]
        if number % 5 == 0:
            await asyncio.sleep(0)
    await owner.ended(log, b"end")
    await asyncio.gather(*begun)
    assert len(readings) == 45
    for reading in readings:
        await reading.until(lambda reading=reading: reading.entries[-1:] == [b"end"])  # type: ignore[misc]
        assert reading.entries == [*numbers(0, 1500), b"end"]


async def test_a_follower_gets_nothing_after_its_close(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    log = a.store.open("s", b"h")
    await a.stored(log, b"1")
    closed, open_ = await b.reading("s"), await b.reading("s")
    closed.followed.close()
    await a.stored(log, b"2")
    await open_.until_it_has(2)
    assert closed.entries == [b"1"]


async def test_others_see_that_a_log_is_followed(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    a.store.open("s", b"h")
    await a.stored(a.store.open("t", b"h"))
    assert not await a.store.is_followed("s")
    first, second = await b.reading("s"), await b.reading("s")
    assert await a.store.is_followed("s")
    assert not await a.store.is_followed("t")
    first.followed.close()
    assert await a.store.is_followed("s")
    second.followed.close()

    async def is_left() -> bool:
        return not await a.store.is_followed("s")

    await until(is_left)


async def test_a_follower_that_comes_back_at_once_is_seen(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    await a.stored(a.store.open("s", b"h"))
    for _ in range(100):  # b may be about to say that it has left
        reading = await b.reading("s")
        assert await a.store.is_followed("s")
        reading.followed.close()


async def test_a_killed_follower_is_gone(replicas: Replicas) -> None:
    a, killed = await replicas.new(), await replicas.new_process()
    await a.stored(a.store.open("s", b"h"))
    await killed.ask("follow", "s")
    assert await a.store.is_followed("s")
    await killed.kill()

    async def is_left() -> bool:
        return not await a.store.is_followed("s")

    await until(is_left)


# Claiming.


def in_groups(ids: Sequence[str]) -> list[Sequence[str]]:
    """Return ids in groups that one call takes."""
    return [ids[first : first + MAX_GROUP] for first in range(0, len(ids), MAX_GROUP)]


GROUPS = in_groups([f"s{number}" for number in range(300)])


@pytest.mark.parametrize("num", [2, 3])
async def test_exactly_one_claimant_wins(replicas: Replicas, num: int) -> None:
    """All claim the same groups of logs, each in an order of its own."""
    owner = await replicas.new()
    claimants = [await replicas.new() for _ in range(num)]
    for stream_id in itertools.chain(*GROUPS):
        owner.store.open(stream_id, b"h")
    await owner.stored(owner.store.open("last", b"h"))
    claims = [
        claimant.store.claim([(each, 1) for each in group[::order]])
        for group in GROUPS
        for claimant, order in zip(claimants, (1, -1, 1), strict=False)
    ]
    won = [log for logs in await asyncio.gather(*claims) for log in logs if log is not None]
    assert {log.epoch for log in won} == {2}
    assert sorted(log.stream_id for log in won) == sorted(itertools.chain(*GROUPS))
    for group in GROUPS:
        readings = await owner.readings(*group)
        assert [each.entries for each in readings] == [[CLAIMED]] * len(group)


async def test_a_group_may_hold_logs_that_cannot_be_claimed(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    ended, claimed = a.store.open("ended", b"h"), a.store.open("claimed", b"h")
    await a.ended(ended, b"end")
    await a.stored(a.store.open("free", b"h"))
    mine = await b.claim("claimed", 1)
    logs = [("ended", 1), ("unknown", 1), ("claimed", 1), ("free", 1)]
    results = await b.store.claim(logs)
    assert [log and (log.stream_id, log.epoch) for log in results] == [
        None, None, None, ("free", 2),
    ]  # fmt: skip
    assert mine is not None
    await b.stored(mine, b"1")
    readings = await a.readings(*(stream_id for stream_id, _ in logs))
    assert [each.entries for each in readings] == [
        [b"end"], [], [CLAIMED, b"1"], [CLAIMED],
    ]  # fmt: skip
    assert [each.following is None for each in readings] == [False, True, False, False]
    await a.reports.until(lambda: claimed in a.reports.lost)


async def test_a_group_is_read_as_its_logs_were_appended(replicas: Replicas) -> None:
    """Logs of different lengths, owners and readers' places, in one call."""
    a, b, c = [await replicas.new() for _ in range(3)]
    names = [f"s{number}" for number in range(MAX_GROUP)]
    logs = [a.store.open(name, name.encode()) for name in names]
    for number in range(150):
        for log in logs[: len(logs) - number // 3]:
            a.store.append([(log, str(number).encode())])
    await a.stored(logs[0])
    lengths = [min(150, 3 * (len(logs) - index)) for index in range(len(logs))]
    moved = await b.store.claim([(name, 1) for name in names[::2]])
    for each in moved:
        assert each is not None
        await b.stored(each, b"b")
    expected = [
        [*numbers(0, length), *([] if index % 2 else [CLAIMED, b"b"])]
        for index, length in enumerate(lengths)
    ]
    for after in (0, 1, 100, 151):
        readings = await c.readings(*names, after=after)
        assert [each.followed.header for each in readings] == [name.encode() for name in names]
        assert [each.entries for each in readings] == [each[after:] for each in expected]
        for reading in readings:
            reading.followed.close()


async def test_processes_that_claim_at_once_do_not_both_win(replicas: Replicas) -> None:
    owner = await replicas.new_process()
    claimants = [await replicas.new_process() for _ in range(2)]
    await owner.ask("open", *itertools.chain(*GROUPS))
    await owner.kill()
    claims = [each.ask("claim", 1, *group) for group in GROUPS for each in claimants]
    results = await asyncio.gather(*claims)
    for first, second in zip(results[::2], results[1::2], strict=True):
        assert all(a != b for a, b in zip(first, second, strict=True))


async def test_a_claimant_killed_in_the_middle_of_its_groups_orphans_no_log(
    replicas: Replicas,
) -> None:
    owner, killed = [await replicas.new_process() for _ in range(2)]
    await owner.ask("open", *itertools.chain(*GROUPS))
    await owner.kill()
    for group in GROUPS:
        killed.tell("claim_aloud", 1, *group)
    await killed.until(lambda: bool(killed.acknowledged))
    await killed.kill()
    survivor = await replicas.new()
    await survivor.reports.until(lambda: len(survivor.reports.orphans) == 300)
    epochs = survivor.reports.orphans
    assert all(epochs[stream_id] == 2 for stream_id in killed.acknowledged)
    for group in GROUPS:
        assert all(await survivor.store.claim([(each, epochs[each]) for each in group]))
        for each, reading in zip(group, await survivor.readings(*group), strict=True):
            assert reading.entries == [CLAIMED] * epochs[each]


async def test_a_cancelled_claim_leaves_the_log_to_others(replicas: Replicas) -> None:
    owner, claimant = await replicas.new(), await replicas.new()
    ids = [f"s{number}" for number in range(20)]
    for stream_id in ids:
        owner.store.open(stream_id, b"h")
    await owner.stored(owner.store.open("last", b"h"))
    for number, stream_id in enumerate(ids):
        cancelled = asyncio.create_task(claimant.claim(stream_id, 1))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
    # Whatever the moment: the claimant can claim again, or it has the log already.
    for stream_id in ids:
        log = await claimant.claim(stream_id, 1) or await claimant.claim(stream_id, 2)
        assert log is not None
        await claimant.ended(log, b"end")
        assert (await owner.all_of(stream_id))[-2:] == [CLAIMED, b"end"]


async def test_a_live_owner_is_fenced_before_any_later_then(replicas: Replicas) -> None:
    old, new = await replicas.new(), await replicas.new()
    taken, kept = old.store.open("taken", b"h"), old.store.open("kept", b"h")
    await old.stored(taken, b"before")
    log = await new.claim("taken", 1)
    assert log is not None
    stored = asyncio.Event()

    def then() -> None:
        old.reports.order.append("then")
        stored.set()

    old.store.append([(taken, b"late"), (kept, b"1")], then)
    async with asyncio.timeout(LONG_S):
        await stored.wait()
    assert old.reports.order == ["lost taken", "then"]
    assert old.reports.lost == [taken]
    await old.stored(taken, b"later")
    await old.ended(taken, b"end")
    await new.stored(log, b"after")
    for replica in (old, new):
        assert await replica.all_of("taken") == [b"before", CLAIMED, b"after"]
        assert await replica.all_of("kept") == [b"1"]


async def test_an_idle_owner_learns_that_it_was_fenced(replicas: Replicas) -> None:
    old, new = await replicas.new(), await replicas.new()
    log = old.store.open("s", b"h")
    await old.stored(log)
    assert await new.claim("s", 1) is not None
    await old.reports.until(lambda: old.reports.lost == [log])


async def test_an_owner_that_asks_learns_at_once_whether_it_was_fenced(replicas: Replicas) -> None:
    old, new = await replicas.new(), await replicas.new()
    taken, kept, ended = (old.store.open(name, b"h") for name in ("taken", "kept", "ended"))
    await old.ended(ended, b"end")
    for number in range(20):  # what it appends meanwhile is its own
        old.store.append([(kept, b"%d" % number)])
        await old.store.confirm_owner(kept)
    assert await new.claim("taken", 1) is not None
    for log in (kept, ended):
        await old.store.confirm_owner(log)
    await old.store.confirm_owner(taken)
    assert old.reports.lost == [taken]
    await old.store.confirm_owner(taken)
    assert old.reports.lost == [taken]
    assert await new.all_of("kept") == numbers(0, 20)


async def test_only_the_current_epoch_of_a_running_log_can_be_claimed(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    ended = a.store.open("ended", b"h")
    await a.ended(ended, b"end")
    await a.stored(a.store.open("s", b"h"))
    assert await b.claim("ended", 1) is None
    assert await b.claim("s", 2) is None
    assert await b.claim("s", 1) is not None
    assert await a.claim("s", 1) is None
    again = await a.claim("s", 2)
    assert again is not None
    assert again.epoch == 3
    assert await b.all_of("s") == [CLAIMED, CLAIMED]
    assert await b.all_of("ended") == [b"end"]


async def test_followers_pass_from_owner_to_owner(replicas: Replicas) -> None:
    a, b, c = [await replicas.new() for _ in range(3)]
    first = a.store.open("s", b"h")
    await a.stored(first, b"1", b"2")
    readings = [await each.reading("s") for each in (a, b, c)]
    second = await b.claim("s", 1)
    assert second is not None
    await b.stored(second, b"3")
    third = await c.claim("s", 2)
    assert third is not None
    await c.stored(third, b"4")
    await c.ended(third, b"end")
    expected = [b"1", b"2", CLAIMED, b"3", CLAIMED, b"4", b"end"]
    for reading in readings:
        await reading.until_it_has(len(expected))
        assert reading.entries == expected
        assert reading.followed.epoch == 3
    for after in range(len(expected) + 1):
        late = await a.reading("s", after)
        assert late.entries == expected[after:]
        assert late.followed.header == b"h"
        late.followed.close()


async def test_a_follower_of_the_fenced_owner_s_log_sees_no_late_entry(replicas: Replicas) -> None:
    """The old owner appends as fast as it can while another one claims."""
    old, new = await replicas.new_process(), await replicas.new()
    await old.ask("open", "s")
    old.tell("count", "s")
    await old.until(lambda: old.acknowledged.get("s", 0) > 20)
    before = await new.reading("s")
    log = await new.claim("s", 1)
    assert log is not None
    after = await new.reading("s")
    await old.until(lambda: "s" in old.lost)
    await new.ended(log, b"end")
    for reading in (before, after):
        await reading.until(lambda reading=reading: reading.entries[-1:] == [b"end"])  # type: ignore[misc]
        num = len(reading.entries) - 2
        assert reading.entries == [*numbers(0, num), CLAIMED, b"end"]
    assert before.entries == after.entries
    assert len(before.entries) - 2 >= old.acknowledged["s"]


async def test_a_stopped_owner_that_goes_on_adds_nothing(replicas: Replicas) -> None:
    old, new = await replicas.new_process(), await replicas.new()
    await old.ask("open", "s")
    old.tell("count", "s")
    await old.until(lambda: old.acknowledged.get("s", 0) > 20)
    old.signal(signal.SIGSTOP)
    try:
        log = await claim_from_stopped(new, old)
    finally:
        old.signal(signal.SIGCONT)
    await old.until(lambda: "s" in old.lost)
    await new.ended(log, b"end")
    entries = await new.all_of("s")
    assert entries == [*numbers(0, len(entries) - 2), CLAIMED, b"end"]
    assert len(entries) - 2 >= old.acknowledged["s"]


async def claim_from_stopped(new: Replica, old: ReplicaProcess) -> StoredLog:
    """Claim its log. It may have been stopped in the middle of a write, so let it on and on."""
    async with asyncio.timeout(LONG_S):
        while True:
            try:
                async with asyncio.timeout(1):
                    log = await new.claim("s", 1)
            except TimeoutError:
                old.signal(signal.SIGCONT)
                await asyncio.sleep(0.01)
                old.signal(signal.SIGSTOP)
            else:
                assert log is not None
                return log


# Orphans.


async def test_a_killed_owner_loses_nothing_that_was_acknowledged(replicas: Replicas) -> None:
    survivor, killed = await replicas.new(), await replicas.new_process()
    ids = [f"s{number}" for number in range(10)]
    await killed.ask("open", *ids)
    killed.tell("count", *ids)
    await killed.until(lambda: killed.acknowledged.get("s9", 0) > 200)
    following = await survivor.reading("s3")
    assert not survivor.reports.orphans
    await killed.kill()
    await survivor.reports.until(lambda: len(survivor.reports.orphans) == len(ids))
    assert survivor.reports.orphans == dict.fromkeys(ids, 1)
    for stream_id in ids:
        log = await survivor.claim(stream_id, 1)
        assert log is not None
        await survivor.ended(log, b"end")
        entries = await survivor.all_of(stream_id)
        num = len(entries) - 2
        assert entries == [*numbers(0, num), CLAIMED, b"end"]
        assert num >= killed.acknowledged[stream_id]
    await following.until(lambda: following.entries[-1:] == [b"end"])
    assert following.entries == await survivor.all_of("s3")


async def test_a_log_outlives_two_owners(replicas: Replicas) -> None:
    first, second = await replicas.new_process(), await replicas.new_process()
    await first.ask("open", "s")
    await first.ask("append", "s", "1")
    await first.kill()
    await second.until(lambda: second.orphans.get("s") == 1)
    assert await second.ask("claim", 1, "s") == [True]
    await second.ask("append", "s", "2")
    third = await replicas.new()
    assert third.reports.orphans == {}
    await second.kill()
    await third.reports.until(lambda: third.reports.orphans == {"s": 2})
    log = await third.claim("s", 2)
    assert log is not None
    await third.stored(log, b"3")
    assert await third.all_of("s") == [b"1", CLAIMED, b"2", CLAIMED, b"3"]


async def test_a_released_replica_s_logs_are_orphans_and_it_still_follows(
    replicas: Replicas,
) -> None:
    old, new = await replicas.new(), await replicas.new()
    log = old.store.open("s", b"h")
    await old.stored(log, b"1")
    reading = await old.reading("s")
    await old.store.release()
    await new.reports.until(lambda: new.reports.orphans == {"s": 1})
    claimed = await new.claim("s", 1)
    assert claimed is not None
    await new.stored(claimed, b"2")
    await reading.until_it_has(3)
    assert reading.entries == [b"1", CLAIMED, b"2"]
    assert await new.store.is_followed("s")
    await old.reports.until(lambda: old.reports.lost == [log])
    await old.stored(log, b"late")
    assert await new.all_of("s") == [b"1", CLAIMED, b"2"]
    await old.stop()

    async def is_left() -> bool:
        return not await new.store.is_followed("s")

    await until(is_left)


async def test_logs_survive_the_death_of_all_replicas(replicas: Replicas) -> None:
    processes = [await replicas.new_process() for _ in range(2)]
    for number, process in enumerate(processes):
        await process.ask("open", f"running{number}", f"ended{number}")
        await process.ask("append", f"running{number}", "1", "2")
        await process.ask("end", f"ended{number}", "end")
    for process in processes:
        await process.kill()
    restarted = await replicas.new()
    await restarted.reports.until(lambda: len(restarted.reports.orphans) == 2)
    assert restarted.reports.orphans == {"running0": 1, "running1": 1}
    for number in range(2):
        assert await restarted.all_of(f"ended{number}") == [b"end"]
        assert await restarted.claim(f"running{number}", 1) is not None
        assert await restarted.all_of(f"running{number}") == [b"1", b"2", CLAIMED]


async def test_orphans_are_reported_until_they_are_claimed(replicas: Replicas) -> None:
    old, new = await replicas.new(), await replicas.new()
    await old.stored(old.store.open("s", b"h"))
    await old.stop()
    for _ in range(2):
        new.reports.orphans.clear()
        await new.reports.until(lambda: new.reports.orphans == {"s": 1})


async def test_thousands_of_logs_are_taken_over(replicas: Replicas) -> None:
    survivor, killed = await replicas.new(), await replicas.new_process()
    ids = [f"s{number}" for number in range(3000)]
    await killed.ask("open", *ids)
    await killed.kill()
    await survivor.reports.until(lambda: len(survivor.reports.orphans) == len(ids))
    for group in in_groups(ids[:300]):
        assert all(await survivor.store.claim([(each, 1) for each in group]))
    assert await survivor.all_of(ids[7]) == [CLAIMED]
    assert await survivor.all_of(ids[2999]) == []


# Ended logs.


async def test_an_ended_log_is_readable_for_its_time_only(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    short, long, taken = (a.store.open(name, b"h") for name in ("short", "long", "taken"))
    await a.stored(taken, b"1")
    claimed = await b.claim("taken", 1)
    assert claimed is not None
    began = time.monotonic()
    await b.ended(claimed, b"end", 1.0)
    await a.ended(short, b"end", 1.0)
    await a.ended(long, b"end", 600.0)
    reading = await b.reading("short")
    if time.monotonic() - began < 1.0:
        assert reading.entries == [b"end"]

    async def are_gone() -> bool:
        gone = [(await b.reading(name)).following is None for name in ("short", "taken")]
        return all(gone)

    await until(are_gone)
    assert time.monotonic() - began >= 1.0
    assert await b.all_of("long") == [b"end"]


async def test_any_replica_can_drop_an_ended_log(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    await a.ended(a.store.open("dropped", b"h"), b"end")
    await a.ended(a.store.open("kept", b"h"), b"end")
    taken = a.store.open("taken", b"h")
    await a.stored(taken, b"1")
    claimed = await b.claim("taken", 1)
    assert claimed is not None
    await b.ended(claimed, b"end")
    b.store.drop("dropped")
    a.store.drop("taken")

    async def are_gone() -> bool:
        gone = [(await b.reading(name)).following is None for name in ("dropped", "taken")]
        return all(gone)

    await until(are_gone)
    assert await a.all_of("kept") == [b"end"]


# Small values, and the other replicas.


async def test_small_values_are_shared(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    assert await a.store.get("name") is None
    assert await a.store.put_if_absent("name", b"a", 60) is None
    assert await b.store.put_if_absent("name", b"b", 60) == b"a"
    assert await b.store.get("name") == b"a"
    await b.store.put("name", b"\x00b", 60)
    assert await a.store.get("name") == b"\x00b"
    await a.store.delete("name")
    await a.store.delete("name")
    assert await b.store.get("name") is None
    assert await b.store.put_if_absent("name", b"b", 60) is None


async def test_of_many_who_put_a_value_one_does(replicas: Replicas) -> None:
    stores = [(await replicas.new()).store for _ in range(3)]
    puts = [
        each.put_if_absent(f"n{number}", each.replica.encode(), 60)
        for number in range(20)
        for each in stores
    ]
    results = await asyncio.gather(*puts)
    for number in range(20):
        three = results[number * 3 : number * 3 + 3]
        winner = stores[three.index(None)].replica.encode()
        assert sorted(three, key=str) == sorted([None, winner, winner], key=str)


async def test_a_value_ends_after_its_time(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    began = time.monotonic()
    await a.store.put("name", b"1", 0.5)
    await a.store.put("other", b"1", 60)

    async def is_gone() -> bool:
        return await b.store.get("name") is None

    await until(is_gone)
    assert time.monotonic() - began >= 0.5
    assert await b.store.put_if_absent("name", b"2", 60) is None
    assert await b.store.get("other") == b"1"


async def test_replicas_exchange_values_while_they_have_a_lease(replicas: Replicas) -> None:
    a, b = await replicas.new(), await replicas.new()
    killed = await replicas.new_process()
    assert len({a.store.replica, b.store.replica}) == 2

    async def are_all_seen() -> bool:
        await a.store.exchange(b"of a")
        return await b.store.exchange(b"of b") == {a.store.replica: b"of a"}

    await until(are_all_seen)
    assert await b.store.exchange(b"of b") == {a.store.replica: b"of a"}
    assert await a.store.exchange(b"new") == {b.store.replica: b"of b"}
    assert await b.store.exchange(b"of b") == {a.store.replica: b"new"}
    await killed.kill()
    await a.store.release()

    async def are_gone() -> bool:
        return await b.store.exchange(b"of b") == {}

    await until(are_gone)
