"""Large bodies are parsed in a thread, one owner after another."""

import asyncio
import threading

import pytest

from penstock.web.parsing import ParsingThread


async def test_the_event_loop_goes_on_meanwhile_and_problems_come_back() -> None:
    thread, go = ParsingThread(), threading.Event()
    waiting = asyncio.create_task(thread.run("a", lambda: go.wait(10)))
    await asyncio.sleep(0)
    go.set()
    assert await waiting

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.run("a", fail)


async def test_an_owner_waits_for_one_body_of_each_other_owner() -> None:
    thread, go = ParsingThread(), threading.Event()
    order: list[str] = []
    first = asyncio.create_task(thread.run("a", lambda: go.wait(10)))
    tasks = [asyncio.create_task(thread.run("a", lambda: order.append("a"))) for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(thread.run("b", lambda: order.append("b"))))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *tasks)
    assert order.index("b") <= 1


async def test_a_body_whose_client_leaves_while_it_waits_is_not_parsed() -> None:
    thread, go = ParsingThread(), threading.Event()
    parsed: list[str] = []
    first = asyncio.create_task(thread.run("a", lambda: go.wait(10)))
    others = [
        asyncio.create_task(thread.run(owner, lambda: parsed.append("gone"))) for owner in "ab"
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    go.set()
    await first
    await thread.run("b", lambda: parsed.append("here"))
    assert parsed == ["here"]
