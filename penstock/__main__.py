"""The program `penstock`: the entry point of the command and of `python -m penstock`.

The imports of the command line take a good part of a second. This module imports nothing before
they begin, so that Ctrl-C ends the program during them without a traceback.
"""

import signal
import sys

STOPPED_BY_CTRL_C = 130
"""The exit status that shells expect."""


def main() -> None:
    """Import the command line and run it."""
    try:
        _run()
    except KeyboardInterrupt:  # while Typer builds the commands
        sys.exit(STOPPED_BY_CTRL_C)


def _run() -> None:
    handler = signal.getsignal(signal.SIGINT)
    is_pythons = handler is signal.default_int_handler  # else a parent chose to ignore Ctrl-C
    if is_pythons:  # a KeyboardInterrupt inside an import may be printed where nothing can catch it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock.cli.main import main as run

    if is_pythons:
        signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
