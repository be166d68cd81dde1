"""Runs several whole servers at one address: `penstock serve --processes N`.

In: the settings, and signals by way of `stop` and `reload`. Out: one listening socket, N server
processes that accept from it, and what they say together. A process that dies is replaced; one
that is silent is killed first. Connections that come meanwhile wait in the socket's queue for the
other processes: none is refused. Not known here: requests, streams, engines.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from penstock.draining import report_waiting
from penstock.engine.protocol import ModelInfo
from penstock.folders import ServerFolder, remove_left_behind
from penstock.processes.child import Child
from penstock.processes.division import divide
from penstock.processes.totals import Totals
from penstock.processes.turns import new_loads
from penstock.server import admin_listener_of, check_admin, listener_of
from penstock.settings import Settings
from penstock.supervision import keep
from penstock.web.listener import url_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# A process that does not answer in time is represented by its last metrics.
COLLECT_TIMEOUT_S = 1.0


class Supervisor:
    """The supervisor of `settings.processes` servers.

    `on_loading` gets the process id of the first engine when it begins to load the model.
    `on_ready` gets the address and the model's information when all servers are ready. `on_waiting`
    gets the number of streams that stopping servers wait for, when it changes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_ready: Callable[[str, ModelInfo], None],
        on_loading: Callable[[int], None],
        on_waiting: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._on_loading = on_loading
        self._on_waiting = on_waiting
        self._children: list[Child] = []
        self._totals = Totals()
        self._stopping = asyncio.Event()
        self._gathering: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Have all servers drain their streams and end. A second call ends them at once."""
        self._stopping.set()
        for child in self._children:
            child.tell_states(self._states())
            child.stop()

    def reload(self) -> None:
        """Have all servers read the file of keys again."""
        for child in self._children:
            child.reload()

    async def run(self) -> None:
        """Serve until `stop`. Raises StartError."""
        remove_left_behind()
        folder = ServerFolder()
        try:
            await self._run_in(folder)
        finally:
            folder.remove()

    async def _run_in(self, folder: ServerFolder) -> None:
        settings = self._settings
        shares = divide(settings)
        check_admin(settings)
        if settings.log == "memory":  # one process cannot read another's memory
            shares = [each.with_private_log(folder.path / "log") for each in shares]
        loads = new_loads(folder.path / "loads", len(shares))
        with contextlib.ExitStack() as listening:
            listener = listening.enter_context(listener_of(settings))
            listeners = [listener]
            if (admin_listener := admin_listener_of(settings)) is not None:
                listeners.append(listening.enter_context(admin_listener))
            url = url_of(listener, "https" if settings.tls_cert else "http")
            self._children = [
                Child(
                    *(number, share, listeners, loads),
                    on_loading=self._on_loading if number == 1 else lambda pid: None,
                    on_state=self._tell_states,
                    on_wanted=self._gather_for,
                    on_end=self._totals.retire,
                )
                for number, share in enumerate(shares, 1)
            ]
            running = [keep(f"server process {each.number}", each.run) for each in self._children]
            watching = keep("server processes' watch", self._watch)
            try:
                info = await self._until_started()
                if info is not None:
                    self._on_ready(url, info)
                    await self._stopping.wait()
            finally:
                listener.close()  # as soon as the last server closes it, too, nobody can connect
                await self._end(running, is_started=self._stopping.is_set())
                watching.cancel()

    async def _until_started(self) -> ModelInfo | None:
        """Return the model's information when all are ready, or None if `stop` comes first.

        Raises the StartError of the first server that does not start.
        """
        started = asyncio.gather(*(each.started for each in self._children))
        stop = asyncio.ensure_future(self._stopping.wait())
        ends: list[asyncio.Future[Any]] = [started, stop]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not started.done():
            started.cancel()
            return None
        return started.result()[0]

    async def _end(self, running: list[asyncio.Task[None]], *, is_started: bool) -> None:
        """Wait until all processes have ended. If they are not to be drained, end them at once."""
        if not is_started:
            self.stop()
            self.stop()
        reporting = asyncio.create_task(report_waiting(self._num_streams, self._on_waiting))
        await asyncio.gather(*running, return_exceptions=True)
        reporting.cancel()

    def _num_streams(self) -> int:
        return sum(child.num_streams for child in self._children)

    async def _watch(self) -> None:
        """Look once a second whether every process gives signs of life, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for child in self._children:
                child.look()

    def _states(self) -> dict[int, str]:
        if self._stopping.is_set():
            return dict.fromkeys((each.number for each in self._children), "draining")
        return {each.number: each.state for each in self._children}

    def _tell_states(self) -> None:
        states = self._states()
        for child in self._children:
            child.tell_states(states)

    def _gather_for(self, child: Child, question: int) -> None:
        gathering = asyncio.create_task(self._gather(child, question))
        self._gathering.add(gathering)
        gathering.add_done_callback(self._gathering.discard)

    async def _gather(self, child: Child, question: int) -> None:
        """Answer a process that wants the metrics of all."""
        asked = [asyncio.create_task(each.collect()) for each in self._children]
        await asyncio.wait(asked, timeout=COLLECT_TIMEOUT_S)
        for each in asked:
            each.cancel()
        live = {each.number: each.families for each in self._children}
        child.tell_metrics(question, self._totals.with_live(live))
