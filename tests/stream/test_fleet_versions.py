"""Servers of two versions side by side, as during a rolling upgrade."""

import msgspec
import pytest

from penstock.errors import Problem
from penstock.request import Request
from penstock.stream.entries import FORMAT_VERSION, Header
from penstock.stream.record import StreamRecord
from tests.support.replicas import MODEL, ReplicaInTest, started
from tests.support.scripted import settle
from tests.support.shared_store import Shared


@pytest.mark.parametrize(
    ("told", "value", "is_heir"),
    [
        ([MODEL, "", b"v", FORMAT_VERSION, "a field of a later version"], b"v", True),
        ([MODEL, "", b"v", FORMAT_VERSION + 1], b"v", False),  # it cannot read our logs
        ([MODEL, "", b"v"], b"v", True),
        ([MODEL], b"", True),  # an earlier version that told less
        ({"of": "another form"}, b"", False),
    ],
)
async def test_replicas_read_what_other_versions_tell(
    told: object, value: bytes, is_heir: bool
) -> None:
    shared = Shared()
    server, other = ReplicaInTest(shared, "server"), ReplicaInTest(shared, "other")
    await started(server, other)
    await other.store.exchange(msgspec.msgpack.encode(told))
    assert await server.fleet.exchange(b"mine") == {"other": value}
    stream = server.open("a")
    server.begins("a")
    await server.fleet.hand_over()
    assert (server.fleet.num_stored == 0) == is_heir
    assert stream.ended is None


async def test_a_log_of_a_later_format_is_left_to_the_servers_that_know_it() -> None:
    shared = Shared()
    newer, old = ReplicaInTest(shared, "newer"), ReplicaInTest(shared, "old")
    await started(newer, old)
    record = StreamRecord(Request(id="later", max_tokens=5, prompt="x"), resumable=True)
    newer.store.open("later", Header(record, MODEL, FORMAT_VERSION + 1).encode())
    newer.open("known")
    newer.begins("known")
    newer.die()
    await settle()
    assert [stream.id for stream in old.streams.open_streams()] == ["known"]
    assert old.fleet.num_taken_over == 1
    shared.tell_orphans()
    await settle()
    assert old.fleet.num_taken_over == 1
    assert shared.logs["later"].epoch == 1
    # Its clients are told to ask again: another server knows it.
    for ask in (old.streams.find_anywhere("later"), old.streams.cancel_anywhere("later")):
        with pytest.raises(Problem, match="another version") as refused:
            await ask
        assert (refused.value.code, refused.value.status) == ("store_unavailable", 503)
    assert old.fleet.num_followed == 0
