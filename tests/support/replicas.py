"""Replicas with scripted engines over one store in this process: a test decides every moment."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.engine.process.messages import Accepted, Finish, Started
from penstock.engine.process.supervisor import deliver_singly
from penstock.engine.protocol import Addition
from penstock.errors import Problem
from penstock.events import Delta, Event
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream.admission import Admission
from penstock.stream.fleet import Fleet
from penstock.stream.quotas import ANYBODY, Owner
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Limits, Replication, Streams
from penstock.stream.stored import StoredStreams
from penstock.stream.stream import Stream
from tests.support.scripted import ScriptedEngine, settle
from tests.support.shared_store import Shared

MODEL = "scripted/scripted/0"


class ReplicaInTest:
    """One server: its engine, its streams and its view of the store."""

    def __init__(
        self,
        shared: Shared,
        name: str,
        *,
        slots: int = 0,
        linger: float = 60,
        model: str = MODEL,
        other_models: Mapping[str, str] | None = None,
        group: str = "",
        max_timeout: float = 0,
        problem_of: Callable[[Owner], Problem | None] = lambda owner: None,
    ) -> None:
        self.engine = ScriptedEngine(slots)
        self.meter = Meter()
        self.store = shared.replica(name)
        lineages = {"": model} | dict(other_models or {})
        self.stored = StoredStreams(self.store, 300, deliver_singly, self.meter)
        self.fleet = Fleet(self.store, self.stored, lambda: lineages, 300, group)
        self.streams = Streams(
            [self.engine],
            Limits(linger=linger, max_timeout=max_timeout),
            self.meter,
            Admission(slots),
            problem_of,
            replication=Replication(self.stored, self.fleet),
        )

    def open(
        self,
        name: str,
        max_tokens: int = 100,
        *,
        resumable: bool = True,
        timeout: float | None = None,
        owner: Owner = ANYBODY,
        **fields: Any,
    ) -> Stream:
        request = Request(id=name, max_tokens=max_tokens, prompt="x", **fields)
        record = StreamRecord(request, owner, resumable=resumable, timeout=timeout)
        return self.streams.open(record)

    def says(self, *messages: Any) -> None:
        """Receive one batch from the engine."""
        self.stored.deliver(messages, self.engine.sinks, self._tell)

    def begins(self, name: str) -> None:
        self.says(Accepted(name, (1, 2, 3)), Started(name))

    def generates(self, name: str, *pieces: str) -> None:
        """Generate one token for each piece; its id is the piece's first character's."""
        self.says(*(Addition(name, piece, 1, (ord(piece[0]),)) for piece in pieces))

    def finishes(self, name: str, num_tokens: int) -> None:
        self.says(Finish(name, "stop", num_tokens))

    def _tell(self, message: Any) -> None:
        sink = self.engine.sinks.get(message.request_id)
        if sink is None:
            return
        match message:
            case Accepted(_, prompt_ids, notes):
                sink.accepted(prompt_ids, notes)
            case Started():
                sink.started()
            case Finish(name, reason, count):
                del self.engine.sinks[name]
                sink.finish(reason, count)

    def die(self) -> None:
        """Vanish, as a killed process does."""
        self.store.die()

    @property
    def last_request(self) -> Request:
        return self.engine.submitted[-1]


async def started(*replicas: ReplicaInTest) -> None:
    for replica in replicas:
        await replica.store.start(replica.fleet)
        await replica.fleet.announce()
    await settle()


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))
