"""One of several server processes: a whole server, and its link to the supervisor.

In: the listening socket and the link, both inherited, and what the supervisor says. Out: a running
server that says how it is, once and again. If the supervisor ends, so does this process.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.registry import Collector, CollectorRegistry

from penstock.engine.protocol import ModelInfo
from penstock.errors import Problem, StartError
from penstock.observe.logs import report_loop_error
from penstock.processes import messages
from penstock.processes.messages import FromServer, Link, Start, ToServer, link_to_supervisor
from penstock.processes.totals import Collected, families_of
from penstock.processes.turns import LeastConnections
from penstock.server import Place, Server
from penstock.settings import Settings
from penstock.supervision import keep

BEAT_EVERY_S = 0.5
# The supervisor itself waits a shorter time for the others.
METRICS_TIMEOUT_S = 5.0
EXIT_NOT_STARTED = 1


class Member:
    """This process among its siblings (see `Siblings`)."""

    def __init__(self, link: Link[FromServer, ToServer], number: int, loads: Path) -> None:
        self._link = link
        self._number = number
        self._metrics: Collector = CollectorRegistry()
        self._state: Callable[[], str] = lambda: "loading"
        self._states: dict[int, str] = {}
        self._questions = itertools.count(1)
        self._answers: dict[int, asyncio.Future[list[messages.Family]]] = {}
        self.turns = LeastConnections(loads, number - 1, lambda: self._state() == "ready")

    def attach(self, metrics: Collector, state: Callable[[], str]) -> None:
        """Take the sources of this process's own metrics and state."""
        self._metrics, self._state = metrics, state

    def states(self) -> Mapping[int, str]:
        """Return the last known state of every process; this one's is from now."""
        return self._states | {self._number: self._state()}

    async def metrics(self) -> Collector:
        """Return the metrics of all processes together. Raises Problem after 5 seconds."""
        question = next(self._questions)
        answer = self._answers[question] = asyncio.get_running_loop().create_future()
        self._link.send(messages.Wanted(question))
        try:
            return Collected(await asyncio.wait_for(answer, METRICS_TIMEOUT_S))
        except TimeoutError:
            raise Problem(
                "metrics_incomplete",
                "The metrics of the other server processes did not arrive in time.",
            ) from None
        finally:
            del self._answers[question]

    async def obey(self, server: Server) -> None:
        """Do what the supervisor says, until it ends. Then end this process at once."""
        while (message := await self._link.receive()) is not None:
            match message:
                case messages.Stop():
                    server.stop()
                case messages.Reload():
                    server.reload()
                case messages.Collect(question):
                    self._link.send(messages.Counts(question, families_of(self._metrics.collect())))
                case messages.Combined(question, families):
                    if answer := self._answers.get(question):
                        answer.set_result(families)
                case messages.States(states):
                    self._states = states
                case messages.Start():
                    pass
        os._exit(EXIT_NOT_STARTED)

    async def beat(self, server: Server) -> None:
        """Tell the supervisor twice a second that the event loop runs, for ever."""
        while True:
            if not self._link.is_congested:  # a supervisor that stands still must not cost memory
                self._link.send(messages.Beat(self._state(), server.num_streams))
            self.turns.publish()
            await asyncio.sleep(BEAT_EVERY_S)


async def serve(
    start: Start,
    connection: socket.socket,
    listener: socket.socket,
    admin_listener: socket.socket | None,
) -> int:
    """Serve until the supervisor says stop. Return the exit status."""
    asyncio.get_running_loop().set_exception_handler(report_loop_error)
    if start.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, start.cores)
    link = await link_to_supervisor(connection)
    member = Member(link, start.number, Path(start.loads))

    def tell_ready(_: Server, info: ModelInfo) -> None:
        link.send(messages.Ready(info))

    server = Server(
        settings_from(start.settings),
        on_ready=tell_ready,
        on_loading=lambda pid: link.send(messages.Loading(pid)),
        place=Place(
            *(listener, admin_listener, member, member.turns),
            accepts_at_once=start.accepts_at_once,
            has_private_log=start.has_private_log,
        ),
    )
    beating = keep("heartbeat", lambda: member.beat(server))
    obeying = keep("supervisor's orders", lambda: member.obey(server))
    try:
        await server.run()
    except StartError as error:
        link.send(messages.NotStarted(str(error), error.hint))
        return EXIT_NOT_STARTED
    finally:
        beating.cancel()
        obeying.cancel()
        await asyncio.gather(beating, obeying, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(link.flush(), METRICS_TIMEOUT_S)
        link.close()
    return 0


def settings_to(settings: Settings) -> dict[str, Any]:
    """Return the settings as they are sent to a server process."""
    return settings.model_dump() | {"engine_tables": settings.engine_tables}


def settings_from(values: dict[str, Any]) -> Settings:
    """Return the settings that were sent: no variable and no file is read again."""
    return Settings.model_construct(**values)
