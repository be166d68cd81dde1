"""The program of one of several server processes: `python -m penstock.cli.member`.

In: the supervisor's process id, and the descriptors of the link, of the listening socket and of
the admin port's if there is one, as arguments. Out: a server whose log lines name its number (see
`processes.member`).
"""

import logging
import signal
import socket
import sys

import uvloop
from setproctitle import setproctitle

from penstock.children import die_with_parent, leave_signals_to_parent
from penstock.cli.standard_files import stderr_to
from penstock.observe.logs import logging_to, unbuffered
from penstock.processes.member import serve, settings_from
from penstock.processes.messages import receive_start


def main() -> None:
    """Serve until the supervisor says stop."""
    supervisor, *descriptors = map(int, sys.argv[1:])
    connection, listener, *admin_listeners = map(inherited, descriptors)
    die_with_parent(supervisor)
    # systemd and terminals send them to every process: only the supervisor's counts.
    leave_signals_to_parent()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    start = receive_start(connection)
    setproctitle(f"penstock: server {start.number}")

    def name_process(record: logging.LogRecord) -> bool:
        record.fields = {**getattr(record, "fields", {}), "process": start.number}
        return True

    log_format = settings_from(start.settings).log_format
    to_stderr = logging_to(unbuffered(sys.stderr.fileno()), log_format)
    with to_stderr as writer, stderr_to(writer.write_text):
        writer.addFilter(name_process)
        admin_listener = next(iter(admin_listeners), None)
        status = uvloop.run(serve(start, connection, listener, admin_listener))
    sys.exit(status)


def inherited(descriptor: int) -> socket.socket:
    """Return an inherited socket, which this process's own children do not inherit."""
    found = socket.socket(fileno=descriptor)
    found.set_inheritable(False)
    return found


if __name__ == "__main__":
    main()
