"""Many deadlines, one timer."""

import asyncio

from penstock.stream.deadlines import MIN_REBUILD, Deadlines


async def test_names_expire_in_order_and_discarded_names_do_not() -> None:
    expired: list[str] = []
    all_done = asyncio.Event()

    def expire(name: str) -> None:
        expired.append(name)
        if name == "last":
            all_done.set()

    deadlines = Deadlines(expire)
    deadlines.add("last", 0.09)
    deadlines.add("second", 0.06)
    deadlines.add("first", 0.03)
    deadlines.add("discarded", 0.04)
    deadlines.discard("discarded")
    deadlines.discard("unknown")
    async with asyncio.timeout(20):
        await all_done.wait()
    assert expired == ["first", "second", "last"]
    assert len(deadlines) == 0


async def test_a_name_may_be_added_again_and_by_an_expiry() -> None:
    expired: list[str] = []
    done = asyncio.Event()

    def expire(name: str) -> None:
        expired.append(name)
        if len(expired) < 3:
            deadlines.add(name, 0.01)
        else:
            done.set()

    deadlines = Deadlines(expire)
    deadlines.add("a", 1000)
    deadlines.discard("a")
    deadlines.add("a", 0.01)
    async with asyncio.timeout(20):
        await done.wait()
    assert expired == ["a"] * 3


async def test_discarded_names_do_not_pile_up() -> None:
    deadlines = Deadlines(lambda name: None)
    deadlines.add("kept", 1000)
    for number in range(10 * MIN_REBUILD):
        deadlines.add(str(number), 1000)
        deadlines.discard(str(number))
        assert len(deadlines._heap) <= MIN_REBUILD + 1
    deadlines.discard("kept")
    assert deadlines._heap == []
