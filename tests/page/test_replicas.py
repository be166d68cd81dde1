"""A replica is killed in mid-sentence, and every client continues its answer at another.

Three replicas run as docs/scaling.md says, behind a balancer with the file that we ship. At first
the balancer knows only one of them, so that this one has all answers. It is slow, and the others
are quick: so there is time to kill it, and the test need not wait for the rest.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.faults.history import numbered
from tests.page.clients import (
    ChatReading,
    EventSourceReading,
    Reading,
    RecipeReading,
    TextReading,
    async_client_reading,
    client_reading,
)
from tests.page.conftest import OpenPage
from tests.support.balancers import balancer, replica, store
from tests.support.ports import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

NUM_TOKENS = 200
SLOW_S, QUICK_S = 0.3, 0.01


@pytest.mark.parametrize(("name", "kept_in"), [("HAProxy", "Redis"), ("nginx", "folder")])
async def test_every_client_continues_when_its_replica_is_killed(
    open_page: OpenPage, tmp_path: Path, name: str, kept_in: str
) -> None:
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(store(kept_in, tmp_path))
        servers = await asyncio.gather(
            *(
                asyncio.to_thread(
                    stack.enter_context,
                    replica(
                        log,
                        free_port(),
                        mock_interval=interval,
                        engine_arg=["numbered=true", f"length={NUM_TOKENS}"],
                    ),
                )
                for interval in (SLOW_S, QUICK_S, QUICK_S)
            )
        )
        ports = [server.port for server in servers]
        proxy = stack.enter_context(balancer(name, tmp_path, ports[:1]))
        readings: list[Reading] = [
            client_reading(proxy.url, NUM_TOKENS),
            async_client_reading(proxy.url, NUM_TOKENS),
            await RecipeReading().open(proxy.url, tmp_path, NUM_TOKENS),
            await ChatReading().open(proxy.url, open_page),
            await TextReading().open(proxy.url, open_page, NUM_TOKENS),
            await EventSourceReading().open(proxy.url, open_page, NUM_TOKENS),
        ]
        await asyncio.gather(*(reading.begun() for reading in readings))
        await asyncio.to_thread(proxy.reload, ports)
        os.kill(servers[0].pid, signal.SIGKILL)
        for reading in readings:
            text, num_resumes = await reading.ended()
            whole = numbered(reading.word, length=NUM_TOKENS, max_tokens=NUM_TOKENS).text
            assert text == whole, reading.word
            assert num_resumes == 1, reading.word
