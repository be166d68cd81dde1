"""A client that leaves in the middle of an answer is noticed at once, streamed or whole."""

import json

import pytest

from tests.support.wire import Wire
from tests.wire.case import get, length, post
from tests.wire.ends import End
from tests.wire.watching import engine_is_busy, seconds_until_cancelled

NOTICED_WITHIN_S = 10.0  # milliseconds, if the machine is not busy


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    """The engine has one slot, and never makes its first token."""
    return {"engine_arg": ["slots=1", "prefill=600"]}


def leave_by_fin(wire: Wire) -> None:
    wire.transport.close()


SENT_AHEAD = {"alone": b"", "with requests sent ahead": get() * 3}
WAYS = {"FIN": leave_by_fin, "RST": Wire.reset}


@pytest.mark.parametrize("ahead", SENT_AHEAD)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_is_noticed_at_once(
    end: End, is_streamed: bool, way: str, ahead: str
) -> None:
    if ahead != "alone" and not end.is_own:
        pytest.skip("Granian reads no more behind requests sent ahead, so it sees no end")
    request_id = f"gone-{is_streamed}-{way}-{len(ahead)}"
    body = json.dumps({"prompt": "a", "stream": is_streamed}).encode()
    sent = post(length(body), body=body).replace(b"first", request_id.encode())
    async with end.connect() as wire:
        wire.send(sent + SENT_AHEAD[ahead])
        await engine_is_busy(end)
        WAYS[way](wire)
        await wire.until_closed()
    assert await seconds_until_cancelled(end, request_id) < NOTICED_WITHIN_S
