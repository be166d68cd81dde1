"""An idle connection is kept for `--keepalive-timeout`, 75 seconds by default."""

import time

import pytest

from penstock.settings import Settings
from tests.wire.case import get, length, post
from tests.wire.ends import End
from tests.wire.short import HEAD_TIMEOUT_S

KEPT_S = 5.0
SLACK_S = 20.0  # a machine may be busy
STREAM = b'{"prompt":"a","max_tokens":1000}'

pytestmark = pytest.mark.parametrize("end", ["own"], indirect=True)


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    return {"keepalive_timeout": KEPT_S, "mock_interval": KEPT_S / 2, "engine_arg": ["length=3"]}


async def test_an_idle_connection_outlives_the_time_for_a_head_and_is_then_closed(end: End) -> None:
    async with end.connect() as wire:
        began = time.monotonic()
        assert (await wire.send(get()).answer()).status == 200
        assert await wire.until_closed() == b""  # no 408: nobody asked anything
        assert KEPT_S > 1.5 * HEAD_TIMEOUT_S
        assert KEPT_S * 0.9 < time.monotonic() - began < KEPT_S + SLACK_S


async def test_a_blank_line_does_not_keep_a_connection_open(end: End) -> None:
    async with end.connect() as wire:
        assert (await wire.send(get()).answer()).status == 200
        began = time.monotonic()
        await wire.send(b"\r\n").until_closed()
        assert time.monotonic() - began < KEPT_S + SLACK_S


async def test_a_connection_is_not_idle_while_its_answer_is_made(end: End) -> None:
    async with end.connect() as wire:
        wire.send(post(length(STREAM), body=STREAM))
        assert (await wire.answer()).body.count(b"data: ") == 4  # takes longer than KEPT_S
        assert (await wire.send(get()).answer()).status == 200


async def test_each_answer_begins_the_time_anew(end: End) -> None:
    body = b'{"prompt":"a","max_tokens":1,"stream":false}'  # half of KEPT_S
    async with end.connect() as wire:
        for _ in range(4):
            assert (await wire.send(post(length(body), body=body)).answer()).status == 200


def test_the_default_is_75_seconds(end: End) -> None:
    assert Settings.model_fields["keepalive_timeout"].default == 75
