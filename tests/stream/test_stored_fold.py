"""Whatever happens to a stored stream, whoever reads its log sees the same stream.

Random steps of an engine, a server and its clients; the store confirms late; the owner dies between
any two steps and another replica goes on. A reader of the first owner and a late reader must have
seen the same events.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.process.messages import Accepted, Cached, Reasoning, Started, ToolCall
from penstock.engine.protocol import Addition
from penstock.events import Event, TokenLogprob
from penstock.stream.reader import Reader
from tests.support.replicas import ReplicaInTest, started
from tests.support.scripted import settle
from tests.support.shared_store import Shared

NAME = "a"
PIECES = st.sampled_from(["x", "qq", "q", "Ω", "", b"\xce", b"\xa9", b"\xff", "a longer piece "])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("generate"), st.lists(PIECES, min_size=1, max_size=4)),
        st.tuples(st.just("logprob"), PIECES),
        st.tuples(st.just("reason"), st.just("hm ")),
        st.tuples(st.just("call"), st.just("{}")),
        st.tuples(st.just("prompt"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["hold", "confirm", "kill engine", "die", "look"]), st.none()),
        st.tuples(st.sampled_from(["cancel", "expire", "finish"]), st.none()),
    ),
    max_size=25,
)


class World:
    """Replicas of which one owns the stream, and the readers at each of them."""

    def __init__(self, fields: dict[str, Any], *, knows_prompt: bool) -> None:
        self.knows_prompt = knows_prompt
        self.shared = Shared()
        self.fields = fields
        self.alive: list[ReplicaInTest] = []
        self.seen: list[Sequence[Event]] = []

    async def begin(self) -> None:
        self.alive = [ReplicaInTest(self.shared, f"replica {n}") for n in range(4)]
        await started(*self.alive)
        self.stream = self.alive[0].open(NAME, 50, **self.fields)
        self.readers = [Reader(self.stream)]
        if self.knows_prompt:
            self.owner.begins(NAME)
        else:
            self.owner.says(Accepted(NAME, ()), Started(NAME))

    @property
    def owner(self) -> ReplicaInTest:
        return next((each for each in self.alive if NAME in each.stored), self.alive[0])

    async def do(self, step: str, value: Any) -> None:
        owner = self.owner
        match step:
            case "generate":
                owner.says(*(Addition(NAME, piece, 1, (7,)) for piece in value))
            case "logprob":
                token = TokenLogprob(b"t", -0.5)
                owner.says(Addition(NAME, value, 1, (7,), (token,)))
            case "reason":
                owner.says(Reasoning(NAME, value, 1, (7,)))
            case "call":
                owner.says(ToolCall(NAME, 0, "id", "tool", value, 1))
            case "prompt":
                owner.says(Cached(NAME, 1, value))
            case "finish":
                if NAME in owner.engine.sinks:
                    owner.finishes(NAME, 9)
            case "cancel":
                self._own_stream(owner).cancel()
            case "expire":
                self._own_stream(owner).expire()
            case "hold":
                owner.store.hold()
            case "confirm":
                owner.store.confirm()
            case "kill engine":
                owner.engine.die()
                owner.engine.come_back()
                await settle()
                if NAME in owner.engine.sinks:
                    owner.begins(NAME)
            case "look":
                copy = await self.alive[-1].streams.find_anywhere(NAME)
                self.readers.append(Reader(copy))
            case "die":
                if len(self.alive) > 1:
                    self.alive.remove(owner)
                    owner.die()
                    await settle()
                    if NAME in self.owner.engine.sinks:
                        self.owner.begins(NAME)
        await settle()

    def _own_stream(self, owner: ReplicaInTest) -> Any:
        return next((each for each in owner.stored.owned() if each.id == NAME), self.stream)

    async def end(self) -> list[list[Event]]:
        """End the stream in any way; return what each reader has seen, and a late one."""
        self.owner.store.confirm()
        await settle()
        if self.owner.stored.owned():
            self._own_stream(self.owner).cancel()
        await settle()
        late = await self.owner.streams.find_anywhere(NAME)
        assert late.ended is not None
        self.readers.append(Reader(late))
        return [_seen(reader) for reader in self.readers]


def _seen(reader: Reader) -> list[Event]:
    events: list[Event] = []
    while batches := reader.take():
        for _, new in batches:
            events += new
    return events


@settings(max_examples=300, deadline=None)
@given(
    STEPS,
    st.sampled_from([{}, {"stop": ("qq", "xqa")}, {"return_token_ids": True}, {"top_logprobs": 0}]),
    st.booleans(),
)
def test_every_reader_sees_the_same_events(
    steps: list[tuple[str, Any]], fields: dict[str, Any], knows_prompt: bool
) -> None:
    async def run() -> None:
        world = World(fields, knows_prompt=knows_prompt)
        await world.begin()
        for step in steps:
            await world.do(*step)
        *seen, late = await world.end()
        for each in seen:
            # A dead replica's reader has seen the beginning; its client reads on elsewhere.
            assert each == late[: len(each)]

    asyncio.run(run())
