"""vLLM as an engine of the conformance test, loaded once for all tests."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from penstock.engine.process.supervisor import SupervisedEngine
from penstock.request import Request
from tests.engine.test_conformance import Case, resubmit
from tests.support.recording import RecordingSink

TARGET = "tests.vllm.probed:ProbedVllm"
SLOTS = 4
RESTART_LIMIT_S = 300.0
CONCLUDED_TOKENS = 60
"""The engine of tests/vllm/concluding.py makes only answers of at most this length reason."""


def engine_args() -> dict[str, Any]:
    """Return engine arguments that make vLLM small, exact and quick to start."""
    return {
        "dtype": "float32",
        "enforce_eager": True,  # compiling takes a minute and changes no behaviour
        "kv_cache_memory_bytes": 128 * 2**20,
    }


@dataclass(frozen=True)
class SharedCase(Case):
    """A case whose engine is shared by all tests; `running` sets its number of slots."""

    engine: SupervisedEngine | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, name: str, model: Path) -> AsyncIterator["SharedCase"]:
        """Start vLLM with this model, and stop it when the context ends."""
        options = {"model": str(model), "name": name, "slots": SLOTS, **engine_args()}
        engine = SupervisedEngine(TARGET, options)
        await engine.start()
        try:
            yield cls("vllm", lambda _: options, name == "rill", RESTART_LIMIT_S, engine)
        finally:
            await engine.stop()

    @contextlib.asynccontextmanager
    async def running(
        self, slots: int = SLOTS, pace: float = 0.0
    ) -> AsyncIterator[SupervisedEngine]:
        """Set the number of slots of the shared engine and return it. It has no `pace`."""
        await self.tell(f"slots {slots}")
        assert self.engine is not None
        yield self.engine

    async def tell(self, what: str) -> str:
        """Send a command to `ProbedVllm` and return its answer."""
        assert self.engine is not None
        request = Request(id=what, max_tokens=1, prompt="")
        return (await resubmit(self.engine, request, RESTART_LIMIT_S)).text()


async def end_of(engine: SupervisedEngine, request: Request) -> RecordingSink:
    """Submit a request and wait for its end."""
    sink = RecordingSink()
    engine.submit(request, sink)
    return await sink.end()


def group_of(leader: int) -> list[psutil.Process]:
    """Return the processes of a group that are alive and no zombies."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def core_of(leader: int) -> psutil.Process:
    """Return vLLM's core process, which schedules requests and starts the workers, if any."""
    (core,) = [p for p in group_of(leader) if "EngineCore" in p.name() + " ".join(p.cmdline())]
    return core
