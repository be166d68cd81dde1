"""Several server processes at one address, told apart by the connections that each has."""

import contextlib

import psutil

from tests.support.raw import Connection, request
from tests.support.servers import RunningServer
from tests.support.waiting import eventually

MOST_TRIES = 500


def processes_of(server: RunningServer) -> dict[int, psutil.Process]:
    """Return the server processes by their numbers; those that are ending are left out."""
    found = {}
    for child in psutil.Process(server.pid).children():
        try:
            title = " ".join(child.cmdline()).strip()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        if title.startswith("penstock: server "):
            found[int(title.rpartition(" ")[2])] = child
    return found


def family_of(server: RunningServer) -> list[psutil.Process]:
    """Return the supervisor and all its descendants."""
    supervisor = psutil.Process(server.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def number_of(server: RunningServer, connection: Connection) -> int:
    """Return the number of the process that has accepted this connection."""
    port = connection.socket.getsockname()[1]
    for number, process in processes_of(server).items():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if any(port in each.raddr for each in process.net_connections("tcp")):
                return number
    raise AssertionError("no process has this connection")


def connection_to(server: RunningServer, number: int) -> Connection:
    """Return an idle connection to the process with this number."""
    others = []
    try:
        for _ in range(MOST_TRIES):
            connection = Connection(server.port)
            others.append(connection)
            assert connection.send(request("GET", "/health/live")).response().status == 200
            if number_of(server, connection) == number:
                return others.pop()
    finally:
        for other in others:
            other.close()
    raise AssertionError(f"process {number} accepts no connection")


def states_of(server: RunningServer) -> dict[str, str]:
    """Return the state of each process, as whichever process says it."""
    with Connection(server.port) as connection:
        answer = connection.send(request("GET", "/health")).response().json()
    states: dict[str, str] = answer["processes"]
    return states


def all_ready(server: RunningServer) -> bool:
    """Return True once every process is ready, after deaths too."""
    return eventually(lambda: set(states_of(server).values()) == {"ready"}, 60)
